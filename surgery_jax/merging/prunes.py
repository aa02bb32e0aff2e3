"""Which elements of task vectors are left if they are dropped at random, small ones more often."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.dtypes import BY_NAME
from ..core.specs import Spec
from ..kit.fields import word
from ..kit.kernel import Array, Kernel
from ..kit.operations import TensorOp
from ..kit.rules import check_floats

__all__ = ["Prune"]


@dataclass(frozen=True)
class Prune(TensorOp):
    """Where elements are kept, with a probability that grows with the rank of their magnitude in their row, from
    density - epsilon to density + epsilon. Which ones are depends on a key and the position alone.

    source: float, any shape, rows along the leading axis, a vector is one; position: uint64 -> bool, the same shape.
    Magnitudes are those of float32; of equal ones those of lower positions have the lower ranks.
    """

    kind = "whole"
    is_fast_on_host = True
    sorts = True
    is_remembered = True
    needs_positions = True
    density: float = word()
    epsilon: float = word()
    first: float = word()
    second: float = word()

    def infer(self, source: Spec, position: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        return (Spec(source.shape, BY_NAME["bool"]),)

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> TensorOp | None:
        return self if len(result.shape) > 1 else None

    def by_bits(self, *operands: Spec) -> bool:
        return operands[0].dtype.bits == 32

    def workspace_bytes(self, source: Spec, position: Spec) -> int:
        return 8 * 8 * source.size

    def apply(self, k: Kernel, source: Array, position: Array) -> Array:
        from ..numerics.threefry import ranks

        rows = source.reshape(source.shape[0] if source.ndim > 1 else 1, -1)
        density, epsilon = (k.xp.asarray(x, "float64") for x in (self.density, self.epsilon))
        spread = (density - epsilon, epsilon + epsilon)
        drawn = ranks(k, (self.first, self.second), position.reshape(rows.shape), spread, rows.shape[1])
        narrow = rows if rows.dtype == "float32" else rows.astype("float32")
        return k.outranks(narrow, drawn).reshape(source.shape)
