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

INDEX = 32  # bits of the number of an element in its row, below those of its magnitude


@dataclass(frozen=True)
class Prune(TensorOp):
    """Where elements are kept, with a probability that grows with the rank of their magnitude in their row, from
    density - epsilon to density + epsilon. Which ones are depends on a key and the position alone.

    source: float, any shape, rows along the leading axis, a vector is one; position: uint64 -> bool, the same shape.
    Magnitudes are those of float32; of equal ones those of lower positions have the lower ranks.
    """

    kind = "whole"
    is_fast_on_host = True
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

    def workspace_bytes(self, source: Spec, position: Spec) -> int:
        return 8 * 8 * source.size

    def apply(self, k: Kernel, source: Array, position: Array) -> Array:
        from ..numerics.threefry import fraction, words

        shape = source.shape if source.ndim > 1 else (1, -1)
        rows = source.reshape(shape[0], -1)
        last = k.xp.asarray(float(max(rows.shape[1] - 1, 1)), "float64")
        density, epsilon = (k.xp.asarray(x, "float64") for x in (self.density, self.epsilon))
        first, second = (x.reshape(rows.shape) for x in words(k, (self.first, self.second), position))

        def ranks(first: Array, second: Array) -> Array:
            """Those above which elements are kept, of the words that are drawn: if these are as a number below
            density - epsilon + 2 epsilon rank / last."""
            above = k.mul(fraction(first, second) - (density - epsilon), last)
            return above / k.at_least(epsilon + epsilon, 1e-300)

        spread = (density - epsilon, density + epsilon)
        return k.outranks(self._keys(k, rows), (first, second), ranks, spread).reshape(source.shape)

    def _keys(self, k: Kernel, rows: Array) -> Array:
        """Numbers in the order of magnitudes, no two of a row equal: int64 [rows, n]."""
        keys = (k.bits(rows.astype("float32")) & k.xp.uint32(2**31 - 1)).astype("int64")
        keys <<= INDEX  # in place where arrays can be changed
        keys += k.xp.arange(rows.shape[1], dtype="int64")
        return keys
