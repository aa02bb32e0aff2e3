"""`linear`: the weighted mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import PlanError
from ...kit.fields import boolean, number
from ...kit.state import Value, Versions
from ..method import Method, each
from ..weighted import Weighted


@dataclass(frozen=True)
class Linear(Method):
    """The weighted mean of all models: sum(w * W) / sum(w), or sum(w * W).

    Any shape. Products, sums and the division in float32 (float64 for float64), in the order of the models; rounded
    once. Wortsman et al., "Model soups", arXiv:2203.05482.
    """

    name = "linear"
    base = "none"

    weight: tuple[float, ...] = each(number("factor of the model"))
    normalize: bool = boolean("divide by the sum of the weights", True)

    def __post_init__(self) -> None:
        if self.normalize and self.weight and abs(sum(self.weight)) < 1e-8:
            raise PlanError(
                "weights that are to be divided by their sum add up to 0",
                found=", ".join(f"{weight:g}" for weight in self.weight),
                hint="give other weights, or normalize: false",
            )

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        divisor = sum(self.weight) if self.normalize else 1.0
        return versions.compute(Weighted(self.weight, divisor), *models)
