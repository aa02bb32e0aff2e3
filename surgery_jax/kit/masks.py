"""Tests of elements that more than assertions make."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from .fields import number
from .kernel import Array, Bound, Kernel
from .predicates import Mask
from .rules import check_arrays

__all__ = ["EqualMask"]


@dataclass(frozen=True)
class EqualMask(Mask):
    """Where a equals b exactly (NaN never does), or |a - b| is at most eps in float64."""

    eps: float | None = number("tolerance", None, traced=True)

    def infer(self, a: Spec, b: Spec) -> tuple[Spec, ...]:
        check_arrays(a)
        return (a,)

    def apply(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.same(a, b) if self.eps is None else k.distance(a, b) <= self.eps

    def measure(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.distance(a, b)

    def by_bits(self, *operands: Spec) -> bool:
        return self.eps is None and operands[0].dtype.bits >= 16

    def smallest(self, a: Bound, b: Bound) -> Bound:
        return a.either(b)
