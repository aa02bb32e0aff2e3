"""`normal`, `normal_`: numbers of a normal distribution."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.draws import Draw, Drawn, Redraw, number_or_like
from ..kit.kernel import Array, Kernel


@dataclass(frozen=True)
class Normal(Drawn):
    """Draw normal numbers, which depend on the seed, the name of the result and the position alone.

    -> a float dtype, any shape: `mean` + `std` * x with x of mean 0 and variance 1, in float64, rounded once. `like`
    takes mean or deviation from all elements of the tensor that is named, those of its slice if there is one.
    """

    spellings = (Draw("normal"), Redraw("normal_"))
    examples = (
        "normal: { to: router.weight, shape: [8, 4096], dtype: bfloat16, std: 0.02 }",
        "normal: { from: '(.+)\\.gate_proj\\.weight::[:8, :]', to: '\\1.router.weight', std: 0.02, seed: 1 }",
        "normal_: { target: '.+\\.mlp\\..+', mean: like, std: like }",
    )

    mean: float | None = number_or_like("mean", 0.0)
    std: float | None = number_or_like("standard deviation", 1.0)

    def __post_init__(self) -> None:
        if self.std.__class__ is float and self.std < 0:
            raise PlanError("std must not be negative", found=f"{self.std:g}")

    @property
    def is_like(self) -> bool:
        return self.mean is None or self.std is None

    def apply(self, k: Kernel, position: Array, *statistics: Array) -> Array:
        from ..numerics.threefry import normal

        mean = statistics[0][0] if self.mean is None else k.xp.asarray(self.mean, "float64")
        std = statistics[0][1] if self.std is None else k.xp.asarray(self.std, "float64")
        drawn = k.mul(normal(k, (self.first, self.second), position), std) + mean
        return k.cast(drawn, self.dtype)
