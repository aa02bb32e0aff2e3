"""`nuslerp`: along the arc between two models, or between their task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...kit.fields import boolean, number, word
from ...kit.kernel import Array, Kernel
from ...kit.state import Value, Versions
from ..method import Method, each
from ..rows import RowSpan
from ..spans import Products, Span, SpanFactors, turned

STRAIGHT = 1e-7  # sine below which the arc is taken for straight


def between(k: Kernel, products: Products, t: float) -> tuple[Array, Array]:
    """The factors of two vectors."""
    return turned(k, products, k.xp.asarray(t, "float64"), lambda cosine, sine: sine < STRAIGHT)


@dataclass(frozen=True)
class NuSlerpFactors(SpanFactors):
    """To the point of the arc from the first vector to the second one."""

    t: float = word()

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        return between(k, products, self.t)


@dataclass(frozen=True)
class RowSlerp(RowSpan):
    """The points of the arcs from the vectors of the first tensor to those of the second one."""

    t: float = word()

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        return between(k, products, self.t)


@dataclass(frozen=True)
class NuSlerp(Method):
    """The point of the arc from the first of two models to the second one at w2 / (w1 + w2), as `slerp` has it; with a
    base, of that between their task vectors, which is added to it. Half-way where the weights add up to 0.

    Any shape, taken as one vector; without `nuslerp_flatten` every vector along the last axis by itself, with
    `nuslerp_row_wise` along the first. Straight where the sine of the angle is below 1e-7. Norms, angles and the sum in
    float64, rounded once. Goddard, "NuSLERP", mergekit 2024.
    """

    name = "nuslerp"
    base = "possible"
    fewest = 2
    most = 2

    weight: tuple[float, ...] = each(number("share of the model"))
    nuslerp_flatten: bool = boolean("take the whole tensor for one vector", True)
    nuslerp_row_wise: bool = boolean("if not flattened, take vectors along the first axis, not the last", False)

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        total = sum(self.weight)
        t = 0.5 if abs(total) < 1e-6 else self.weight[1] / total
        operands = [*models, *([] if base is None else [base])]
        if not self.nuslerp_flatten and len(versions.spec(models[0]).shape) > 1:
            return versions.compute(RowSlerp(base is not None, self.nuslerp_row_wise, t), *operands)
        factors = versions.compute(NuSlerpFactors(2, base is not None, t), *operands)
        return versions.compute(Span(base is not None), *operands, factors)
