"""`uniform`, `uniform_`: numbers that are all as likely."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import number
from ..kit.draws import Draw, Drawn, Redraw
from ..kit.kernel import Array, Kernel


@dataclass(frozen=True)
class Uniform(Drawn):
    """Draw numbers between two bounds, which depend on the seed, the name of the result and the position alone.

    -> a float dtype, any shape: `low` + (`high` - `low`) * x with x in [0, 1), in float64, rounded once.
    """

    spellings = (Draw("uniform"), Redraw("uniform_"))
    examples = (
        "uniform: { to: router.weight, shape: [8, 4096], low: -0.02, high: 0.02 }",
        "uniform_: { target: 'router.weight::[4:, :]', low: 0, high: 1, seed: 3 }",
    )

    low: float = number("lower bound", 0.0, traced=True)
    high: float = number("upper bound", 1.0, traced=True)

    def __post_init__(self) -> None:
        if self.low.__class__ is float and not self.low < self.high:
            raise PlanError("low must be below high", found=f"low {self.low:g}, high {self.high:g}")

    def apply(self, k: Kernel, position: Array, *statistics: Array) -> Array:
        from ..numerics.threefry import uniform

        low, high = (k.xp.asarray(bound, "float64") for bound in (self.low, self.high))
        return k.cast(k.mul(uniform(k, (self.first, self.second), position), high - low) + low, self.dtype)
