"""`ramplus_tl`: as `ram`, with the changes of one model amplified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...kit.fields import number
from ...kit.state import Value, Versions
from ..method import Method
from ..weighted import Delta
from .ram import AddChanges, Shares


@dataclass(frozen=True)
class RamPlus(Method):
    """As `ram`; the changes that only one model has are multiplied by 1 + r min(q, alpha), where `q` is the number of
    its changes that it shares, divided by the number of those that it has alone.

    Any shape. Numbers and factors in float64, all else in float32 (float64 for float64), rounded once. "RAM",
    arXiv:2601.13572.
    """

    name = "ramplus_tl"

    epsilon: float = number("magnitude above which an element is changed", 1e-5)
    r: float = number("how much changes of one model are amplified", 0.1)
    alpha: float = number("largest ratio that counts", 0.2)

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        assert base is not None
        deltas = [versions.compute(Delta(), model, base) for model in models]
        shares = versions.compute(Shares(len(deltas), self.epsilon), *deltas)
        return versions.compute(AddChanges((self.r, self.alpha), self.epsilon), base, *deltas, shares)
