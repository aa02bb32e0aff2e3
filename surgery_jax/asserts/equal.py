"""`equal`: equal shapes, dtypes and values."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import epsilon, reference
from ..kit.masks import EqualMask
from ..kit.predicates import Known, Outcome, Pending, Predicate, settle_all
from ..kit.state import State
from ..language.document import Node
from ..language.names import Reference


@dataclass(frozen=True)
class Equal(Predicate):
    """Every match of `left` equals the tensor that `right` names for it, in shape, dtype and values.

    Without eps NaN differs from itself and -0 equals 0. With eps the absolute difference in float64 must be at most
    eps; there infinities differ from themselves.
    """

    name = "equal"
    examples = ("equal: { left: 'new::(.+)', right: 'old::\\1', eps: 1e-5 }",)

    left: Node = reference("tensors, may be sliced")
    right: Node = reference("template of the names to compare with, may be sliced")
    eps: float | None = epsilon("absolute tolerance, in float64")

    def evaluate(self, state: State) -> Outcome:
        left, right = state.names.reference(self.left, key="left"), state.names.reference(self.right, key="right")
        if not state.names.match(left):
            return Known(False, f"equal: matched zero tensors: {left.text}")
        try:
            pairs = state.names.pairs(left, right)
        except PlanError as error:
            if "collision" not in error.problem:
                raise
            return Known(False, error.problem)
        return settle_all("all", [self._test(state, left, right, pair) for pair in pairs])

    def _test(self, state: State, left: Reference, right: Reference, pair: tuple[str, ...]) -> Outcome:
        name, other = pair
        label = f"equal: {left.alias}::{name} and {right.alias}::{other}"
        if not state.names.has(right.alias, other):
            return Known(False, f"{label}: the second does not exist")
        a = state.versions.read(left, name)
        b = state.versions.read(right, other, reads=2)
        if a.spec != b.spec:
            return Known(False, f"{label}: {a.spec} against {b.spec}")
        return Pending(state.checks.check(EqualMask(self.eps), (a, b), label))
