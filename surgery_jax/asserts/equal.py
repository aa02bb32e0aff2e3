"""`equal`: equal shapes, dtypes and values."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit.base import epsilon
from ..kit.comparing import Comparing
from ..kit.masks import EqualMask
from ..kit.predicates import Known, Outcome, Pending
from ..kit.state import State, Value


@dataclass(frozen=True)
class Equal(Comparing):
    """Every match of `left` equals the tensor that `right` names for it, in shape, dtype and values.

    Without eps NaN differs from itself and -0 equals 0. With eps the absolute difference in float64 must be at most
    eps; there infinities differ from themselves.
    """

    name = "equal"
    examples = ("equal: { left: 'new::(.+)', right: 'old::\\1', eps: 1e-5 }",)

    eps: float | None = epsilon("absolute tolerance, in float64")

    def test(self, state: State, a: Value, b: Value, label: str) -> Outcome:
        if a.spec != b.spec:
            return Known(False, f"{label}: {a.spec} against {b.spec}")
        return Pending(state.checks.check(EqualMask(self.eps), (a, b), label))
