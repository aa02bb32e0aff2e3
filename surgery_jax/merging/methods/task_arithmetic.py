"""`task_arithmetic`: task vectors added."""

from __future__ import annotations

from dataclasses import dataclass

from ..tasks import TaskMethod


@dataclass(frozen=True)
class TaskArithmetic(TaskMethod):
    """Task vectors added to the base: B + lambda sum(w (W - B)), with `normalize` divided by sum(w).

    Any shape. Task vectors, products and sums in float32 (float64 for float64), in the order of the models; rounded
    once. Ilharco et al., "Editing models with task arithmetic", arXiv:2212.04089.
    """

    name = "task_arithmetic"
