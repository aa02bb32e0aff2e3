"""`count`: how many tensors match."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import MOST_NAMES, listing
from ..kit import base
from ..kit.base import reference
from ..kit.predicates import Known, Outcome, Predicate
from ..kit.state import State
from ..language.document import Node, Scalar


def _parse_count(value: Node) -> int:
    return int(value.value) if isinstance(value, Scalar) and isinstance(value.value, bool) else base.parse_int(value)


@dataclass(frozen=True)
class Count(Predicate):
    """Exactly `is` tensors match; no match at all is always a failure."""

    name = "count"
    examples = ("count: { of: '.*\\.bias', is: 12 }",)

    of: Node = reference("the tensors")
    is_: int = base.declare(base.Field("integer", "the number of tensors", _parse_count))

    def evaluate(self, state: State) -> Outcome:
        ref = state.names.reference(self.of, key="of")
        names = state.names.match(ref)
        found = len(names)
        shown = f": {listing(names, MOST_NAMES)}" if names else ""
        why = f"count: {found} tensors match {ref.text}, expected {self.is_}{shown}"
        return Known(found == self.is_ and found > 0, why)
