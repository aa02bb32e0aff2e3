"""`breadcrumbs`: task vectors without their largest and smallest elements."""

from __future__ import annotations

from dataclasses import dataclass

from ...kit.fields import boolean, number
from ...kit.state import Value, Versions
from ..method import each
from ..tasks import SparseMethod


@dataclass(frozen=True)
class Breadcrumbs(SparseMethod):
    """Task vectors without their largest and smallest elements, added to the base: B + lambda sum(w D); of W - B the
    share `gamma` of the largest is dropped, and as many of the smallest as leave the share `density`.

    Any shape. Where fewer than `gamma` may be dropped, that many are; of equal magnitudes those of lower positions
    count as larger. Task vectors, products and sums in float32 (float64 for float64); rounded once. Davari and
    Belilovsky, "Model breadcrumbs", arXiv:2312.06795.
    """

    name = "breadcrumbs"

    rescale: bool = boolean("restore the L1 norm of what is left of the task vectors", False)
    density: tuple[float, ...] = each(number("share of the elements that is kept", 1.0))
    gamma: tuple[float, ...] = each(number("share of the elements that is dropped as too large", 0.01))

    def sparsified(self, versions: Versions, key: str, number: int, delta: Value) -> Value:
        return self.middle(versions, self.density[number], self.gamma[number], delta)
