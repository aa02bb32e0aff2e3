"""`assert`: a condition that must hold at this place of the plan."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit import base
from ..kit.base import Directive, Field
from ..kit.predicates import Predicate, parse_predicate
from ..kit.state import State
from ..language.document import Node, plain


def _parse(value: Node) -> tuple[Predicate, Node]:
    return parse_predicate(value), value


@dataclass(frozen=True)
class Assert(Directive):
    """Check a condition; values are checked in the pass that computes or moves them.

    If it does not hold, nothing is written. `surgery-jax ops assert` lists the expressions.
    """

    word = "assert"
    takes = "expression"
    examples = ("assert: { count: { of: '.*\\.bias', is: 12 } }",)

    expression: tuple[Predicate, Node] = base.declare(Field("expression", "one assertion", _parse))

    def build(self, state: State) -> None:
        predicate, node = self.expression
        ((name, payload),) = plain(node).items()  # type: ignore[attr-defined]
        state.checks.assert_(predicate.evaluate(state), f"{name}: {payload}")
