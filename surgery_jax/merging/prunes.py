"""What is left of task vectors if elements are dropped at random, small ones more often."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.fields import word
from ..kit.kernel import Array, Kernel
from ..kit.operations import TensorOp
from ..kit.rules import check_floats

__all__ = ["Prune"]

INDEX = 32  # bits of the number of an element in its row, below those of its magnitude


@dataclass(frozen=True)
class Prune(TensorOp):
    """Every element with a probability that grows with the rank of its magnitude in its row, from density - epsilon to
    density + epsilon; 0 otherwise. Which ones are kept depends on a key and the position alone.

    source: float, any shape, rows along the leading axis, a vector is one; position: uint64 -> the shape and dtype of
    source. Magnitudes are those of float32; of equal ones those of lower positions have the lower ranks.
    """

    kind = "whole"
    is_fast_on_host = True
    needs_positions = True
    density: float = word()
    epsilon: float = word()
    first: float = word()
    second: float = word()

    def infer(self, source: Spec, position: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        return (source,)

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> TensorOp | None:
        return self if len(result.shape) > 1 else None

    def workspace_bytes(self, source: Spec, position: Spec) -> int:
        return 8 * 8 * source.size

    def apply(self, k: Kernel, source: Array, position: Array) -> Array:
        from ..numerics.threefry import uniform

        shape = source.shape if source.ndim > 1 else (1, -1)
        keys = self._keys(k, source.reshape(shape[0], -1))
        rows, length = keys.shape
        last = length - 1
        density, epsilon = (k.xp.asarray(x, "float64") for x in (self.density, self.epsilon))
        above = uniform(k, (self.first, self.second), position).reshape(keys.shape) - (density - epsilon)
        # kept if the number drawn is below density - epsilon + 2 epsilon rank / last: if the rank is above this one
        above = k.mul(above, k.xp.asarray(float(max(last, 1)), "float64"))
        above = above / k.at_least(epsilon + epsilon, 1e-300)
        place = k.xp.minimum(k.xp.maximum(above, 0.0), float(max(last, 0))).astype("int64")
        place = place + k.xp.arange(rows, dtype="int64").reshape(-1, 1) * length
        least = k.xp.take(k.xp.sort(keys, axis=1), place, mode="clip")
        is_kept = ((above < 0.0) | ((above < last) & (keys > least))).reshape(source.shape)
        return k.xp.where(is_kept, source, k.xp.zeros((), source.dtype))

    def _keys(self, k: Kernel, rows: Array) -> Array:
        """Numbers in the order of magnitudes, no two of a row equal: int64 [rows, n]."""
        magnitude = k.bits(k.xp.abs(rows.astype("float32"))).astype("int64")
        return (magnitude << INDEX) + k.xp.arange(rows.shape[1], dtype="int64")
