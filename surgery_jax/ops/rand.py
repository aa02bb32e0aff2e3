"""`rand`: a new tensor of random numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.dtypes import BY_NAME
from ..core.specs import Spec
from ..kit.base import TensorOp, choice, integer, integers, number
from ..kit.forms import Create
from ..kit.made import check_distribution, check_shape, drawn


@dataclass(frozen=True)
class Rand(TensorOp):
    """Make a new float32 tensor of random numbers.

    -> float32 of `shape`. Equal seeds, shapes and parameters give equal numbers.
    """

    kind = "template"
    spellings = (Create("rand"),)
    examples = ("rand: { target: router.weight, shape: [8, 768], low: -0.02, high: 0.02, seed: 1 }",)

    shape: tuple[int, ...] = integers("positive lengths")
    distribution: str = choice("which numbers", ("uniform", "normal"), "uniform", folded=True)
    low: float = number("lower end of uniform numbers", 0.0)
    high: float = number("upper end of uniform numbers", 1.0)
    mean: float = number("mean of normal numbers", 0.0)
    std: float = number("standard deviation of normal numbers", 1.0)
    seed: int | None = integer("seed; without one the numbers differ from run to run", None)

    def __post_init__(self) -> None:
        check_shape(self.shape)
        check_distribution(self.distribution, self.low, self.high, self.std)

    def made(self) -> TensorOp:
        """The operation that makes the numbers."""
        spec = Spec(self.shape, BY_NAME["float32"])
        return drawn(spec, self.distribution, (self.low, self.high), (self.mean, self.std), self.seed)
