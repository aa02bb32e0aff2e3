"""Which elements have the largest magnitudes: found by counting the digits of their bits, never by sorting.

The bits of floats without their sign have the order of magnitudes. They are read as digits of 16 bits; going over the
elements once per digit, those whose digits so far are those of the element sought are counted by the next one. Counts
are whole numbers, so tiles and devices change nothing about them. Of equal magnitudes those of lower positions count as
the larger ones; if not all of them are on the same side, the digits of the last position are found in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.specs import Spec
from ..kit.fields import word
from ..kit.kernel import Array, Bound, Kernel
from ..kit.operations import TensorOp
from ..kit.reduction import Before, Reduction
from ..kit.rules import check_floats

__all__ = ["Keep", "Largest", "LargestOfAll", "Middle", "Quartiles", "Ranks", "magnitudes"]

DIGIT = 16
BINS = 1 << DIGIT
PLACES = 3  # digits of a position: no tensor has 2**48 elements
ANY = float(1 << 52)  # a position beyond all others
EACH = 4  # numbers about every element sought
NOTHING = float(2**31 - 1)  # the upper bits of no number: none is larger


def magnitude_bits(k: Kernel, x: Array) -> Array:
    """The bits of flat floats without their sign, uint32 or uint64."""
    import numpy as np

    raw = k.bits(x)
    return raw & np.array(2 ** (8 * x.dtype.itemsize - 1) - 1, raw.dtype)[()]


@dataclass(frozen=True)
class Ranks(Reduction):
    """The magnitudes of some ranks, counted from the largest; `wanted` of a subclass says which.

    source: float32, or float64 if `wide`; any shape -> float64[1 + 4 n]: the number of elements; and of every rank the
    upper 31 bits of the magnitude, the lower 32 bits of a `wide` one, its rank among those that are alike so far, and
    the last position that is of the rank or above, 2**52 where there is nothing to tell apart, -1 if there are none.
    """

    is_fast_on_host = True
    needs_places = True
    counts_zeros: ClassVar[bool] = False
    wide: bool = False

    @property
    def count(self) -> int:
        """How many ranks there are."""
        return 1

    def wanted(self, k: Kernel, size: Array, nonzero: Array) -> Sequence[Array]:
        """The ranks, from 1, given how many elements there are, and how many of them are not 0 if it `counts_zeros`;
        below 1: nothing."""
        raise NotImplementedError

    @property
    def digits(self) -> int:
        """Digits of a magnitude."""
        return 4 if self.wide else 2

    @property
    def stages(self) -> int:
        return self.digits + PLACES

    def how(self, stage: int) -> tuple[str, ...]:
        return ("sum",) * (BINS // 2 + self.counts_zeros if stage == 0 else BINS * self.count)

    def given(self, stage: int) -> int:
        return 1 + EACH * self.count

    def space(self, stage: int, size: int) -> int:
        return 3 * 8 * len(self.how(stage)) + 16 * size

    def is_settled(self, stage: int, before: Before) -> bool:
        return before is not None and all(
            bool(_is_done(one)) or _is_idle(stage - self.digits, float(before[0])) for one in _each(before)
        )

    # -- a pass over the elements --------------------------------------------------------------------------------

    def partial(self, k: Kernel, stage: int, before: Before, count: Array | int, *arrays: Any) -> Array:
        source, places = arrays
        raw = magnitude_bits(k, source)
        if stage == 0:
            mask, (first,) = k.picked(count, None, raw >> (8 * raw.dtype.itemsize - DIGIT))  # there is no sign
            found = [k.histogram(first, BINS // 2, mask)]
            if self.counts_zeros:
                mask, (zeros,) = k.picked(count, raw == 0, raw)
                found.append(k.histogram(zeros, 1, mask))
            return k.xp.concatenate(found)[None]
        assert before is not None
        found = [self._counted(k, stage, one, count, raw, places) for one in _each(before)]
        return k.xp.concatenate(found)[None]

    def partial_by_rows(self, k: Kernel, stage: int, before: Before, count: Array | int, *arrays: Any) -> Array:
        source, places = arrays
        width = source.size // source.shape[0]
        return self.partial(
            k, stage, before, k.xp.asarray(count) * width, source.reshape(-1), lambda: places().reshape(-1)
        )

    def _counted(
        self, k: Kernel, stage: int, one: Sequence[Array], count: Any, raw: Array, places: Callable[[], Array]
    ) -> Array:
        """How often the elements that may be the one sought have each digit."""
        sought = _bits_of(k, one, self.wide)
        if stage < self.digits:
            shift = DIGIT * (self.digits - stage)
            mask, (found,) = k.picked(count, (raw >> shift) == (sought >> shift), raw)
            return k.histogram((found >> (shift - DIGIT)) % BINS, BINS, mask)
        shift = DIGIT * (PLACES - (stage - self.digits))
        last = k.xp.asarray(one[3], "float64").astype("int64")
        mask, (place,) = k.picked(count, raw == sought, places())
        is_near = (place >> shift) == (last >> shift)
        mask, (place,) = k.picked(place.shape[0], is_near if mask is None else is_near & mask, place)
        return k.histogram((place >> (shift - DIGIT)) % BINS, BINS, mask)

    def together(self, k: Kernel, stage: int, parts: Array) -> Sequence[Array]:
        return parts.sum(0)  # type: ignore[attr-defined, no-any-return]

    # -- what it comes to ----------------------------------------------------------------------------------------

    def finish(self, k: Kernel, stage: int, totals: Any, before: Before) -> tuple[Array, ...]:
        xp, counts = k.xp, k.xp.asarray(totals, "float64")
        if stage == 0:
            counts, zeros = counts[: BINS // 2], counts[BINS // 2 :].sum()  # type: ignore[attr-defined]
            size = counts.sum()  # type: ignore[attr-defined]
            found = [size]
            for rank in self.wanted(k, size, size - zeros):
                digit, left, _ = _found(k, counts[::-1], k.at_least(k.at_most(rank, size), 1.0))
                high = xp.where(rank < 1, NOTHING, _times(k, BINS // 2 - 1 - digit, 1))
                found += [high, xp.zeros((), "float64"), left, xp.where(rank < 1, -1.0, 0.0)]
            return tuple(found)
        assert before is not None
        rows = counts.reshape(self.count, BINS)
        found = [before[0]]
        for number, one in enumerate(_each(before)):
            after = self._next(k, stage, rows[number], one)
            is_kept = _is_done(one)
            found += [xp.where(is_kept, old, new) for old, new in zip(one, after, strict=True)]
        return tuple(found)

    def _next(self, k: Kernel, stage: int, counts: Array, one: Sequence[Array]) -> list[Array]:
        """What is known of an element after one more digit."""
        high, low, left, last = one
        if stage >= self.digits:
            digit, left, _ = _found(k, counts, left)
            return [high, low, left, last + _times(k, digit, PLACES - 1 - (stage - self.digits))]
        digit, left, equal = _found(k, counts[::-1], left)
        digit = _times(k, BINS - 1 - digit, (self.digits - 1 - stage) % 2)
        high, low = (high + digit, low) if stage == 1 else (high, low + digit)
        is_alike = (left == equal) | ((high == 0) & (low == 0))  # all that are equal are kept, or it does not matter
        return [high, low, left, k.xp.where(is_alike, ANY, last) if stage == self.digits - 1 else last]


def _each(before: Sequence[Array]) -> list[Sequence[Array]]:
    """What is known of every element sought."""
    return [before[at : at + EACH] for at in range(1, len(before), EACH)]


def _is_done(one: Sequence[Array]) -> Any:
    """Whether all is known of an element sought."""
    return (one[3] == ANY) | (one[3] < 0)


def _is_idle(stage: int, size: float) -> bool:
    """Whether a digit of positions is 0 in a tensor of so many elements."""
    return 0 <= stage < PLACES and size <= 2.0 ** (DIGIT * (PLACES - 1 - stage)) and stage < PLACES - 1


def _times(k: Kernel, digit: Array, higher: int) -> Array:
    """A digit at its place, above so many others."""
    return k.mul(digit, k.xp.asarray(float(1 << DIGIT * higher), "float64"))


def _found(k: Kernel, counts: Array, rank: Array) -> tuple[Array, Array, Array]:
    """Of elements counted by a digit, in the order of counts: the digit of the one of a rank, its rank among those of
    that digit, and how many these are."""
    sums = k.xp.cumsum(counts)
    digit = (sums < rank).sum()  # type: ignore[attr-defined]
    at = k.xp.minimum(digit, counts.shape[0] - 1)
    above = sums[at] - counts[at]
    return at.astype("float64"), rank - above, counts[at]


def _bits_of(k: Kernel, one: Sequence[Array], wide: bool) -> Array:
    """The magnitude of an element sought, as `magnitude_bits` has it."""
    high, low = (k.xp.asarray(part, "float64") for part in one[:2])
    if not wide:
        return high.astype("uint32")
    return (high.astype("uint64") << 32) | low.astype("uint64")


# -- who is kept -------------------------------------------------------------------------------------------------


def is_within(k: Kernel, raw: Array, place: Array, one: Sequence[Array], wide: bool) -> Array:
    """Where elements have a rank or are above it."""
    sought = _bits_of(k, one, wide)
    last = k.xp.asarray(one[3], "float64").astype("int64")
    return (raw > sought) | ((raw == sought) & (place <= last))


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
    return [k.from_bits(_bits_of(k, one, False), "float32") for one in _each([numbers[n] for n in range(numbers.size)])]


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

    def apply(self, k: Kernel, source: Array, by: Array, numbers: Array, places: Any = None) -> Array:
        raw = magnitude_bits(k, by)
        place = places() if places else k.xp.arange(source.size, dtype="int64").reshape(source.shape)
        found = [is_within(k, raw, place, one, self.wide) for one in _each([numbers[n] for n in range(numbers.size)])]
        mask = found[1] & (found[0] == False) if self.is_middle else found[0]  # noqa: E712
        return k.xp.where(mask, source, k.xp.zeros((), source.dtype))

    def smallest(self, source: Bound, *_: Bound) -> Bound:
        return source
