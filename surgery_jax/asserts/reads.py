"""`reads`: bounds on an access counter."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit.predicates import Known, Outcome
from ..kit.state import State
from ..language.names import Reference
from .counters import Counter


@dataclass(frozen=True)
class Reads(Counter):
    """How often the plan so far has read each match satisfies all bounds."""

    name = "reads"
    examples = ("reads: { of: w, at_least: 1 }",)

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        count = state.versions.slot(ref.alias, name).reads
        return Known(self.holds(count), f"reads: {name} has {count}, expected {self.described()}")
