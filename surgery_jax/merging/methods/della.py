"""`della`: task vectors with elements dropped at random, small ones more often, whose signs are elected."""

from __future__ import annotations

from dataclasses import dataclass

from ...kit.fields import boolean
from .della_linear import DellaLinear


@dataclass(frozen=True)
class Della(DellaLinear):
    """As `della_linear`, of whose task vectors only those elements take part that have the sign of their weighted sum,
    which is divided by the weights that take part.

    Any shape. Norms in float64; task vectors, products and sums in float32 (float64 for float64); rounded once. Deep et
    al., "DELLA-Merging", arXiv:2406.11617.
    """

    name = "della"
    elects = True

    normalize: bool = boolean("divide by the sum of the weights that take part", True)
