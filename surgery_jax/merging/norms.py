"""Sums over whole tensors that sparsified task vectors are scaled by."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.kernel import Array, Bound, Kernel
from ..kit.operations import TensorOp
from ..kit.reduction import Before, Reduction
from ..kit.rules import check_floats

__all__ = ["Restore", "Sizes"]


@dataclass(frozen=True)
class Sizes(Reduction):
    """The sums of the magnitudes of tensors, in float64.

    all: float, one size -> float64[n].
    """

    ignores_zeros = True
    count: int = 2

    def how(self, stage: int) -> tuple[str, ...]:
        return ("sum",) * self.count

    def terms(self, k: Kernel, stage: int, before: Before, *arrays: Array) -> tuple[Array, ...]:
        return tuple(k.magnitude(k.widen(x)) for x in arrays)


@dataclass(frozen=True)
class Restore(TensorOp):
    """What is left of a tensor, times the factor that gives it the L1 norm it had.

    source: float, any shape; the `Sizes` of the whole and of what is left -> the same shape and dtype. It stays as it
    is where a norm is 0.
    """

    def infer(self, source: Spec, sizes: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        return (source,)

    def apply(self, k: Kernel, source: Array, sizes: Array) -> Array:
        is_there = (sizes[0] > 0) & (sizes[1] > 0)
        factor = k.xp.where(is_there, sizes[0] / k.xp.where(is_there, sizes[1], 1.0), 1.0)
        return k.mul(source, factor.astype(source.dtype))

    def smallest(self, source: Bound, sizes: Bound) -> Bound:
        return source
