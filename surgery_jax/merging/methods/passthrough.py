"""`passthrough`: one model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...kit.fields import number
from ...kit.state import Value, Versions
from ..method import Method, each
from ..weighted import Weighted


@dataclass(frozen=True)
class Passthrough(Method):
    """The tensor of the only model, as it is: scale * W.

    Any shape. Without a scale its bytes are moved and nothing is computed; with one, products in float32 (float64 for
    float64), rounded once.
    """

    name = "passthrough"
    base = "none"
    most = 1

    scale: tuple[float, ...] = each(number("factor of the model", 1.0))

    def copies(self) -> bool:
        return self.scale == (1.0,)

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        return models[0] if self.copies() else versions.compute(Weighted(self.scale, 1.0), models[0])
