"""`dimensions`: bounds on the number of axes."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit.predicates import Known, Outcome
from ..kit.selecting import Bounds
from ..kit.state import State
from ..language.names import Reference


@dataclass(frozen=True)
class Dimensions(Bounds):
    """The number of axes of every match, after slicing, satisfies all bounds."""

    name = "dimensions"
    examples = ("dimensions: { of: '.*', ge: 1, lt: 3 }",)

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        rank = len(state.versions.spec(state.versions.read(ref, name)).shape)
        return Known(self.holds(rank), f"dimensions: {name} has {rank} axes, expected {self.described()}")
