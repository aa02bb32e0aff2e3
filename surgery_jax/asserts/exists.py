"""`exists`: a name matches."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import MOST_NAMES, listing
from ..kit.base import reference
from ..kit.predicates import Known, Outcome, Predicate
from ..kit.state import State
from ..language.document import Node


@dataclass(frozen=True)
class Exists(Predicate):
    """At least one tensor matches."""

    name = "exists"
    takes = "of"
    examples = ("exists: 'enc\\.0\\..*'",)

    of: Node = reference("the tensors")

    def evaluate(self, state: State) -> Outcome:
        ref = state.names.reference(self.of, key="exists")
        names = state.names.match(ref)
        shown = f": {listing(names, MOST_NAMES)}" if names else ""
        return Known(bool(names), f"exists: {len(names)} tensors match {ref.text}{shown}")
