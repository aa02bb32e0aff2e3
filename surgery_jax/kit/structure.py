"""Operations that move elements and change no bit: runs of elements, so that a copy of byte ranges can do them.

`runs(*specs)` of a structural operation lists (operand, first element, number of elements) in the order of the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.specs import Spec
from .kernel import Array, Kernel
from .operations import TensorOp

__all__ = ["MAX_RUNS", "Structure", "Update", "View", "strided_runs"]

Run = tuple[int, int, int]
Axes = tuple[tuple[int, int, int], ...]  # (start, step, count) of every axis

# Beyond this many runs, or below this many bytes a run, gathering in memory is cheaper than moving ranges.
MAX_RUNS = 4096
FEW_RUNS = 16
MIN_RUN_BYTES = 4096
# Where gathering would read many times the bytes that are wanted, as for one layer of many, more and shorter runs pay.
MANY_RUNS = 1 << 16
MIN_SPARSE_BYTES = 512
SPARSE = 8


class Structure(TensorOp):
    """A structural operation."""

    kind = "structure"
    keeps_order: ClassVar[bool] = False  # whether the elements stay in their row-major order, as in a reshape
    passes: ClassVar[int | None] = None  # the operand that is the result, as it is

    @property
    def axes_order(self) -> tuple[int, ...] | None:
        """The order of axes of an operation that reorders them and does nothing else."""
        return None

    def runs(self, *specs: Any, **_: Any) -> list[Run] | None:
        """The result as runs of operand elements, None if they are too many or too short."""
        raise NotImplementedError

    def interleaved(self, *specs: Any, **_: Any) -> list[int] | None:
        """If the result is a block of every operand in turn, again and again: the lengths of these blocks in elements;
        else None."""
        return None


def worthwhile(count: int, total_bytes: int, read_bytes: int = 0) -> bool:
    """Whether moving `count` runs of so many bytes in all beats gathering, which reads `read_bytes`."""
    if count <= FEW_RUNS or (count <= MAX_RUNS and total_bytes >= count * MIN_RUN_BYTES):
        return True
    return read_bytes >= SPARSE * total_bytes and count <= MANY_RUNS and total_bytes >= count * MIN_SPARSE_BYTES


def strided_runs(
    shape: Sequence[int], strides: Sequence[int], offset: int, nbytes: int, read_bytes: int = 0
) -> list[Run] | None:
    """Runs of a strided walk over operand 0, of `read_bytes` bytes: `shape` and `strides` in elements, outermost axis
    first."""
    if math.prod(shape) == 0:
        return []
    axes = [(count, stride) for count, stride in zip(shape, strides, strict=True) if count != 1]
    length = 1
    while axes and axes[-1][1] == length:
        length *= axes.pop()[0]
    if not worthwhile(math.prod(count for count, _ in axes), nbytes, read_bytes):
        return None
    starts = itertools.product(*(range(0, count * stride, stride) for count, stride in axes))
    return [(0, offset + sum(start), length) for start in starts]


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of the packed row-major layout."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass(frozen=True)
class View(Structure):
    """A slice: (start, step, count) of every axis and which axes are removed."""

    axes: Axes
    removed: tuple[bool, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(count for (_, _, count), gone in zip(self.axes, self.removed, strict=True) if not gone)

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        return (Spec(self.shape, source.dtype),)

    def is_identity(self, source: Spec) -> bool:
        whole = tuple((0, 1, count) for count in source.shape)
        return self.shape == source.shape and all(
            mine == full or mine[2] == full[2] <= 1 for mine, full in zip(self.axes, whole, strict=True)
        )

    def runs(self, source: Spec) -> list[Run] | None:
        strides = row_major(source.shape)
        offset = sum(start * stride for (start, _, _), stride in zip(self.axes, strides, strict=True))
        counts = [count for _, _, count in self.axes]
        steps = [step * stride for (_, step, _), stride in zip(self.axes, strides, strict=True)]
        return strided_runs(counts, steps, offset, math.prod(counts) * source.dtype.bits // 8, source.nbytes)

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> View | None:
        if self.removed[0] or self.axes[0] != (0, 1, operands[0].shape[0]):
            return None
        return View(((0, 1, rows), *self.axes[1:]), self.removed)

    def index(self) -> tuple[slice, ...]:
        """The slices of every axis, none removed."""
        return tuple(
            slice(start, start + max(count - 1, 0) * step + (count > 0), step) for start, step, count in self.axes
        )

    def apply(self, k: Kernel, source: Array) -> Array:
        return source[self.index()].reshape(self.shape)


@dataclass(frozen=True)
class Update(Structure):
    """The first operand with a slice of it replaced by the second."""

    view: View

    def infer(self, base: Spec, value: Spec) -> tuple[Spec, ...]:
        return (base,)

    def runs(self, base: Spec, value: Spec) -> list[Run] | None:
        replaced = self.view.runs(base)
        if replaced is None:
            return None
        found: list[Run] = []
        at = taken = 0
        for _, start, length in replaced:
            if start < at:
                return None
            if start > at:
                found.append((0, at, start - at))
            found.append((1, taken, length))
            at, taken = start + length, taken + length
        if at < base.size:
            found.append((0, at, base.size - at))
        return found

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> Update | None:
        view = self.view.by_rows(rows, result, operands[0])
        return Update(view) if view is not None else None

    def apply(self, k: Kernel, base: Array, value: Array) -> Array:
        index = self.view.index()
        counts = tuple(count for _, _, count in self.view.axes)
        return k.replace(base, index, value.reshape(counts))
