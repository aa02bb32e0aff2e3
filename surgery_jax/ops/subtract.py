"""`subtract`: elementwise arithmetic of two tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import TensorOp
from ..kit.forms import Accumulate, Ternary
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_arrays, check_same


@dataclass(frozen=True)
class Subtract(TensorOp):
    """Subtract elementwise: `to` = a - b, rounded once; integers wrap.

    a, b: any dtype, equal shapes -> the same shape and dtype. Floats narrower than 32 bits are widened to float32.
    """

    spellings = (Ternary("subtract"), Accumulate("subtract_"))
    examples = (
        "subtract: { from_a: 'ft::(.+)', from_b: 'base::\\1', to: 'ft::\\1' }",
        "subtract_: { from: base.w, to: tuned.w }",
    )

    def infer(self, a: Spec, b: Spec) -> tuple[Spec, ...]:
        check_same(a, b)
        check_arrays(a)
        if a.dtype.kind == "b":
            raise PlanError("booleans cannot be subtracted", found=str(a), hint="cast to int8 first")
        return (a,)

    def apply(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.narrow(k.sub(k.widen(a), k.widen(b)), a)

    def smallest(self, a: Bound, b: Bound) -> Bound:
        return a.plus(b)
