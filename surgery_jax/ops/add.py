"""`add`: elementwise arithmetic of two tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.base import TensorOp
from ..kit.forms import Accumulate, Ternary
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_arrays, check_same


@dataclass(frozen=True)
class Add(TensorOp):
    """Add elementwise: `to` = a + b, rounded once; integers wrap, booleans are ored.

    a, b: any dtype, equal shapes -> the same shape and dtype. Floats narrower than 32 bits are widened to float32.
    """

    spellings = (Ternary("add"), Accumulate("add_"))
    examples = ("add: { from_a: h.0.w, from_b: h.1.w, to: h.0.w }", "add_: { from: 'delta::(.+)', to: 'base::\\1' }")

    def infer(self, a: Spec, b: Spec) -> tuple[Spec, ...]:
        check_same(a, b)
        check_arrays(a)
        return (a,)

    def apply(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.narrow(k.add(k.widen(a), k.widen(b)), a)

    def smallest(self, a: Bound, b: Bound) -> Bound:
        return a.plus(b)
