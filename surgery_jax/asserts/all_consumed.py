"""`all_consumed`: nothing is forgotten."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import MOST_NAMES, listing
from ..kit.base import reference
from ..kit.predicates import AtEnd, Known, Outcome, Predicate
from ..kit.state import State
from ..language.document import Node


@dataclass(frozen=True)
class AllConsumed(Predicate):
    """Every tensor that matches here is read by some step of the plan, before or after, or is written as it is.

    It is decided when all steps are known. Deleting a tensor is no use of it: leave those that are deleted on purpose
    out of `of`.
    """

    name = "all_consumed"
    takes = "of"
    examples = ("all_consumed: 'dense::.+'", "all_consumed: 'dense::(?!.*rotary_emb).+'")

    of: Node = reference("the tensors")

    def evaluate(self, state: State) -> Outcome:
        ref = state.names.reference(self.of, key="of", slices=False)
        names = state.names.match(ref)
        if not names:
            return Known(False, f"all_consumed: matched zero tensors: {ref.text}")
        slots = {name: state.versions.slot(ref.alias, name) for name in names}

        is_used = state.checks.is_used

        def judge() -> tuple[bool, str]:
            left = [name for name, slot in slots.items() if not (slot.reads or is_used(ref.alias, name, slot.node))]
            if not left:
                return True, f"all_consumed: all {len(slots)} tensors of {ref.text} are used"
            return False, f"all_consumed: {len(left)} of {len(slots)} are not used: {listing(left, MOST_NAMES)}"

        return AtEnd(judge, state.control.is_at_end)
