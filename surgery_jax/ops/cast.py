"""`cast`, `cast_`: another dtype."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.dtypes import DType
from ..core.specs import Spec
from ..kit.base import TensorOp, dtype_name
from ..kit.forms import InPlace, New
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_arrays


@dataclass(frozen=True)
class Cast(TensorOp):
    """Convert to another dtype.

    source: any dtype, any shape -> the same shape. Floats round to nearest even; float to integer truncates toward
    zero; integers keep their low bits; anything that is not zero is true.
    """

    spellings = (New("cast"), InPlace("cast_", slices=False, renamed={"dtype": "to"}))
    examples = ("cast: { from: w, to: w.half, dtype: float16 }", "cast_: { target: '.+\\.weight', to: bfloat16 }")

    dtype: DType = dtype_name("the new dtype")

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_arrays(source)
        return (Spec(source.shape, self.dtype),)

    def is_identity(self, source: Spec) -> bool:
        return source.dtype is self.dtype

    def apply(self, k: Kernel, source: Array) -> Array:
        return k.cast(source, self.dtype)

    def widens(self, *operands: Spec) -> bool:
        (source,) = operands
        return source.dtype.name == "bfloat16" and self.dtype.name == "float32"

    by_bits = widens

    def smallest(self, source: Bound) -> Bound:
        return source
