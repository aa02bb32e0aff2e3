"""`dare_ties`: task vectors with elements dropped at random, whose signs are elected."""

from __future__ import annotations

from dataclasses import dataclass

from .dare_linear import DareLinear


@dataclass(frozen=True)
class DareTies(DareLinear):
    """As `dare_linear`, of whose task vectors only those elements take part that have the sign of their weighted sum.

    Any shape. Norms in float64; task vectors, products and sums in float32 (float64 for float64); rounded once. Yu et
    al., "Language models are Super Mario", arXiv:2311.03099, with the election of Yadav et al., arXiv:2306.01708.
    """

    name = "dare_ties"
    elects = True
