"""Which elements of a tensor are selected by the ranks of their magnitudes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.fields import word
from ..kit.kernel import Array, Bound, Kernel
from ..kit.numbering import Numbering
from ..kit.operations import TensorOp
from ..kit.rules import check_floats
from .ranks import Ranks
from .sought import bits_of, each_of, is_within, magnitude_bits

__all__ = ["Keep", "Largest", "LargestOfAll", "Middle", "Quartiles", "magnitudes"]


@dataclass(frozen=True)
class Largest(Ranks):
    """The rank of the last element that is kept if a share of all is, at least one unless the share is 0."""

    density: float = word()

    def wanted(self, k: Kernel, size: Array, nonzero: Array) -> Sequence[Array]:
        density = k.xp.asarray(self.density, "float64")
        kept = k.xp.floor(k.mul(density, size))
        return [k.xp.where(density > 0, k.at_least(kept, 1.0), 0.0)]


@dataclass(frozen=True)
class Middle(Ranks):
    """Two ranks, between which a share of all elements is kept: of those before the first one a share `gamma` of all is
    dropped, or less where fewer are left for it."""

    density: float = word()
    gamma: float = word()

    @property
    def count(self) -> int:
        return 2

    def wanted(self, k: Kernel, size: Array, nonzero: Array) -> Sequence[Array]:
        density, gamma = (k.xp.asarray(share, "float64") for share in (self.density, self.gamma))
        kept, top = k.xp.floor(k.mul(density, size)), k.xp.floor(k.mul(gamma, size))
        top = k.at_most(top, size - kept)
        return [top, top + kept]


@dataclass(frozen=True)
class LargestOfAll(Ranks):
    """The rank of the last element that is kept if a share of those that are not 0 is, rounded down."""

    counts_zeros = True
    share: float = word()

    def wanted(self, k: Kernel, size: Array, nonzero: Array) -> Sequence[Array]:
        return [k.xp.floor(k.mul(nonzero, k.xp.asarray(self.share, "float64")))]


@dataclass(frozen=True)
class Quartiles(Ranks):
    """The ranks of the first, second and third quartile: of n elements in ascending order those of number
    floor(q (n - 1)), from 0."""

    @property
    def count(self) -> int:
        return 3

    def wanted(self, k: Kernel, size: Array, nonzero: Array) -> Sequence[Array]:
        shares = (k.xp.asarray(share, "float64") for share in (0.25, 0.5, 0.75))
        return [size - k.xp.floor(k.mul(share, size - 1)) for share in shares]


def magnitudes(k: Kernel, numbers: Array) -> list[Array]:
    """The magnitudes that `Ranks` of float32 found: float32 scalars."""
    return [
        k.from_bits(bits_of(k, one, False), "float32") for one in each_of([numbers[n] for n in range(numbers.size)])
    ]


@dataclass(frozen=True)
class Keep(TensorOp):
    """What is selected by ranks, and 0 elsewhere: those of the only rank and above, or those between two.

    source: float32 or float64; what `Ranks` of `by` give, where that is another tensor of the same shape -> the same
    shape and dtype.
    """

    needs_places = True
    wide: bool = False
    is_middle: bool = False

    def infer(self, source: Spec, *_: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        return (source,)

    def apply(self, k: Kernel, source: Array, by: Array, numbers: Array, places: Numbering | None = None) -> Array:
        raw = magnitude_bits(k, by)
        place = places or Numbering(k, 0, source.shape)
        found = [is_within(k, raw, place, one, self.wide) for one in each_of([numbers[n] for n in range(numbers.size)])]
        mask = found[1] & (found[0] == False) if self.is_middle else found[0]  # noqa: E712
        return k.xp.where(mask, source, k.xp.zeros((), source.dtype))

    def smallest(self, source: Bound, *_: Bound) -> Bound:
        return source
