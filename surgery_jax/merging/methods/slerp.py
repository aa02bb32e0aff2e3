"""`slerp`: along the arc between two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...kit.fields import number, word
from ...kit.kernel import Array, Kernel
from ...kit.state import Value, Versions
from ..method import Method
from ..spans import Products, Span, SpanFactors, turned

STRAIGHT = 0.9995  # cosine beyond which the arc is taken for straight


@dataclass(frozen=True)
class SlerpFactors(SpanFactors):
    """To the point of the arc from the first tensor to the second one."""

    t: float = word()

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        t = k.xp.asarray(self.t, "float64")
        return turned(k, products, t, lambda cosine, sine: k.xp.abs(cosine) > STRAIGHT)


@dataclass(frozen=True)
class Slerp(Method):
    """The point at `t` of the arc from the base to the only model: (sin((1 - t) a) B + sin(t a) W) / sin(a), with `a`
    the angle between both tensors as wholes; (1 - t) B + t W where the cosine of `a` is beyond 0.9995.

    Any shape. Norms, angle and the sum in float64, rounded once. Shoemake,
    "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """

    name = "slerp"
    most = 1

    t: float = number("how far to go from the base, from 0 to 1")

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        assert base is not None
        factors = versions.compute(SlerpFactors(2, False, self.t), base, models[0])
        return versions.compute(Span(False), base, models[0], factors)
