"""What lies in the span of the models: sums of tensors whose factors follow from lengths and angles.

All products of two of the tensors are added in one pass; whatever method then finds its factors from these few numbers,
and the result is a sum of the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from operator import mul

from ..core.specs import Spec
from ..kit.kernel import Array, Bound, Kernel
from ..kit.operations import TensorOp
from ..kit.reduction import Before, Reduction
from ..kit.rules import check_floats

__all__ = ["Products", "Span", "SpanFactors", "length"]


class Products:
    """The inner products of some vectors: float64 scalars, or as many as there are rows."""

    def __init__(self, count: int, numbers: Array | Sequence[Array]) -> None:
        pairs = combinations_with_replacement(range(count), 2)
        self._held = {pair: numbers[at] for at, pair in enumerate(pairs)}
        self.count = count

    def __call__(self, i: int, j: int) -> Array:
        """Of vector i with vector j."""
        return self._held[min(i, j), max(i, j)]

    def of(self, k: Kernel, a: Sequence[Array], b: Sequence[Array]) -> Array:
        """Of two vectors that are sums of these with factors `a` and `b`."""
        total = k.xp.zeros((), "float64")
        for i in range(self.count):
            for j in range(self.count):
                total = total + k.mul(k.mul(a[i], b[j]), self(i, j))
        return total


def length(k: Kernel, square: Array) -> Array:
    """The root of a number that rounding may have left below 0."""
    return k.xp.sqrt(k.xp.where(square > 0, square, 0.0))


def vectors(arrays: Sequence[Array], is_based: bool) -> list[Array]:
    """The tensors in float64, as differences to the last of them where that is the base."""
    wide = [x.astype("float64") for x in arrays]
    return [x - wide[-1] for x in wide[:-1]] if is_based else wide


@dataclass(frozen=True)
class SpanFactors(Reduction):
    """What tensors, or what they have that the last one, the base, has not, are multiplied by to be added up. A
    subclass says in `factors` how that follows from the inner products of all pairs, which are added up in float64.

    all: float, one size -> float64[count].
    """

    ignores_zeros = True
    count: int
    is_based: bool

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        """A float64 scalar for each of the vectors."""
        raise NotImplementedError

    def how(self, stage: int) -> tuple[str, ...]:
        return ("sum",) * (self.count * (self.count + 1) // 2)

    def given(self, stage: int) -> int:
        return self.count

    def terms(self, k: Kernel, stage: int, before: Before, *arrays: Array) -> tuple[Array, ...]:
        found = vectors([k.widen(x) for x in arrays], self.is_based)
        # of numbers of float32 they are exact in float64, so that nothing changes if one is joined with a sum
        is_exact = not self.is_based and all(k.dtype(x).bits <= 32 for x in arrays)
        times: Callable[[Array, Array], Array] = mul if is_exact else k.mul
        return tuple(times(a, b) for a, b in combinations_with_replacement(found, 2))

    def finish(self, k: Kernel, stage: int, totals: Sequence[Array], before: Before) -> tuple[Array, ...]:
        return tuple(self.factors(k, Products(self.count, totals)))


@dataclass(frozen=True)
class Span(TensorOp):
    """A sum of tensors, or of the base, which is the last of them, and of differences to it, each times its factor.

    all: float, one shape and dtype; and what `SpanFactors` give -> the same shape and dtype. In float64, rounded to
    float32 and then to the dtype.
    """

    is_based: bool

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        check_floats(specs[0])
        return (specs[0],)

    def apply(self, k: Kernel, *given: Array) -> Array:
        *arrays, factors = given
        found = vectors([k.widen(x) for x in arrays], self.is_based)
        total = arrays[-1].astype("float64") if self.is_based else k.xp.zeros(arrays[0].shape, "float64")
        for number, x in enumerate(found):
            total = total + k.mul(x, factors[number])
        return k.cast(total, k.dtype(arrays[0]))

    def smallest(self, *bounds: Bound) -> Bound:
        least = bounds[0]
        for bound in bounds[1:-1]:
            least = least.either(bound)
        return least


def turned(k: Kernel, products: Products, t: Array, is_near: Callable[[Array, Array], Array]) -> tuple[Array, Array]:
    """The factors of two vectors between which the share `t` of the angle is gone; where `is_near` says so of the
    cosine and the sine of that angle, the share of the way."""
    from ..numerics.elementary import angle_of, sine

    norms = [length(k, products(i, i)) for i in range(2)]
    safe = [k.xp.where(norm > 1e-8, norm, 1.0) for norm in norms]
    cosine = products(0, 1) / k.mul(safe[0], safe[1])
    cosine = k.at_most(k.at_least(cosine, -1.0), 1.0)
    angle = angle_of(k, cosine)
    whole = sine(k, angle)
    is_straight = is_near(cosine, whole)
    divisor = k.xp.where(is_straight, 1.0, whole)
    parts = [k.mul(1.0 - t, angle), k.mul(t, angle)]
    return tuple(  # type: ignore[return-value]
        k.xp.where(is_straight, share, sine(k, part) / divisor) for share, part in zip((1.0 - t, t), parts, strict=True)
    )
