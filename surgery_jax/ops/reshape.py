"""`reshape`, `reshape_`: another shape of the same elements."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import integers
from ..kit.forms import InPlace, New
from ..kit.kernel import Array, Kernel
from ..kit.structure import Run, Structure


@dataclass(frozen=True)
class Reshape(Structure):
    """Give a tensor another shape; the row-major order of its elements stays.

    source: any dtype, any shape -> `shape`, in which one length may be -1.
    """

    keeps_order = True
    spellings = (New("reshape"), InPlace("reshape_", slices=False))
    examples = (
        "reshape: { from: qkv, to: heads, shape: [12, -1, 768] }",
        "reshape_: { target: '.*\\.norm', shape: [1, -1] }",
    )

    shape: tuple[int, ...] = integers("the new lengths, all positive, at most one -1")

    def __post_init__(self) -> None:
        if not self.shape or any(n < 1 and n != -1 for n in self.shape) or self.shape.count(-1) > 1:
            raise PlanError(
                "not a shape",
                expected="a list of positive lengths, at most one of them -1",
                found=str(list(self.shape)),
            )

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        known = math.prod(n for n in self.shape if n != -1)
        missing = source.size // known if -1 in self.shape else 1
        shape = tuple(missing if n == -1 else n for n in self.shape)
        if math.prod(shape) != source.size:
            raise PlanError(
                "the number of elements differs", expected=f"{source.size} elements", found=str(list(self.shape))
            )
        return (Spec(shape, source.dtype),)

    def is_identity(self, source: Spec) -> bool:
        return self.infer(source)[0] == source

    def runs(self, source: Spec) -> list[Run]:
        return [(0, 0, source.size)] if source.size else []

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> Reshape | None:
        return Reshape((rows, *result.shape[1:])) if 0 not in result.shape else None

    def apply(self, k: Kernel, source: Array) -> Array:
        return source.reshape(self.shape)
