"""`permute`: another order of the axes."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import integers
from ..kit.forms import New
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_arrays
from ..kit.structure import Run, Structure, row_major, strided_runs


@dataclass(frozen=True)
class Permute(Structure):
    """Reorder the axes as numpy.transpose does.

    source: any dtype, n axes -> axis i of the result is axis order[i] of the source.
    """

    spellings = (New("permute"),)
    examples = ("permute: { from: conv.weight, to: conv.kernel, order: [2, 3, 1, 0] }",)

    order: tuple[int, ...] = integers("every axis once")

    def __post_init__(self) -> None:
        if not self.order or sorted(self.order) != list(range(len(self.order))):
            raise PlanError(
                "not a permutation", expected="every axis from 0 on exactly once", found=str(list(self.order))
            )

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_arrays(source)
        if len(self.order) != len(source.shape):
            raise PlanError(
                "the order has another number of axes",
                expected=f"{len(source.shape)} axes",
                found=str(list(self.order)),
            )
        return (Spec(tuple(source.shape[axis] for axis in self.order), source.dtype),)

    def is_identity(self, source: Spec) -> bool:
        return self.order == tuple(range(len(self.order)))

    @property
    def axes_order(self) -> tuple[int, ...]:
        return self.order

    def runs(self, source: Spec) -> list[Run] | None:
        strides = row_major(source.shape)
        shape = [source.shape[axis] for axis in self.order]
        return strided_runs(shape, [strides[axis] for axis in self.order], 0, source.nbytes)

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> Permute | None:
        return self if self.order[0] == 0 else None

    def apply(self, k: Kernel, source: Array) -> Array:
        return source.transpose(self.order)
