"""Which elements have the largest magnitudes: found by counting the digits of their bits, never by sorting.

The bits of floats without their sign have the order of magnitudes. Those of a sample of the elements tell about where
the one sought is; going over all elements, every one near there is counted by itself, and how many are above. That
finds it, or else the bits are read as digits of 16 bits: going over the elements once per digit, those whose digits so
far are those of the element sought are counted by the next one. Counts are whole numbers and the sample decides only
how they are found, so tiles and devices change nothing about the result. Of equal magnitudes those of lower positions
count as the larger ones; if not all of them are on the same side, the digits of the last position are found in the same
way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.specs import Spec
from ..kit.fields import word
from ..kit.kernel import Array, Bound, Kernel
from ..kit.operations import TensorOp
from ..kit.reduction import BLOCK, Before, Reduction
from ..kit.rules import check_floats

__all__ = ["Keep", "Largest", "LargestOfAll", "Middle", "Quartiles", "Ranks", "magnitudes"]

DIGIT = 16
BINS = 1 << DIGIT
FIRST = BINS // 2  # values of the first digit: there is no sign
NEAR = 1 << 17  # magnitudes of float32 that are counted each by itself around the one that the sample gives
SAMPLE = (
    13  # of so many elements one is in the sample: it seldom divides the length of rows, so that all columns are in it
)
PLACES = 3  # digits of a position: no tensor has 2**48 elements
EACH = 4  # numbers about every element sought
NOTHING = float(2**31 - 1)  # the upper bits of no number: none is larger

# in place of the last position
ANY = float(1 << 52)  # a position beyond all others: there is nothing to tell apart
NONE = -1.0  # there is no element of this rank
SOUGHT = -2.0  # the magnitude is not known yet


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

    needs_places = True
    by_blocks = False
    host_below = 1 << 18
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
    def guesses(self) -> int:
        """Stages before the digits: the sample, and what is near to what it gives."""
        return 0 if self.wide else 2

    @property
    def digits(self) -> int:
        """Digits of a magnitude."""
        return 4 if self.wide else 2

    @property
    def stages(self) -> int:
        return self.guesses + self.digits + PLACES

    def how(self, stage: int) -> tuple[str, ...]:
        about = 1 + self.counts_zeros  # how many there are, and how many are 0
        if self._is_near(stage):
            return ("sum",) * (about + self.count * (NEAR + 1))
        return ("sum",) * (about + FIRST if self._is_first(stage) else BINS * self.count)

    def _is_near(self, stage: int) -> bool:
        return stage == self.guesses - 1

    def _is_first(self, stage: int) -> bool:
        """Whether first digits are counted: those of the sample, or of all."""
        return stage in (0, self.guesses)

    def given(self, stage: int) -> int:
        return 1 + EACH * self.count

    def space(self, stage: int, size: int) -> int:
        return 3 * 8 * len(self.how(stage)) + 16 * size

    def is_settled(self, stage: int, before: Before) -> bool:
        if before is None or stage < self.guesses:
            return False
        if stage < self.guesses + self.digits:
            return not any(float(one[3]) == SOUGHT for one in _each(before))
        return all(bool(_is_done(one)) for one in _each(before)) or self._is_idle(stage, float(before[0]))

    def _is_idle(self, stage: int, size: float) -> bool:
        """Whether the digit of a stage is 0 in all positions of a tensor of so many elements."""
        return size <= 2.0 ** self._shift(stage) and stage < self.stages - 1

    def _shift(self, stage: int) -> int:
        """The bits of a position below the digit of a stage."""
        return DIGIT * (self.stages - 1 - stage)

    def reaches(self, stage: int, before: Before, start: int, count: int) -> bool:
        if before is None or stage < self.guesses + self.digits:
            return True
        span = 2.0 ** (self._shift(stage) + DIGIT)  # of positions that share all digits before
        return any(
            not _is_done(one) and float(one[3]) < start + count and start < float(one[3]) + span
            for one in _each(before)
        )

    # -- a pass over the elements --------------------------------------------------------------------------------

    def partial(self, k: Kernel, stage: int, before: Before, count: Array | int, *arrays: Any) -> Array:
        source, places = arrays
        return self._partial(k, stage, before, count, source, places, is_aligned=True)

    def partial_by_rows(self, k: Kernel, stage: int, before: Before, count: Array | int, *arrays: Any) -> Array:
        source, places = arrays
        number = k.xp.asarray(count) * (source.size // source.shape[0])
        flat = (source.reshape(-1), lambda: places().reshape(-1))
        return self._partial(k, stage, before, number, *flat, is_aligned=False)

    def _partial(
        self,
        k: Kernel,
        stage: int,
        before: Before,
        count: Any,
        source: Array,
        places: Callable[[], Array],
        is_aligned: bool,
    ) -> Array:
        """How often the elements have each of the digits of a stage; they begin with a block if `is_aligned`."""
        raw = magnitude_bits(k, source)
        if before is None and self.guesses:
            number = raw.shape[0] // SAMPLE
            raw, count = raw[: number * SAMPLE].reshape(number, SAMPLE)[:, 0], k.xp.asarray(count) // SAMPLE
        found = []
        if self._is_first(stage) or self._is_near(stage):
            is_there = k.xp.arange(raw.shape[0], dtype="int64") < count
            found.append(k.xp.asarray(count, "float64").reshape(1))
            if self.counts_zeros:
                found.append((is_there & (raw == 0)).sum().astype("float64").reshape(1))
        if self._is_first(stage):
            found.append(k.counts(raw >> (8 * raw.dtype.itemsize - DIGIT), 0, FIRST, count)[:FIRST])
        else:
            assert before is not None
            found += [self._counted(k, stage, one, count, raw, places, is_aligned) for one in _each(before)]
        return k.xp.concatenate(found)[None]

    def _counted(
        self,
        k: Kernel,
        stage: int,
        one: Sequence[Array],
        count: Any,
        raw: Array,
        places: Callable[[], Array],
        is_aligned: bool,
    ) -> Array:
        """How often the elements that may be the one sought have each digit, or each magnitude near it; then also how
        many are above."""
        sought = _bits_of(k, one, self.wide)
        if self._is_near(stage):
            return k.counts(raw, sought, NEAR, count)
        if stage < self.guesses + self.digits:
            shift = DIGIT * (self.guesses + self.digits - 1 - stage)
            return k.counts(raw >> shift, sought >> shift, BINS, count)[:BINS]
        shift = self._shift(stage)
        first, place = k.xp.asarray(one[3], "float64").astype("int64") >> shift, places()
        if is_aligned and shift >= DIGIT:  # all elements of a block have the same digit
            is_equal = (raw == sought) & (k.xp.arange(raw.shape[0], dtype="int64") < count)
            lanes = is_equal.reshape(-1, 64, BLOCK // 64).sum(1, dtype="uint8")
            number = lanes.sum(1, dtype="int64")
            return k.weighed((place[::BLOCK] >> shift) - first, number, BINS)
        place = k.xp.where(raw == sought, place, int(ANY))
        return k.counts(place >> shift, first, BINS, count)[:BINS]

    def together(self, k: Kernel, stage: int, parts: Array) -> Sequence[Array]:
        return parts.sum(0)  # type: ignore[attr-defined, no-any-return]

    # -- what it comes to ----------------------------------------------------------------------------------------

    def finish(self, k: Kernel, stage: int, totals: Any, before: Before) -> tuple[Array, ...]:
        counts = k.xp.asarray(totals, "float64")
        if not (self._is_first(stage) or self._is_near(stage)):
            assert before is not None
            rows = counts.reshape(self.count, BINS)
            after = [self._next(k, stage, rows[n], one) for n, one in enumerate(_each(before))]
            return self._merged(k, stage, before[0], before, after)
        size, counts = counts[0], counts[1:]
        zeros, counts = (counts[0], counts[1:]) if self.counts_zeros else (k.xp.zeros((), "float64"), counts)
        ranks = [k.at_most(rank, size) for rank in self.wanted(k, size, size - zeros)]
        if self._is_near(stage):
            assert before is not None
            rows = counts.reshape(self.count, NEAR + 1)
            hits = [self._hit(k, rows[n], one, ranks[n]) for n, one in enumerate(_each(before))]
            return (size, *(number for hit in hits for number in hit))
        found = [self._first(k, counts, rank, stage < self.guesses) for rank in ranks]
        if before is None:
            return (size, *(number for one in found for number in one))
        return self._merged(k, stage, size, before, found)

    def _merged(
        self, k: Kernel, stage: int, size: Array, before: Sequence[Array], after: Sequence[Any]
    ) -> tuple[Array, ...]:
        """What is known after a stage: of an element about which it was to find nothing, what was."""
        found = [size]
        for one, new in zip(_each(before), after, strict=True):
            is_kept = one[3] != SOUGHT if stage < self.guesses + self.digits else _is_done(one)
            found += [k.xp.where(is_kept, a, b) for a, b in zip(one, new, strict=True)]
        return tuple(found)

    def _first(self, k: Kernel, counts: Array, rank: Array, is_sample: bool) -> list[Array]:
        """What first digits tell about an element: that digit, or where the magnitudes near it begin."""
        xp, zero = k.xp, k.xp.zeros((), "float64")
        digit, left, equal = _found(k, counts[::-1], k.at_least(rank, 1.0))
        first = _times(k, FIRST - 1 - digit, 1)
        if not is_sample:
            is_there = rank >= 1
            return [xp.where(is_there, first, NOTHING), zero, left, xp.where(is_there, SOUGHT, NONE)]
        share = xp.where(equal > 0, left / k.at_least(equal, 1.0), 0.5)  # of its digit, what is above it
        inside = xp.floor(k.mul(1.0 - share, xp.asarray(float(BINS), "float64")))
        begin = k.at_most(k.at_least(first + inside - NEAR / 2, 0.0), NOTHING + 1.0 - NEAR)
        return [begin, zero, zero, zero + SOUGHT]

    def _hit(self, k: Kernel, counts: Array, one: Sequence[Array], rank: Array) -> list[Array]:
        """What is known of an element if it is among those counted by themselves, above which are the last of them."""
        xp, near, zero = k.xp, counts[:NEAR], k.xp.zeros((), "float64")
        number, left, equal = _found(k, near[::-1], rank - counts[NEAR])
        high = one[0] + (NEAR - 1 - number)
        is_hit = (rank > counts[NEAR]) & (rank <= counts[NEAR] + near.sum())  # type: ignore[attr-defined]
        last = xp.where((left == equal) | (high == 0), ANY, 0.0)
        is_there = rank >= 1
        last = xp.where(is_there, xp.where(is_hit, last, SOUGHT), NONE)
        return [xp.where(is_there, high, NOTHING), zero, xp.where(is_there, left, 1.0), last]

    def _next(self, k: Kernel, stage: int, counts: Array, one: Sequence[Array]) -> list[Array]:
        """What is known of an element after one more digit."""
        high, low, left, last = one
        end = self.guesses + self.digits
        if stage >= end:
            digit, left, _ = _found(k, counts, left)
            return [high, low, left, last + _times(k, digit, self.stages - 1 - stage)]
        digit, left, equal = _found(k, counts[::-1], left)
        digit = _times(k, BINS - 1 - digit, (end - 1 - stage) % 2)
        high, low = (high + digit, low) if stage == self.guesses + 1 else (high, low + digit)
        is_alike = (left == equal) | ((high == 0) & (low == 0))  # all that are equal are kept, or it does not matter
        return [high, low, left, k.xp.where(is_alike, ANY, 0.0) if stage == end - 1 else last]


def _each(before: Sequence[Array]) -> list[Sequence[Array]]:
    """What is known of every element sought."""
    return [before[at : at + EACH] for at in range(1, len(before), EACH)]


def _is_done(one: Sequence[Array]) -> Any:
    """Whether all is known of an element sought."""
    return (one[3] == ANY) | (one[3] == NONE)


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
