"""`multiply`: elementwise arithmetic of two tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.base import TensorOp
from ..kit.forms import Ternary
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_arrays, check_same


@dataclass(frozen=True)
class Multiply(TensorOp):
    """Multiply elementwise: `to` = a * b, rounded once; integers wrap, booleans are anded.

    a, b: any dtype, equal shapes -> the same shape and dtype. Floats narrower than 32 bits are widened to float32.
    """

    spellings = (Ternary("multiply"),)
    examples = ("multiply: { from_a: w, from_b: mask, to: w }",)

    def infer(self, a: Spec, b: Spec) -> tuple[Spec, ...]:
        check_same(a, b)
        check_arrays(a)
        return (a,)

    def apply(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.narrow(k.mul(k.widen(a), k.widen(b)), a)

    def smallest(self, a: Bound, b: Bound) -> Bound:
        return a.times(b)
