"""Operations that move elements and change no bit: runs of elements, so that a copy of byte ranges can do them.

`runs(*specs)` of a structural operation lists (operand, first element, number of elements) in the order of the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..core.errors import PlanError
from ..core.specs import Spec
from ..language.slices import Axis, Indices
from .kernel import Array, Kernel
from .operations import TensorOp

__all__ = ["MAX_RUNS", "Structure", "Update", "View", "strided_runs", "walked_runs"]

Run = tuple[int, int, int]

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
    walks = [range(0, count * stride, stride) for count, stride in zip(shape, strides, strict=True)]
    return walked_runs(walks, offset, nbytes, read_bytes)


def walked_runs(walks: Sequence[Sequence[int]], offset: int, nbytes: int, read_bytes: int = 0) -> list[Run] | None:
    """Runs of a walk over operand 0, of `read_bytes` bytes: for every axis, outermost first, how many elements further
    its places are; a range where they are evenly spaced."""
    if not all(walks):
        return []
    offset += sum(walk[0] for walk in walks if len(walk) == 1)
    axes = [walk for walk in walks if len(walk) > 1]
    length = 1
    while axes and isinstance(axes[-1], range) and axes[-1].step == length and axes[-1].start == 0:
        length *= len(axes.pop())
    last = axes.pop() if axes else range(1)
    joined = [(start, length) for start in last] if len(last) <= MANY_RUNS else None
    if joined is not None and not isinstance(last, range):
        joined = _joined(joined)
    if joined is None or not worthwhile(math.prod(map(len, axes)) * len(joined), nbytes, read_bytes):
        return None
    return [(0, offset + sum(outer) + start, count) for outer in itertools.product(*axes) for start, count in joined]


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, length) of runs, those that follow one another as one."""
    found = runs[:1]
    for start, length in runs[1:]:
        if sum(found[-1]) == start:
            found[-1] = found[-1][0], found[-1][1] + length
        else:
            found.append((start, length))
    return found


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of the packed row-major layout."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _places(axis: Axis) -> Sequence[int]:
    """What is chosen along an axis."""
    return axis.places if isinstance(axis, Indices) else range(axis[0], axis[0] + axis[2] * axis[1], axis[1])


@dataclass(frozen=True)
class View(Structure):
    """A slice: what is chosen along every axis, and which axes are removed."""

    axes: tuple[Axis, ...]
    removed: tuple[bool, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many places are chosen along every axis, removed ones too."""
        return tuple(len(axis.places) if isinstance(axis, Indices) else axis[2] for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(count for count, gone in zip(self.counts, self.removed, strict=True) if not gone)

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        return (Spec(self.shape, source.dtype),)

    def is_identity(self, source: Spec) -> bool:
        return self.shape == source.shape and all(
            axis == (0, 1, count) or (not isinstance(axis, Indices) and axis[2] == count <= 1)
            for axis, count in zip(self.axes, source.shape, strict=True)
        )

    def runs(self, source: Spec) -> list[Run] | None:
        strides = row_major(source.shape)
        walks: list[Sequence[int]] = []
        offset = 0
        for axis, stride in zip(self.axes, strides, strict=True):
            if isinstance(axis, Indices):
                walks.append(tuple(place * stride for place in axis.places))
            else:
                start, step, count = axis
                offset += start * stride
                walks.append(range(0, count * step * stride, step * stride) if stride else range(count))
        return walked_runs(walks, offset, math.prod(self.counts) * source.dtype.bits // 8, source.nbytes)

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> View | None:
        if self.removed[0] or self.axes[0] != (0, 1, operands[0].shape[0]):
            return None
        return View(((0, 1, rows), *self.axes[1:]), self.removed)

    def index(self) -> tuple[slice, ...]:
        """The slices of every axis, none removed; an axis with a set of places is whole."""
        return tuple(
            slice(None)
            if isinstance(axis, Indices)
            else slice(axis[0], axis[0] + max(axis[2] - 1, 0) * axis[1] + (axis[2] > 0), axis[1])
            for axis in self.axes
        )

    def apply(self, k: Kernel, source: Array) -> Array:
        found = source[self.index()]
        for number, axis in enumerate(self.axes):
            if isinstance(axis, Indices):
                found = k.xp.take(found, k.xp.asarray(axis.places), axis=number)
        return found.reshape(self.shape)


@dataclass(frozen=True)
class Update(Structure):
    """The first operand with a slice of it replaced by the second."""

    view: View

    def infer(self, base: Spec, value: Spec) -> tuple[Spec, ...]:
        for axis in self.view.axes:
            if isinstance(axis, Indices) and len(set(axis.places)) < len(axis.places):
                raise PlanError("an index set that is written has a place twice", found=str(axis))
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
        index: tuple[Any, ...] = self.view.index()
        if any(isinstance(axis, Indices) for axis in self.view.axes):
            import numpy as np

            index = np.ix_(*(np.asarray(_places(axis), np.int64) for axis in self.view.axes))
        return k.replace(base, index, value.reshape(self.view.counts))
