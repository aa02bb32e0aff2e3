"""`matmul`: matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import PlanError
from ..core.specs import Spec
from .base import TensorOp
from .forms import Ternary
from .rules import check_arrays


@dataclass(frozen=True)
class Matmul(TensorOp):
    """Matrix product as numpy.matmul: 1-D operands, leading axes broadcast.

    a: [..., m, k] or [k], b: [..., k, n] or [k], equal dtypes -> [..., m, n]. Floats narrower than 32 bits are
    multiplied and summed in float32 and rounded once; integers wrap.
    """

    kind = "whole"
    spellings = (Ternary("matmul", new=True),)
    examples = ("matmul: { from_a: '(.+)\\.lora_B', from_b: '\\1.lora_A', to: '\\1.delta' }",)

    def infer(self, a: Spec, b: Spec) -> tuple[Spec, ...]:
        check_arrays(a)
        if a.dtype is not b.dtype:
            raise PlanError("dtypes differ", expected=str(a), found=str(b), hint="cast one of them first")
        if a.dtype.kind == "b":
            raise PlanError("booleans cannot be multiplied as matrices", found=str(a))
        if not a.shape or not b.shape:
            raise PlanError("matmul needs at least one axis on both sides", found=f"{a} and {b}")
        left = a.shape if len(a.shape) > 1 else (1, *a.shape)
        right = b.shape if len(b.shape) > 1 else (*b.shape, 1)
        if left[-1] != right[-2]:
            raise PlanError(
                "inner axes differ", expected="the last axis of a and the last but one of b equal", found=f"{a} and {b}"
            )
        batch = _broadcast(left[:-2], right[:-2])
        if batch is None:
            raise PlanError("leading axes cannot be broadcast", found=f"{a} and {b}")
        tail = (left[-2:-1] if len(a.shape) > 1 else ()) + (right[-1:] if len(b.shape) > 1 else ())
        return (Spec(batch + tail, a.dtype),)

    def apply(self, k: Any, a: Any, b: Any) -> Any:
        return k.narrow(k.matmul(k.widen(a), k.widen(b)), a)


def _broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...] | None:
    rank = max(len(left), len(right))
    pairs = zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True)
    shape = [max(x, y) if 0 not in (x, y) else 0 for x, y in pairs if x == y or 1 in (x, y)]
    return tuple(shape) if len(shape) == rank else None
