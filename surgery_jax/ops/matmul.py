"""`matmul`: matrix products."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import SUMMED, TensorOp
from ..kit.forms import Ternary
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_arrays
from ..numerics.cuts import BLOCKS, STRANDS, Cut

INNER = 4  # an inner axis so many times as long as the others is the one that is cut
SMALL = 16  # an operand with so much fewer columns than the other has rows is not cut
SUMS = 8  # products of parts of the inner axis under way: what is added, and what is exchanged


@dataclass(frozen=True)
class Matmul(TensorOp):
    """Matrix product as numpy.matmul: 1-D operands, leading axes broadcast.

    a: [..., m, k] or [k], b: [..., k, n] or [k], equal dtypes -> [..., m, n]. Floats narrower than 32 bits are
    multiplied and summed in float32 and rounded once; integers wrap.
    """

    kind = "whole"
    varies = SUMMED
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

    def cut(self, a: Spec, b: Spec) -> Cut | None:
        """Along the inner axis if that is by far the longest; else rows of a, columns of b, or both."""
        (m, k, n), (made,) = _sides(a, b), self.infer(a, b)
        last, rows, columns = len(made.shape) - 1, len(a.shape) - 2, len(b.shape) - 1
        if k >= INNER * max(m, n):
            return Cut((rows + 1, max(columns - 1, 0)), (None,))
        if rows < 0 or (columns > 0 and n >= SMALL * m):
            return Cut((None, columns), (last,)) if columns > 0 else None
        if columns == 0 or m >= SMALL * n:
            return Cut((rows, None), (last if columns == 0 else last - 1,))
        return Cut((rows, columns), (last - 1,))

    def cut_workspace_bytes(self, count: int, cut: Cut, a: Spec, b: Spec) -> int:
        (m, k, n), made = _sides(a, b), self.infer(a, b)[0].size
        is_inner = cut.results[0] is None
        total = SUMS * m * n if is_inner else made // count
        for spec, axis in zip((a, b), cut.operands, strict=True):
            copies = (a.dtype.itemsize < 4) + is_inner  # converted, and turned
            total += copies * spec.size // (1 if axis is None else count)
            total += 0 if axis is None else 2 * spec.size // (STRANDS * BLOCKS)  # a block, and as it is multiplied
        if not is_inner and None not in cut.operands:
            total += 2 * count * k * n // (STRANDS * BLOCKS)  # a block of columns of every device, twice
        return total * max(a.dtype.itemsize, 4)

    def apply(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.narrow(k.matmul(k.widen(a), k.widen(b)), a)


def _sides(a: Spec, b: Spec) -> tuple[int, int, int]:
    """(rows of a, inner axis, columns of b)."""
    return (a.shape[-2] if len(a.shape) > 1 else 1), a.shape[-1], (b.shape[-1] if len(b.shape) > 1 else 1)


def _broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...] | None:
    rank = max(len(left), len(right))
    pairs = zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True)
    shape = [max(x, y) if 0 not in (x, y) else 0 for x, y in pairs if x == y or 1 in (x, y)]
    return tuple(shape) if len(shape) == rank else None
