"""The magnitudes of some ranks: found by counting, never by sorting all elements.

The bits of floats without their sign have the order of magnitudes. A sample of the elements, one of `SAMPLE`, tells
about where the one sought is. Where the magnitude that has the rank in the sample is there many times, as with the
differences of models of 16 bits, it is mostly the one sought: going over all elements, those that are above it and
those that are equal are counted. Else, and if it was not, those near it are counted each by itself; or at last the bits
are read as digits of 16 bits: going over the elements once per digit, those whose digits so far are those of the
element sought are counted by the next one. Counts are whole numbers and the sample decides only how they are found, so
tiles and devices change nothing about the result.

Of equal magnitudes those of lower positions count as the larger ones; if not all of them are on the same side, how many
there are in each block tells in which one the last is that still is, and only that one is looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

from ..kit.kernel import Array, Kernel
from ..kit.numbering import Numbering
from ..kit.reduction import Before, Gathered, Reduction
from .sought import ANY, EACH, NONE, NOTHING, SOUGHT, bits_of, each_of, is_placed, magnitude_bits

__all__ = ["Ranks"]

DIGIT = 16
BINS = 1 << DIGIT  # also of positions that are counted together
FIRST = BINS // 2  # values of the first digit: there is no sign
SAMPLE = (
    61  # of so many elements one is in the sample: it seldom divides the length of rows, so that all columns are in it
)
MOST = 1 << 18  # elements of a sample: a rank in it is off by about a thousandth of its length
NEAR = 1 << 17  # magnitudes of float32 that are counted each by itself around the one that the sample gives

# stages before the digits
SAMPLED = 0
TESTED = (1, 2)  # whether it is the one that the sample gave, or a neighbour of that in it
COUNTED = 3  # what is near
GUESSES = 4

# bits of the code of an element that is compared with candidates: of each of up to three there are two more
THERE, ZERO, ABOVE, EQUAL = 1, 2, 4, 8


@dataclass(frozen=True)
class Ranks(Reduction):
    """The magnitudes of some ranks, counted from the largest; `wanted` of a subclass says which.

    source: float32, or float64 if `wide`; any shape -> float64[1 + 5 n]: the number of elements; and of every rank the
    upper 31 bits of the magnitude, the lower 32 bits of a `wide` one, its rank among those that are alike so far, the
    last position that is of the rank or above, 2**52 where there is nothing to tell apart, -1 if there are none, and
    from that position on among how many it may be, 1 at last.
    """

    needs_places = True
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
        """Stages before the digits."""
        return 0 if self.wide else GUESSES

    @property
    def digits(self) -> int:
        """Digits of a magnitude."""
        return 4 if self.wide else 2

    @property
    def stages(self) -> int:
        return self.guesses + self.digits + 2  # the block of a position, and the position

    @property
    def _blocks(self) -> int:
        """The stage that tells the block of a position; the last one is that after it."""
        return self.guesses + self.digits

    def _is_test(self, stage: int) -> bool:
        return stage == self._blocks or (bool(self.guesses) and stage in TESTED)

    def _is_sample(self, stage: int) -> bool:
        return bool(self.guesses) and stage == SAMPLED

    def _is_near(self, stage: int) -> bool:
        return bool(self.guesses) and stage == COUNTED

    def how(self, stage: int) -> tuple[str, ...]:
        about = 1 + self.counts_zeros  # how many there are, and how many are 0
        if self._is_sample(stage):
            return ("sum",)
        if self._is_test(stage):
            return ("sum",) * (about + 2 * self.count)
        if self._is_near(stage):
            return ("sum",) * (about + self.count * (NEAR + 1))
        return ("sum",) * (about + FIRST if stage == self.guesses else BINS * self.count)

    def given(self, stage: int) -> int:
        return 1 + EACH * self.count

    def gathered(self, stage: int) -> Gathered:
        return "rows" if self._is_sample(stage) or self._is_test(stage) else "sum"

    def stride(self, stage: int) -> int:
        return SAMPLE if self._is_sample(stage) else 1

    def thinned(self, stage: int, size: int) -> int:
        return max(size // (SAMPLE * MOST), 1) if self._is_sample(stage) else 1

    def is_fast_at(self, stage: int) -> bool:
        return self._is_sample(stage) or stage > self._blocks  # few elements

    def space(self, stage: int, size: int) -> int:
        if self.gathered(stage) == "rows":
            return 4 * (1 + self.count) * size
        return 3 * 8 * len(self.how(stage)) + 16 * size

    def is_settled(self, stage: int, before: Before) -> bool:
        if before is None:
            return False
        if stage >= self._blocks:
            return all(bool(is_placed(one, 1 if stage > self._blocks else BINS)) for one in each_of(before))
        # a candidate may not be worth a test
        return all(float(one[3]) != SOUGHT or (self._is_test(stage) and not float(one[4])) for one in each_of(before))

    def reaches(self, stage: int, before: Before, start: int, count: int) -> bool:
        if before is None or stage <= self._blocks:
            return True
        return any(
            not is_placed(one, 1) and float(one[3]) < start + count and start < float(one[3]) + float(one[4])
            for one in each_of(before)
        )

    def apply(self, k: Kernel, *arrays: Array) -> Array:
        raw = magnitude_bits(k, arrays[0].reshape(-1))
        is_there, places = raw == raw, Numbering(k, 0, raw.shape)
        before: tuple[Array, ...] | None = None
        for stage in range(self.guesses, self._blocks):  # digits only, which need nobody to look at a sample
            counts = self._counts(k, stage, before, raw.size, raw, is_there, places)
            before = self.finish(k, stage, counts[0], before)
        assert before is not None
        found: list[Any] = [before[0]]
        for high, low, left, last, _ in each_of(before):
            order = k.xp.cumsum((raw == bits_of(k, (high, low), self.wide)).astype("int64"))
            place = k.xp.argmax(order >= left).astype("float64")
            found += [high, low, k.xp.where(last == 0, 1.0, left), k.xp.where(last == 0, place, last), 1.0]
        return k.xp.stack([k.xp.asarray(x, "float64") for x in found])

    # -- a pass over the elements --------------------------------------------------------------------------------

    def partial(
        self, k: Kernel, stage: int, before: Before, count: Array | int, *arrays: Any, is_padded: bool = False
    ) -> Array:
        source, places = arrays
        raw = magnitude_bits(k, source)
        narrow = "int32" if raw.shape[0] < 2**31 else "int64"
        is_there = k.xp.arange(raw.shape[0], dtype=narrow) < k.xp.asarray(count).astype(narrow)
        if self._is_sample(stage):
            return k.xp.where(is_there, raw.astype("float64"), NONE).reshape(-1, 1)
        if self._is_test(stage):
            assert before is not None
            return self._codes(k, raw, is_there, [bits_of(k, one, self.wide) for one in each_of(before)])
        return self._counts(k, stage, before, count, raw, is_there, places)

    def partial_by_rows(self, k: Kernel, stage: int, before: Before, count: Array | int, *arrays: Any) -> Array:
        source, places = arrays
        number = k.xp.asarray(count).astype("int64") * (source.size // source.shape[0])
        flat, step = source.reshape(-1), self.stride(stage)
        if step > 1:
            flat, number = flat[::step], (number + (step - 1)) // step
        return self.partial(k, stage, before, number, flat, places.flat())

    def _counts(
        self, k: Kernel, stage: int, before: Before, count: Any, raw: Array, is_there: Array, places: Numbering
    ) -> Array:
        """How often the elements that may be those sought have each digit, each magnitude near one, or each position
        in a block; before the first, how many elements there are, and how many are 0."""
        found = []
        if stage <= self.guesses:
            found.append(k.xp.asarray(count, "float64").reshape(1))
            found += [k.how_many(is_there & (raw == 0)).reshape(1)] if self.counts_zeros else []
        if stage == self.guesses:
            found.append(k.counts(raw >> (8 * raw.dtype.itemsize - DIGIT), 0, FIRST, count)[:FIRST])
            return k.xp.concatenate(found)[None]
        assert before is not None
        for one in each_of(before):
            sought = bits_of(k, one, self.wide)
            if self._is_near(stage):  # and above these
                found.append(k.counts(raw, _beginning(k, one).astype(raw.dtype), NEAR, count))
            elif stage > self._blocks:
                place = k.xp.where(is_there & (raw == sought), places.numbers(), int(ANY))
                found.append(k.counts(place, k.xp.asarray(one[3], "float64").astype("int64"), BINS, count)[:BINS])
            else:
                shift = DIGIT * (self._blocks - 1 - stage)
                found.append(k.counts(raw >> shift, sought >> shift, BINS, count)[:BINS])
        return k.xp.concatenate(found)[None]

    def _codes(self, k: Kernel, raw: Array, is_there: Array, candidates: Sequence[Array]) -> Array:
        """A byte of every element: a loop that a CPU does fast, where XLA makes bad ones of sums."""
        bits = [(raw == 0, ZERO)] if self.counts_zeros else []
        for number, one in enumerate(candidates):
            bits += [(raw > one, ABOVE << 2 * number), (raw == one, EQUAL << 2 * number)]
        code = reduce(lambda a, b: a | b, (k.xp.where(mask, k.xp.uint8(bit), k.xp.uint8(0)) for mask, bit in bits))
        return k.xp.where(is_there, code | k.xp.uint8(THERE), k.xp.uint8(0))

    def received(self, stage: int, partial: Any) -> Any:
        if not self._is_test(stage):
            return partial
        import numpy as np

        codes = np.asarray(partial)
        bits = [ZERO] if self.counts_zeros else []
        bits += [bit << 2 * number for number in range(self.count) for bit in (ABOVE, EQUAL)]
        found = []
        for block in (codes[at : at + BINS] for at in range(0, len(codes), BINS)):
            there = len(block) if block[-1] else np.count_nonzero(block)  # those beyond the end come last
            found.append([there, *(np.count_nonzero(block & np.uint8(bit)) for bit in bits)])
        return np.array(found, np.float64)

    def together(self, k: Kernel, stage: int, parts: Array) -> Sequence[Array]:
        return parts.sum(0)  # type: ignore[attr-defined, no-any-return]

    # -- what it comes to ----------------------------------------------------------------------------------------

    def finish(self, k: Kernel, stage: int, totals: Any, before: Before) -> tuple[Array, ...]:
        if self._is_sample(stage):
            return self._guessed(k, totals)
        if self._is_test(stage):
            assert before is not None
            return self._tested(k, stage, totals, before)
        counts = k.xp.asarray(totals, "float64")
        if stage > self.guesses:
            assert before is not None
            rows = counts.reshape(self.count, BINS)
            after = [self._next(k, stage, rows[n], one) for n, one in enumerate(each_of(before))]
            return self._merged(k, stage, before[0], before, after)
        size, counts = counts[0], counts[1:]
        zeros, counts = (counts[0], counts[1:]) if self.counts_zeros else (k.xp.zeros((), "float64"), counts)
        ranks = [k.at_most(rank, size) for rank in self.wanted(k, size, size - zeros)]
        if self._is_near(stage):
            assert before is not None
            rows = counts.reshape(self.count, NEAR + 1)
            found = [self._hit(k, rows[n], one, ranks[n], size) for n, one in enumerate(each_of(before))]
        else:
            found = [self._first(k, counts, rank, size) for rank in ranks]
        if before is None:
            return (size, *(number for one in found for number in one))
        return self._merged(k, stage, size, before, found)

    def _merged(
        self, k: Kernel, stage: int, size: Array, before: Sequence[Array], after: Sequence[Any]
    ) -> tuple[Array, ...]:
        """What is known after a stage: of an element about which it was to find nothing, what was."""
        found = [size]
        for one, new in zip(each_of(before), after, strict=True):
            is_kept = is_placed(one, 1) if stage > self._blocks else one[3] != SOUGHT
            found += [k.xp.where(is_kept, a, b) for a, b in zip(one, new, strict=True)]
        return tuple(found)

    def _guessed(self, k: Kernel, rows: Any) -> tuple[Any, ...]:
        """The magnitudes that have the ranks in a sample, float64 [n, 1], with the neighbours of each in it, and how
        often it is worth while to test such a one."""
        import numpy as np

        sample = rows[rows[:, 0] >= 0, 0].astype(np.uint32)
        if not len(sample):
            return (k.xp.zeros((), "float64"), *(np.float64(x) for x in (0, 0, 0, SOUGHT, 0) * self.count))
        sizes: list[Any] = [np.float64(SAMPLE * number) for number in (len(sample), np.count_nonzero(sample))]
        ranks = [min(max(-(-int(rank) // SAMPLE), 1), len(sample)) for rank in map(float, self.wanted(k, *sizes))]
        sample.partition([len(sample) - rank for rank in ranks])
        found: list[Any] = [0.0]
        for rank in ranks:
            one = sample[len(sample) - rank]
            below, above = (part[part != one] for part in np.split(sample, [len(sample) - rank]))
            is_often = (len(sample) - len(below) - len(above)) ** 2 >= len(sample)  # than what a rank is off by
            neighbours = [below.max() if len(below) else one, above.min() if len(above) else one]
            found += [one, *neighbours, SOUGHT, len(TESTED) if is_often else 0]
        return tuple(map(np.float64, found))

    def _tested(self, k: Kernel, stage: int, rows: Any, before: Sequence[Any]) -> tuple[Any, ...]:
        """What follows from how many elements of each block are above the candidates, and equal to them: float64
        [blocks, 1 + 2 n], or 2 + 2 n."""
        import numpy as np

        there, counts = rows[:, 0], rows[:, 1 + self.counts_zeros :]
        size = there.sum()
        nonzero = size - (rows[:, 1].sum() if self.counts_zeros else 0.0)
        found: list[Any] = [size]
        for n, (one, wanted) in enumerate(zip(each_of(before), self.wanted(k, size, nonzero), strict=True)):
            rank, above, equal = min(float(wanted), size), counts[:, 2 * n].sum(), counts[:, 2 * n + 1]
            left = rank - above
            if is_placed(one, BINS) if stage == self._blocks else one[3] != SOUGHT:
                found += one
            elif rank < 1:
                found += [NOTHING, 0.0, 1.0, NONE, 1.0]
            elif not 0 < left <= equal.sum():
                nearer = one[1 if left > 0 else 2]
                found += [nearer, nearer, nearer, SOUGHT, 0.0 if nearer == one[0] else one[4] - 1]
            elif left == equal.sum() or one[0] == 0:  # all that are equal are kept, or it does not matter
                found += [one[0], 0.0, left, ANY, 1.0]
            else:
                at = int(np.searchsorted(np.cumsum(equal), left))
                found += [one[0], 0.0, left - equal[:at].sum(), there[:at].sum(), there[at]]
        return tuple(map(np.float64, found))

    def _first(self, k: Kernel, counts: Array, rank: Array, size: Array) -> list[Array]:
        """What first digits tell about an element."""
        xp, zero = k.xp, k.xp.zeros((), "float64")
        digit, left, _ = _found(k, counts[::-1], k.at_least(rank, 1.0))
        is_there = rank >= 1
        first = xp.where(is_there, _times(k, FIRST - 1 - digit, 1), NOTHING)
        return [first, zero, left, xp.where(is_there, SOUGHT, NONE), xp.where(is_there, size, 1.0)]

    def _hit(self, k: Kernel, counts: Array, one: Sequence[Array], rank: Array, size: Array) -> list[Array]:
        """What is known of an element if it is among those counted by themselves, above which are the last of them."""
        xp, near, zero = k.xp, counts[:NEAR], k.xp.zeros((), "float64")
        number, left, equal = _found(k, near[::-1], rank - counts[NEAR])
        high = _beginning(k, one) + (NEAR - 1 - number)
        is_hit = (rank > counts[NEAR]) & (rank <= counts[NEAR] + near.sum())  # type: ignore[attr-defined]
        last = xp.where((left == equal) | (high == 0), ANY, 0.0)
        is_there = rank >= 1
        last = xp.where(is_there, xp.where(is_hit, last, SOUGHT), NONE)
        return [
            xp.where(is_there, high, NOTHING), zero, xp.where(is_there, left, 1.0), last, xp.where(last == 0, size, 1.0)
        ]  # fmt: skip

    def _next(self, k: Kernel, stage: int, counts: Array, one: Sequence[Array]) -> list[Array]:
        """What is known of an element after one more digit."""
        high, low, left, last, span = one
        if stage > self._blocks:
            number, left, _ = _found(k, counts, left)
            return [high, low, left, last + number, k.xp.ones((), "float64")]
        digit, left, equal = _found(k, counts[::-1], left)
        digit = _times(k, BINS - 1 - digit, (self._blocks - 1 - stage) % 2)
        high, low = (high + digit, low) if stage == self.guesses + 1 else (high, low + digit)
        if stage < self._blocks - 1:
            return [high, low, left, last, span]
        is_alike = (left == equal) | ((high == 0) & (low == 0))  # all that are equal are kept, or it does not matter
        return [high, low, left, k.xp.where(is_alike, ANY, 0.0), k.xp.where(is_alike, 1.0, span)]


def _beginning(k: Kernel, one: Sequence[Array]) -> Array:
    """The first of the magnitudes that are counted each by itself."""
    candidate = k.xp.asarray(one[0], "float64")
    return k.at_most(k.at_least(candidate - NEAR / 2, 0.0), NOTHING + 1.0 - NEAR)


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
