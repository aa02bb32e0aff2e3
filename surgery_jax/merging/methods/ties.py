"""`ties`: trimmed task vectors whose signs are elected."""

from __future__ import annotations

from dataclasses import dataclass

from ...kit.fields import boolean, number
from ...kit.state import Value, Versions
from ..method import each
from ..tasks import SparseMethod


@dataclass(frozen=True)
class Ties(SparseMethod):
    """Trimmed task vectors whose signs are elected: B + lambda sum(w D) / sum(w) over those w D that have the sign of
    the sum of all of them, at every element; `D` is what is largest of W - B, the share `density` of its elements.

    Any shape. At least one element is kept unless `density` is 0; of equal magnitudes those of lower positions are. The
    magnitudes are those of float32 (float64 for float64), in which task vectors, products and sums are; rounded once.
    Yadav et al., "TIES-Merging", arXiv:2306.01708.
    """

    name = "ties"
    elects = True

    normalize: bool = boolean("divide by the sum of the weights that take part", True)
    rescale: bool = boolean("restore the L1 norm of the trimmed task vectors", False)
    density: tuple[float, ...] = each(number("share of the elements that is kept", 1.0))

    def sparsified(self, versions: Versions, key: str, number: int, delta: Value) -> Value:
        return self.largest(versions, self.density[number], delta)
