"""`scale`, `scale_`: multiply by a number."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.base import TensorOp, number
from ..kit.forms import InPlace, New
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_floats


@dataclass(frozen=True)
class Scale(TensorOp):
    """Multiply every element by a number, rounded once.

    source: float or complex, any shape -> the same. The number is rounded to float32 (float64 for float64) first.
    """

    spellings = (New("scale"), InPlace("scale_"))
    examples = ("scale: { from: ln.weight, to: ln.half, by: 0.5 }", "scale_: { target: '.*\\.bias::[:4]', by: 0.5 }")

    by: float = number("the factor", traced=True)

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_floats(source, complex_too=True)
        return (source,)

    def apply(self, k: Kernel, source: Array) -> Array:
        wide = k.widen(source)
        return k.narrow(k.mul(wide, k.number(self.by, wide)), source)

    def smallest(self, source: Bound) -> Bound:
        return source.times(source.of(self.by))
