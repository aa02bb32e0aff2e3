"""`shape`: exact shapes."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit.base import integers
from ..kit.predicates import Known, Outcome
from ..kit.selecting import Selecting
from ..kit.state import State
from ..language.names import Reference


@dataclass(frozen=True)
class Shape(Selecting):
    """Every match has this shape after slicing; [] is the shape of a scalar, and there is no wildcard."""

    name = "shape"
    examples = ("shape: { of: '.*\\.q_proj\\.weight', is: [4096, 4096] }",)

    is_: tuple[int, ...] = integers("the shape")

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        shape = state.versions.spec(state.versions.read(ref, name)).shape
        return Known(shape == self.is_, f"shape: {name} is {list(shape)}, expected {list(self.is_)}")
