"""Predicates that compare every match of one reference with the tensor that another names for it: what they share."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..language.document import Node
from ..language.names import Reference
from .base import reference
from .predicates import Known, Outcome, Predicate, settle_all
from .state import State, Value

__all__ = ["Comparing"]


@dataclass(frozen=True)
class Comparing(Predicate):
    """A predicate over every match of `left` and the tensor that `right` names for it; no match is a failure."""

    left: Node = reference("tensors, may be sliced")
    right: Node = reference("template of the names to compare with, may be sliced")

    def evaluate(self, state: State) -> Outcome:
        left, right = state.names.reference(self.left, key="left"), state.names.reference(self.right, key="right")
        if not state.names.match(left):
            return Known(False, f"{self.name}: matched zero tensors: {left.text}")
        try:
            pairs = state.names.pairs(left, right)
        except PlanError as error:
            if "collision" not in error.problem:
                raise
            return Known(False, error.problem)
        return settle_all("all", [self._pair(state, left, right, pair) for pair in pairs])

    def _pair(self, state: State, left: Reference, right: Reference, pair: tuple[str, ...]) -> Outcome:
        name, other = pair
        label = f"{self.name}: {left.alias}::{name} and {right.alias}::{other}"
        if not state.names.has(right.alias, other):
            return Known(False, f"{label}: the second does not exist")
        a = state.versions.read(left, name)
        b = state.versions.read(right, other, reads=2)
        return self.test(state, a, b, label)

    def test(self, state: State, a: Value, b: Value, label: str) -> Outcome:
        """The outcome of two versions."""
        raise NotImplementedError
