"""Sums of tensors with factors that the plan gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from ..core.dtypes import BY_NAME
from ..core.specs import Spec
from ..kit.fields import numbers_of, word
from ..kit.kernel import Array, Bound, Kernel
from ..kit.operations import TensorOp
from ..kit.rules import check_floats

__all__ = ["Delta", "Weighted", "total"]


@dataclass(frozen=True)
class Weighted(TensorOp):
    """The sum of weight * tensor, divided by a number.

    all: float, one shape and dtype -> the same. Computed in float32 (float64 for float64), rounded once.
    """

    weights: tuple[float, ...] = numbers_of()
    divisor: float = word()

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        check_floats(specs[0])
        return (specs[0],)

    def apply(self, k: Kernel, *arrays: Array) -> Array:
        wide = [k.widen(x) for x in arrays]
        summed = total(k, [k.mul(x, k.number(w, x)) for x, w in zip(wide, self.weights, strict=True)])
        return k.narrow(k.div(summed, k.number(self.divisor, summed)), arrays[0])

    def smallest(self, *bounds: Bound) -> Bound:
        parts = [bound.times(bound.of(w)) for bound, w in zip(bounds, self.weights, strict=True)]
        return reduce(Bound.either, [*bounds, *parts])


@dataclass(frozen=True)
class Delta(TensorOp):
    """What a model has that its base has not: model - base.

    model, base: float, one shape and dtype -> the same shape, float32 (float64 for float64).
    """

    def infer(self, model: Spec, base: Spec) -> tuple[Spec, ...]:
        check_floats(base)
        return (Spec(base.shape, base.dtype if base.dtype.bits == 64 else BY_NAME["float32"]),)

    def apply(self, k: Kernel, model: Array, base: Array) -> Array:
        return k.sub(k.widen(model), k.widen(base))

    def smallest(self, model: Bound, base: Bound) -> Bound:
        return model.plus(base)


def total(k: Kernel, parts: Sequence[Array]) -> Array:
    """Their sum, in their order."""
    return reduce(k.add, parts)
