"""`breadcrumbs_ties`: breadcrumbs whose signs are elected."""

from __future__ import annotations

from dataclasses import dataclass

from .breadcrumbs import Breadcrumbs


@dataclass(frozen=True)
class BreadcrumbsTies(Breadcrumbs):
    """As `breadcrumbs`, of whose task vectors only those elements take part that have the sign of their weighted sum.

    Any shape. Task vectors, products and sums in float32 (float64 for float64); rounded once. Davari and Belilovsky,
    "Model breadcrumbs", arXiv:2312.06795, with the election of Yadav et al., arXiv:2306.01708.
    """

    name = "breadcrumbs_ties"
    elects = True
