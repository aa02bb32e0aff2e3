"""`sce`: select, calculate, erase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from ...core.dtypes import BY_NAME
from ...core.specs import Spec
from ...kit.fields import boolean, number
from ...kit.kernel import Array, Bound, Kernel
from ...kit.operations import TensorOp
from ...kit.reduction import Before, Reduction
from ...kit.rules import check_floats
from ...kit.state import Value, Versions
from ..largest import Keep, LargestOfAll
from ..method import Method
from ..weighted import Delta, total


@dataclass(frozen=True)
class Variance(TensorOp):
    """The variance of some tensors at every element, that of the population.

    all: float, one shape -> the same shape, float32; in float64, rounded once.
    """

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        check_floats(specs[0])
        return (Spec(specs[0].shape, BY_NAME["float32"]),)

    def apply(self, k: Kernel, *arrays: Array) -> Array:
        wide = [x.astype("float64") for x in arrays]
        count = float(len(wide))
        mean = total(k, wide) / count
        squares = [k.mul(x - mean, x - mean) for x in wide]
        return (total(k, squares) / count).astype("float32")

    def smallest(self, *bounds: Bound) -> Bound:
        return reduce(Bound.either, bounds)


@dataclass(frozen=True)
class Squares(Reduction):
    """The sums of the squares of tensors, in float64.

    all: float, one size -> float64[n].
    """

    ignores_zeros = True
    count: int

    def how(self, stage: int) -> tuple[str, ...]:
        return ("sum",) * self.count

    def terms(self, k: Kernel, stage: int, before: Before, *arrays: Array) -> tuple[Array, ...]:
        wide = [k.widen(x).astype("float64") for x in arrays]
        # squares of float32 are exact in float64, so that nothing changes if one is joined with a sum
        return tuple(x * x if k.dtype(a).bits <= 32 else k.mul(x, x) for a, x in zip(arrays, wide, strict=True))


@dataclass(frozen=True)
class AddSelected(TensorOp):
    """The base and the mean of task vectors weighted by squares, of which those count whose sign is that of the sum.

    base: float, any shape; task vectors: float32 (float64 for float64), the same shape; `Squares` of these -> the shape
    and dtype of base.
    """

    def infer(self, base: Spec, *_: Spec) -> tuple[Spec, ...]:
        check_floats(base)
        return (base,)

    def apply(self, k: Kernel, base: Array, *given: Array) -> Array:
        *deltas, squares = given
        one, zero = deltas[0], k.xp.zeros((), deltas[0].dtype)
        whole = reduce(lambda a, b: a + b, [squares[n] for n in range(len(deltas))])
        is_there = whole > 0
        shares = [
            k.xp.where(is_there, squares[n] / k.xp.where(is_there, whole, 1.0), 1.0 / len(deltas)).astype(one.dtype)
            for n in range(len(deltas))
        ]
        is_positive = total(k, deltas) >= zero
        masks = [k.xp.where(is_positive, x > zero, x < zero) for x in deltas]
        parts = [k.xp.where(mask, k.mul(x, w), zero) for mask, x, w in zip(masks, deltas, shares, strict=True)]
        divisor = total(k, [k.xp.where(mask, w, zero) for mask, w in zip(masks, shares, strict=True)])
        is_there = divisor > zero
        mean = total(k, parts) / k.xp.where(is_there, divisor, k.xp.ones((), one.dtype))
        return k.narrow(k.add(k.widen(base), k.xp.where(is_there, mean, zero)), base)

    def smallest(self, base: Bound, *bounds: Bound) -> Bound:
        return reduce(Bound.either, [base, *bounds[:-1]])


@dataclass(frozen=True)
class Sce(Method):
    """The mean of task vectors that the models disagree in, added to the base: B + sum(p D) / sum(p) over those D that
    have the sign of the sum of all of them, at every element; `D` is W - B where the variance among the models is
    largest, the share `select_topk` of the elements where it is not 0, and `p` the mean square of a model's D.

    Any shape. Variances in float64, compared in float32; of equal ones those of lower positions are selected. Squares
    in float64; sums in float32 (float64 for float64); rounded once. Wan et al., "FuseChat", arXiv:2408.07990.
    """

    name = "sce"

    select_topk: float = number("share of the varying elements that is kept", 1.0)
    int8_mask: bool = boolean("accepted for configurations of others; masks take no memory here", False)

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        assert base is not None
        deltas = [versions.compute(Delta(), model, base) for model in models]
        if self.select_topk < 1:
            variance = versions.compute(Variance(), *deltas)
            numbers = versions.compute(LargestOfAll(False, self.select_topk), variance)
            deltas = [versions.compute(Keep(), delta, variance, numbers) for delta in deltas]
        squares = versions.compute(Squares(len(deltas)), *deltas)
        return versions.compute(AddSelected(), base, *deltas, squares)
