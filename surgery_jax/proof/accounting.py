"""What becomes of the tensors of a plan: read, moved, computed, created, dropped, and those that nothing touched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import PlanError, listing
from ..graph.node import Node
from ..graph.roots import Symbolic

__all__ = ["Accounting", "Ancestors", "account_for", "check_strict"]


@dataclass(frozen=True)
class Accounting:
    """How many tensors of the inputs are read, and how many of the outputs are moved there as they are, computed, or
    created of nothing; `dropped` are those of the inputs that steps met and no output comes from. `untouched` are the
    others that no output comes from, as `alias::name`, and inputs that nothing opened, as `alias::`.
    """

    read: int
    moved: int
    computed: int
    created: int
    dropped: int
    untouched: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For receipts and `--json`."""
        return asdict(self) | {"untouched": list(self.untouched)}


class Ancestors:
    """The stored tensors that nodes come from, and whether they are only moved."""

    def __init__(self) -> None:
        self._moved: dict[Node, bool] = {}
        self._from: dict[Node, frozenset[Node]] = {}

    def of(self, node: Node) -> frozenset[Node]:
        """All stored tensors that a version comes from."""
        return self._found(node)[0]

    def is_moved(self, node: Node) -> bool:
        """Whether every element is one of a stored tensor, as it is."""
        return self._found(node)[1]

    def _found(self, node: Node) -> tuple[frozenset[Node], bool]:
        stack = [node]
        while stack:  # without recursion: plans can be long
            current = stack[-1]
            missing = [operand for operand in current.operands if operand not in self._from]
            if missing and current not in self._from:
                stack += missing
                continue
            stack.pop()
            if current in self._from:
                continue
            if current.kind == "read":
                self._from[current], self._moved[current] = frozenset((current,)), True
            else:
                operands = current.operands
                self._from[current] = (
                    self._from[operands[0]]
                    if len(operands) == 1
                    else frozenset().union(*(self._from[operand] for operand in operands))
                )
                is_moved = current.kind == "structure" and bool(operands)
                self._moved[current] = is_moved and all(self._moved[operand] for operand in operands)
        return self._from[node], self._moved[node]


def account_for(symbolic: Symbolic, ancestors: Ancestors | None = None) -> Accounting:
    """What becomes of the tensors of a plan, known from headers."""
    ancestors = ancestors or Ancestors()
    counts = {"moved": 0, "computed": 0, "created": 0}
    for save in symbolic.saves:
        for _, node in save.tensors:
            kind = "moved" if ancestors.is_moved(node) else "computed" if ancestors.of(node) else "created"
            counts[kind] += 1
    read = set(symbolic.stored())
    dropped = len({node for nodes in symbolic.given.values() for node in nodes.values()} & (symbolic.met - read))
    return Accounting(len(read), dropped=dropped, untouched=tuple(_untouched(symbolic, read)), **counts)


def _untouched(symbolic: Symbolic, read: set[Node]) -> Iterable[str]:
    for alias, nodes in symbolic.given.items():
        yield from (f"{alias}::{name}" for name, node in nodes.items() if node not in read and node not in symbolic.met)
    if symbolic.plan is not None:
        yield from (f"{entry.alias}::" for entry in symbolic.plan.inputs if entry.alias not in symbolic.given)


def check_strict(symbolic: Symbolic) -> None:
    """Whether every tensor of every input is used or dropped.

    Raises:
        PlanError: some are not.
    """
    untouched = account_for(symbolic).untouched
    if untouched:
        raise PlanError(
            "the inputs hold what is neither used nor dropped",
            found=listing(name if not name.endswith("::") else f"all of {name[:-2]}" for name in untouched),
            hint="delete what is not wanted, or run without --strict",
        )
