"""Statistics over all elements of tensors: sums and extremes in an order that depends on the number of elements alone.

Elements are numbered in row-major order and cut into blocks of `BLOCK`; a block is a square of `LANES` by `LANES`,
whose rows are combined one after the other, and then its columns. Blocks are combined in pairs of neighbours, the
results again, until one is left. Tiles, budgets and devices change nothing about that.

Where what is added needs whole rows of a tensor to be computed, the rows along the leading axis are the blocks. Within
a row halves are combined until one number is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from ..core.dtypes import BY_NAME
from ..core.specs import Spec
from .kernel import Array, Bound, Kernel
from .numbering import Numbering
from .operations import TensorOp
from .rules import check_floats

__all__ = [
    "BLOCK",
    "LANES",
    "Before",
    "Gathered",
    "Reduction",
    "ScaledSums",
    "combined",
    "divisor",
    "halved",
    "tile_length",
]

Gathered = Literal["tree", "sum", "rows"]
Before = Sequence[Array] | None  # what the stage before came to, None for the first stage

LANES = 128
BLOCK = LANES * LANES  # elements
AT_ONCE = 8  # blocks that a CPU adds up together
NEUTRAL = {"sum": 0.0, "max": -float("inf"), "min": float("inf")}


def tile_length(length: int) -> int:
    """Elements of a tile of at most so many that has whole blocks, a power of two of them: what a tile comes to is then
    a branch of the tree in which the blocks of a tensor are combined."""
    return BLOCK << max(length // BLOCK, 1).bit_length() - 1


@dataclass(frozen=True)
class Reduction(TensorOp):
    """A few float64 numbers about all elements of operands of one size.

    A subclass says in `terms` which numbers of every element are combined, in `how` whether they are added or their
    `max` or `min` is taken, and in `finish` what follows from them. There may be several `stages`, one after the other
    over all elements, if the terms of one need what those before it gave.
    """

    kind = "reduce"
    ignores_zeros: ClassVar[bool] = False  # whether elements at which all operands are 0 change nothing

    @property
    def stages(self) -> int:
        """How often all elements are gone over."""
        return 1

    def how(self, stage: int) -> tuple[str, ...]:
        """How each of the terms is combined: `sum`, `max` or `min`."""
        raise NotImplementedError

    def terms(self, k: Kernel, stage: int, before: Before, *arrays: Any, **_: Any) -> tuple[Array, ...]:
        """The numbers of every element, float64 of the shape of the operands; `before` is what `finish` gave for the
        stage before, None for the first."""
        raise NotImplementedError

    def finish(self, k: Kernel, stage: int, totals: Sequence[Array], before: Before) -> tuple[Array, ...]:
        """What a stage comes to, from the combined terms, as many numbers as these; after the last stage the result."""
        return tuple(totals)

    def given(self, stage: int) -> int:
        """How many numbers a stage comes to."""
        return len(self.how(stage))

    def gathered(self, stage: int) -> Gathered:
        """What becomes of the partial results of tiles: those of single blocks are combined in a `tree`; those of whole
        tiles, whole numbers, are added in any order by `sum`, or go to `finish` as `rows`, float64 [n, terms]."""
        return "tree"

    def stride(self, stage: int) -> int:
        """Of so many elements of each tile a stage needs one, the first."""
        return 1

    def thinned(self, stage: int, size: int) -> int:
        """Of so many `rows` one is kept, where the operands have so many elements."""
        return 1

    def received(self, stage: int, partial: Any) -> Any:
        """The partial results of a stage, of what `partial` gave, in NumPy."""
        return partial

    def is_fast_at(self, stage: int) -> bool:
        """Whether NumPy does a stage rather than a compiled function on a CPU."""
        return self.is_fast_on_host

    def is_settled(self, stage: int, before: Before) -> bool:
        """Whether a stage would change nothing of what the one before came to, so that elements need not be gone over;
        `before` are numbers, not traced."""
        return False

    def reaches(self, stage: int, before: Before, start: int, count: int) -> bool:
        """Whether some of the elements, `count` from number `start` on, may change what a stage comes to; `before` are
        numbers, not traced."""
        return True

    def space(self, stage: int, size: int) -> int:
        """Bytes that partial results of so many elements take: the lanes of every block, what is added to, what was,
        and what follows."""
        return 3 * 8 * len(self.how(stage)) * size // LANES

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        return (Spec((self.given(self.stages - 1),), BY_NAME["float64"]),)

    def smallest(self, *bounds: Bound) -> Bound:
        least = bounds[0]
        for bound in bounds[1:]:
            least = least.either(bound)
        return least

    def partial(
        self, k: Kernel, stage: int, before: Before, count: Any, *arrays: Array, is_padded: bool = False
    ) -> Array:
        """The terms of a stage, combined within each block: float64 [blocks, terms]. Operands are flat, of a multiple
        of `BLOCK` elements, of which the first `count` are there; all others are 0 where it `is_padded`."""
        how = self.how(stage)
        blocks = arrays[0].shape[0] // BLOCK
        cubes = [x.reshape(blocks, LANES, LANES) for x in arrays]
        lane = k.xp.arange(LANES, dtype="int32")
        count = k.xp.asarray(count).astype("int64")

        def neutral(*shape: int) -> tuple[Array, ...]:
            return tuple(k.xp.full(shape, NEUTRAL[word], "float64") for word in how)

        def left(first: Any, size: int) -> Array:
            """How many elements of each block are there: int32 [size, 1]."""
            numbers = k.xp.asarray(first, "int64") + k.xp.arange(size, dtype="int64").reshape(-1, 1)
            return k.xp.minimum(k.xp.maximum(count - numbers * BLOCK, 0), BLOCK).astype("int32")

        def sums(first: Any, size: int) -> Array:
            ends = None if is_padded and self.ignores_zeros else left(first, size)

            def row(number: Any, held: tuple[Any, ...]) -> tuple[Any, ...]:
                found = self.terms(k, stage, before, *(k.part_of_row(cube, first, size, number) for cube in cubes))
                if ends is not None:
                    is_there = lane + k.xp.asarray(number * LANES, "int32") < ends
                    found = tuple(map(partial(k.xp.where, is_there), found, (NEUTRAL[word] for word in how)))
                return tuple(map(partial(_join, k), how, held, found))

            def column(number: Any, held: tuple[Any, ...]) -> tuple[Any, ...]:
                return tuple(map(partial(_join, k), how, held, (k.row(x, number) for x in lanes)))

            lanes = k.repeat(LANES, row, neutral(size, LANES))
            found = k.repeat(LANES, column, neutral(size))
            return k.xp.stack(found, axis=1)

        return k.in_parts(sums, blocks, AT_ONCE)

    def partial_by_rows(self, k: Kernel, stage: int, before: Before, count: Array | int, *arrays: Array) -> Array:
        """The terms of a stage, combined within each row along the leading axis: float64 [rows, terms]. The first
        `count` rows of the operands are there."""
        rows = arrays[0].shape[0]
        is_there = k.xp.arange(rows) < count
        found = []
        for word, x in zip(self.how(stage), self.terms(k, stage, before, *arrays), strict=True):
            row = halved(partial(_join, k, word), x.reshape(rows, -1), k)[:, 0]
            found.append(k.xp.where(is_there, row, NEUTRAL[word]))
        return k.xp.stack(found, axis=1)

    def together(self, k: Kernel, stage: int, parts: Array) -> Sequence[Array]:
        """Partial results of consecutive blocks, float64 [blocks, terms], as one of each term."""
        return combined(k, parts, self.how(stage))

    def apply(self, k: Kernel, *arrays: Array) -> Array:
        size = int(arrays[0].size)
        missing = -size % BLOCK
        padded: list[Any] = [k.xp.concatenate([x.reshape(-1), k.xp.zeros(missing, x.dtype)]) for x in arrays]
        if self.needs_places:
            padded.append(Numbering(k, 0, (size + missing,)))
        before: tuple[Array, ...] | None = None
        for stage in range(self.stages):
            parts = self.partial(k, stage, before, size, *padded, is_padded=True)
            before = self.finish(k, stage, self.together(k, stage, parts), before)
        return k.xp.stack([k.xp.asarray(x, "float64") for x in before or ()])


@dataclass(frozen=True)
class ScaledSums(Reduction):
    """Sums about two operands, each divided by its largest magnitude first, so that nothing overflows.

    a, b: float, of one size -> float64[num_sums]. A subclass says how many sums there are, and their terms in
    `products`.
    """

    ignores_zeros = True
    ignores_zeros = True
    num_sums: ClassVar[int]

    @property
    def stages(self) -> int:
        return 2

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        for spec in specs:
            check_floats(spec)
        return super().infer(*specs)

    def how(self, stage: int) -> tuple[str, ...]:
        return ("sum",) * self.num_sums if stage else ("max", "max")

    def terms(self, k: Kernel, stage: int, before: Before, a: Array, b: Array) -> tuple[Array, ...]:
        if before is None:
            return k.magnitude(a), k.magnitude(b)
        x, y = (
            wide.astype("float64") / divisor(k, largest)
            for wide, largest in zip((k.widen(a), k.widen(b)), self.scales(k, before[0], before[1]), strict=True)
        )
        return self.products(k, x, y)

    def scales(self, k: Kernel, a: Array, b: Array) -> tuple[Array, Array]:
        """What the operands are divided by, given their largest magnitudes."""
        return a, b

    def products(self, k: Kernel, x: Array, y: Array) -> tuple[Array, ...]:
        """The terms of every element, of the divided operands in float64."""
        raise NotImplementedError


def divisor(k: Kernel, largest: Array) -> Array:
    """The largest magnitude, 1 where there is nothing to be divided."""
    return k.xp.where(largest > 0, largest, 1.0)


def halved(join: Callable[[Array, Array], Array], x: Array, k: Kernel) -> Array:
    """The elements along the last axis, which stays with length 1, joined in an order that depends on their number
    alone: the first half with the second one, again and again."""
    length = x.shape[-1]
    while length > 1:
        half = length // 2
        rest = x[..., 2 * half :]
        x = join(x[..., :half], x[..., half : 2 * half])
        x = k.xp.concatenate([x, rest], axis=-1) if rest.shape[-1] else x
        length = x.shape[-1]
    return x


def combined(k: Kernel, parts: Array, how: Sequence[str]) -> list[Array]:
    """Partial results of consecutive blocks, float64 [blocks, terms], as one of each term: neighbours in pairs."""
    columns = [parts[:, number] for number in range(len(how))]
    found = []
    for word, column in zip(how, columns, strict=True):
        while column.shape[0] > 1:
            even = column.shape[0] // 2 * 2
            joined = _join(k, word, column[0:even:2], column[1:even:2])
            column = joined if even == column.shape[0] else k.xp.concatenate([joined, column[even:]])
        found.append(column[0] if column.shape[0] else k.xp.asarray(NEUTRAL[word], "float64"))
    return found


def _join(k: Kernel, how: str, a: Array, b: Array) -> Array:
    """Two terms as one; NaN spreads."""
    return a + b if how == "sum" else (k.xp.maximum if how == "max" else k.xp.minimum)(a, b)
