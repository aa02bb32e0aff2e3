"""`model_stock`: towards the mean of the models as far as their angles say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...kit.fields import boolean
from ...kit.kernel import Array, Kernel
from ...kit.state import Value, Versions
from ..method import Method
from ..rows import RowSpan
from ..spans import Products, Span, SpanFactors, length


def share(k: Kernel, products: Products) -> Array:
    """How far to go to the mean of the models: a scalar, or one for every row."""
    count, pairs = products.count, []
    norms = [length(k, products(i, i)) for i in range(count)]
    for i in range(count):
        for j in range(i + 1, count):
            size = k.mul(norms[i], norms[j])
            cosine = products(i, j) / k.xp.where(size > 0, size, 1.0)
            pairs.append(k.at_most(k.at_least(cosine, -1.0), 1.0))
    cosine = sum(pairs[1:], pairs[0]) / float(len(pairs))
    divisor = 1.0 + k.mul(cosine, k.xp.asarray(count - 1.0, "float64"))
    is_there = divisor != 0
    return k.xp.where(
        is_there, k.mul(cosine, k.xp.asarray(1.0 * count, "float64")) / k.xp.where(is_there, divisor, 1.0), 0.0
    )


def even(k: Kernel, products: Products) -> Sequence[Array]:
    """The factor of every task vector."""
    return [share(k, products) / float(products.count)] * products.count


@dataclass(frozen=True)
class StockFactors(SpanFactors):
    """From the base to the mean of the models as far as their angles say."""

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        return even(k, products)


@dataclass(frozen=True)
class RowStock(RowSpan):
    """From the base to the mean of the models as far as their angles say, for every row."""

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        return even(k, products)


@dataclass(frozen=True)
class ModelStock(Method):
    """From the base to the mean of the models: t mean(W) + (1 - t) B with t = n c / (1 + (n - 1) c), `c` the mean
    cosine of the angles between the task vectors of n models; the base where 1 + (n - 1) c is 0.

    Any shape, taken as one vector, or with `filter_wise` every row along the last axis by itself. Norms, angles and the
    sum in float64, rounded once. Jang et al., "Model stock", arXiv:2403.19522.
    """

    name = "model_stock"
    fewest = 2

    filter_wise: bool = boolean("an angle for every row along the last axis", False)

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        assert base is not None
        if self.filter_wise and len(versions.spec(base).shape) > 1:
            return versions.compute(RowStock(True), *models, base)
        factors = versions.compute(StockFactors(len(models), True), *models, base)
        return versions.compute(Span(True), *models, base, factors)
