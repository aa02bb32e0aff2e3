"""`della_linear`: task vectors with elements dropped at random, small ones more often."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import PlanError
from ...kit.fields import boolean, integer, number
from ...kit.state import Value, Versions
from ...numerics.threefry import key_of
from ..method import each
from ..prunes import Prune
from ..tasks import Select, SparseMethod


@dataclass(frozen=True)
class DellaLinear(SparseMethod):
    """Task vectors with elements dropped at random, small ones more often, added to the base: B + lambda sum(w r D).
    Every element of W - B is kept in `D` with a probability that grows evenly with the rank of its magnitude in its
    row, from density - epsilon to density + epsilon, and `r` restores the L1 norm of W - B.

    Any shape; rows are along the leading axis, a vector is one. Which are kept depends on the seed, the name of the
    result, the model and the position. Norms in float64; task vectors, products and sums in float32 (float64 for
    float64); rounded once. Deep et al., "DELLA-Merging", arXiv:2406.11617.
    """

    name = "della_linear"

    rescale: bool = boolean("restore the L1 norm of what is left of the task vectors", True)
    epsilon: tuple[float, ...] = each(number("how far the probability goes below and above the density", 0.15))
    seed: int = integer("the same for all tensors of a step", 0)

    def __post_init__(self) -> None:
        for density, epsilon in zip(self.density, self.epsilon, strict=False):
            if 0 < density < 1 and not (epsilon >= 0 and 0 < density - epsilon and density + epsilon < 1):
                raise PlanError(
                    f"{self.name} needs probabilities between 0 and 1",
                    expected="0 < density - epsilon and density + epsilon < 1",
                    found=f"density {density:g}, epsilon {epsilon:g}",
                )

    def sparsified(self, versions: Versions, key: str, number: int, delta: Value) -> Value:
        first, second = map(float, key_of(self.seed, key))
        density, epsilon = self.density[number], self.epsilon[number] if self.density[number] > 0 else 0.0
        return versions.compute(Select(), delta, versions.compute(Prune(density, epsilon, first, second), delta))
