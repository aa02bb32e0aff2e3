"""What is left of task vectors if elements are dropped at random."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.fields import word
from ..kit.kernel import Array, Bound, Kernel
from ..kit.operations import TensorOp
from ..kit.rules import check_floats

__all__ = ["Drop"]


@dataclass(frozen=True)
class Drop(TensorOp):
    """Every element with a probability, 0 otherwise; which ones depends on a key and the position alone.

    source: float, any shape; position: uint64 -> the shape and dtype of source.
    """

    needs_positions = True
    density: float = word()
    first: float = word()
    second: float = word()

    def infer(self, source: Spec, position: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        return (source,)

    def apply(self, k: Kernel, source: Array, position: Array) -> Array:
        from ..numerics.threefry import uniform

        drawn = uniform(k, (self.first, self.second), position)
        is_kept = drawn < k.xp.asarray(self.density, "float64")
        return k.xp.where(is_kept, source, k.xp.zeros((), source.dtype))

    def workspace_bytes(self, source: Spec, position: Spec) -> int:
        return 8 * source.size  # the numbers, in float64

    def smallest(self, source: Bound, position: Bound) -> Bound:
        return source
