"""`multislerp`: the weighted mean direction of several models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import PlanError
from ...kit.fields import boolean, number, numbers_of, word
from ...kit.kernel import Array, Kernel
from ...kit.state import Value, Versions
from ...numerics.elementary import cosine
from ..method import Method, each
from ..spans import Products, Span, SpanFactors, length


@dataclass(frozen=True)
class MultiSlerpFactors(SpanFactors):
    """To the weighted mean direction of some vectors, with the weighted mean of their lengths."""

    weights: tuple[float, ...] = numbers_of()
    eps: float = word()

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        weights = [k.xp.asarray(weight, "float64") for weight in self.weights]
        eps = k.xp.asarray(self.eps, "float64")
        norms = [length(k, products(i, i)) for i in range(products.count)]
        mean = [weight / (norm + eps) for weight, norm in zip(weights, norms, strict=True)]
        size = length(k, products.of(k, mean, mean))
        whole = [k.mul(weight, norm) for weight, norm in zip(weights, norms, strict=True)]
        scale = k.mul(sum(whole[1:], whole[0]), cosine(k, eps)) / k.xp.where(size < eps, 1.0, size)
        return [k.xp.where(size < eps, weight, k.mul(scale, part)) for weight, part in zip(weights, mean, strict=True)]


@dataclass(frozen=True)
class MultiSlerp(Method):
    """The weighted mean direction of all models, m / |m| cos(eps) with m = sum(w W / (|W| + eps)), times the weighted
    mean of their lengths, sum(w |W|); with a base of task vectors, which are added to it.

    Any shape, taken as one vector. In the tangent space at m, where the directions are averaged, their mean is 0, so
    only the cosine is left of the way along the sphere. The weighted sum where |m| is below `eps`. Norms and the sum in
    float64, rounded once. Goddard, "Multi-SLERP", mergekit 2024.
    """

    name = "multislerp"
    base = "possible"

    weight: tuple[float, ...] = each(number("factor of the model"))
    normalize_weights: bool = boolean("divide the weights by their sum", True)
    eps: float = number("length below which there is no direction", 1e-8)

    def __post_init__(self) -> None:
        if self.normalize_weights and self.weight and sum(self.weight) == 0:
            raise PlanError("weights that are to be divided by their sum add up to 0", hint="normalize_weights: false")

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        if len(models) == 1:
            return models[0]
        divisor = sum(self.weight) if self.normalize_weights else 1.0
        weights = tuple(weight / divisor for weight in self.weight)
        operands = [*models, *([] if base is None else [base])]
        factors = versions.compute(MultiSlerpFactors(len(models), base is not None, weights, self.eps), *operands)
        return versions.compute(Span(base is not None), *operands, factors)
