"""`writes`: bounds on an access counter."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit.predicates import Known, Outcome
from ..kit.state import State
from ..language.names import Reference
from .counters import Counter


@dataclass(frozen=True)
class Writes(Counter):
    """How often the plan so far has written each match satisfies all bounds."""

    name = "writes"
    examples = ("writes: { of: w, at_least: 1 }",)

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        count = state.versions.slot(ref.alias, name).writes
        return Known(self.holds(count), f"writes: {name} has {count}, expected {self.described()}")
