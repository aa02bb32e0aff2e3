"""`repeat`: the same elements several times along an axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import boolean, integer
from ..kit.forms import New
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_arrays, check_axis
from ..kit.structure import Run, Structure, walked_runs


@dataclass(frozen=True)
class Repeat(Structure):
    """Repeat a tensor along an axis: as a whole as numpy.tile does, or with `each` every place of the axis as
    numpy.repeat does.

    source: any dtype, at least one axis -> the axis `times` as long; no bit changes.
    """

    spellings = (New("repeat"),)
    examples = (
        "repeat: { from: 'k_proj.weight', to: 'k_proj.tiled', times: 4 }",
        "repeat: { from: router.weight, to: router.grouped, times: 2, each: true }",
    )

    times: int = integer("how often, at least once")
    dim: int = integer("the axis; negative counts from the end", 0)
    each: bool = boolean("whether every place of the axis is repeated by itself: 0 0 1 1 and not 0 1 0 1", False)

    def __post_init__(self) -> None:
        if self.times < 1:
            raise PlanError("times must be at least 1", found=str(self.times))

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_arrays(source)
        axis = check_axis(self.dim, source)
        shape = (*source.shape[:axis], source.shape[axis] * self.times, *source.shape[axis + 1 :])
        return (Spec(shape, source.dtype),)

    def is_identity(self, source: Spec) -> bool:
        return self.times == 1

    def runs(self, source: Spec) -> list[Run] | None:
        axis = check_axis(self.dim, source)
        outer, length, inner = math.prod(source.shape[:axis]), source.shape[axis], math.prod(source.shape[axis + 1 :])
        if not source.size:
            return []
        walks = [range(0, length * inner, inner), [0] * self.times]
        if not self.each:
            walks.reverse()
        walks = [range(0, outer * length * inner, length * inner), *walks, range(inner)]
        return walked_runs(walks, 0, source.nbytes * self.times)

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> Repeat | None:
        return self if check_axis(self.dim, result) > 0 else None

    def apply(self, k: Kernel, source: Array) -> Array:
        if self.each:
            return k.xp.repeat(source, self.times, axis=self.dim)
        return k.xp.concatenate([source] * self.times, axis=self.dim)
