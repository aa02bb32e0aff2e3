"""`assert`: a condition that must hold at this place of the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..kit import base
from ..kit.base import Directive, Field
from ..kit.state import State


def _parse(value: Any) -> Any:
    from ..kit.predicates import parse_predicate  # the predicates build on this package

    return parse_predicate(value), value


@dataclass(frozen=True)
class Assert(Directive):
    """Check a condition; values are checked in the pass that computes or moves them.

    If it does not hold, nothing is written. `surgery-jax ops assert` lists the expressions.
    """

    word = "assert"
    takes = "expression"
    examples = ("assert: { count: { of: '.*\\.bias', is: 12 } }",)

    expression: Any = base.declare(Field("expression", "one assertion", _parse))

    def build(self, state: State) -> None:
        predicate, node = self.expression
        from ..language.document import plain

        ((name, payload),) = plain(node).items()  # type: ignore[attr-defined]
        state.assert_(predicate.evaluate(state), f"{name}: {payload}")
