"""What is known of an element that has a rank: five numbers, found by passes over a tensor one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..kit.kernel import Array, Kernel
from ..kit.numbering import Numbering

__all__ = ["ANY", "EACH", "NONE", "NOTHING", "SOUGHT", "bits_of", "each_of", "is_placed", "is_within", "magnitude_bits"]

EACH = 5  # the upper bits of the magnitude, the lower ones, its rank among those alike, a position, and how many follow

NOTHING = float(2**31 - 1)  # the upper bits of no number: none is larger

# in place of the last position
ANY = float(1 << 52)  # a position beyond all others: there is nothing to tell apart
NONE = -1.0  # there is no element of this rank
SOUGHT = -2.0  # the magnitude is not known yet: instead of it, there is a candidate, and its neighbours in the sample


def magnitude_bits(k: Kernel, x: Array) -> Array:
    """The bits of flat floats without their sign, uint32 or uint64."""
    import numpy as np

    raw = k.bits(x)
    return raw & np.array(2 ** (8 * x.dtype.itemsize - 1) - 1, raw.dtype)[()]


def each_of(before: Sequence[Array]) -> list[Sequence[Array]]:
    """What is known of every element sought."""
    return [before[at : at + EACH] for at in range(1, len(before), EACH)]


def is_placed(one: Sequence[Array], near: int) -> Any:
    """Whether nothing but so many positions or fewer is left to tell about an element."""
    return (one[3] == ANY) | (one[3] == NONE) | (one[4] <= near)


def bits_of(k: Kernel, one: Sequence[Array], wide: bool) -> Array:
    """The magnitude of an element sought, as `magnitude_bits` has it."""
    high, low = (k.xp.asarray(part, "float64") for part in one[:2])
    if not wide:
        return high.astype("uint32")
    return (high.astype("uint64") << 32) | low.astype("uint64")


def is_within(k: Kernel, raw: Array, places: Numbering, one: Sequence[Array], wide: bool) -> Array:
    """Where elements have a rank or are above it."""
    sought = bits_of(k, one, wide)
    return (raw > sought) | ((raw == sought) & places.up_to(one[3]))
