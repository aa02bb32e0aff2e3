"""Tests of what is merged."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.kernel import Array, Bound, Kernel
from ..kit.predicates import Mask
from ..kit.rules import check_floats

__all__ = ["NumberMask"]


@dataclass(frozen=True)
class NumberMask(Mask):
    """Where an element is not NaN, nor its difference to the base if there is one.

    model: float; base: the same shape and dtype.
    """

    def infer(self, model: Spec, *base: Spec) -> tuple[Spec, ...]:
        check_floats(model)
        return (model,)

    def apply(self, k: Kernel, model: Array, *base: Array) -> Array:
        off = k.widen(model) - k.widen(base[0]) if base else model
        return k.is_nan(off) == False  # noqa: E712

    def measure(self, k: Kernel, model: Array, *base: Array) -> Array:
        return k.magnitude(k.sub(k.widen(model), k.widen(base[0])) if base else model)

    def by_bits(self, *operands: Spec) -> bool:
        return True  # no number that is flushed becomes NaN

    def smallest(self, *bounds: Bound) -> Bound:
        return bounds[0]
