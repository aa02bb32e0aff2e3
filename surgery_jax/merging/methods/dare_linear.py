"""`dare_linear`: task vectors with elements dropped at random."""

from __future__ import annotations

from dataclasses import dataclass

from ...kit.fields import boolean, integer
from ...kit.state import Value, Versions
from ...numerics.threefry import key_of
from ..drops import Drop
from ..tasks import SparseMethod


@dataclass(frozen=True)
class DareLinear(SparseMethod):
    """Task vectors with elements dropped at random, added to the base: B + lambda sum(w r D), where every element of
    W - B is kept in `D` with the probability `density`, and `r` restores the L1 norm of W - B.

    Any shape. Which are kept depends on the seed, the name of the result, the model and the position. Norms in float64;
    task vectors, products and sums in float32 (float64 for float64); rounded once. Yu et al., "Language models are
    Super Mario", arXiv:2311.03099, whose `r` is 1 / density.
    """

    name = "dare_linear"

    rescale: bool = boolean("restore the L1 norm of what is left of the task vectors", True)
    seed: int = integer("the same for all tensors of a step", 0)

    def sparsified(self, versions: Versions, key: str, number: int, delta: Value) -> Value:
        first, second = key_of(self.seed, key)
        return versions.compute(Drop(self.density[number], float(first), float(second)), delta)
