"""`all`, `any`, `not`: expressions of expressions."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit import base
from ..kit.predicates import Combined, Known, Outcome, Predicate, parse_predicate
from ..kit.state import State
from ..language.document import Node, Sequence
from ..language.nodes import shown


def _parse_list(value: Node) -> tuple[Predicate, ...]:
    if not isinstance(value, Sequence) or not value.items:
        raise PlanError(
            "not a list of assertions", where=value.mark, expected="a list that is not empty", found=shown(value)
        )
    return tuple(parse_predicate(item) for item in value.items)


def _attempt(predicate: Predicate, state: State) -> Outcome:
    """An outcome even where names, shapes or patterns are wrong: inside `not` and `any` that is a failure."""
    try:
        return predicate.evaluate(state)
    except PlanError as error:
        return Known(False, error.problem)


@dataclass(frozen=True)
class All(Predicate):
    """Every expression of a list holds."""

    name = "all"
    takes = "of"
    examples = ("all: [ { exists: w }, { not: { iszero: w } } ]",)

    of: tuple[Predicate, ...] = base.declare(base.Field("list of assertions", "the expressions", _parse_list))

    def evaluate(self, state: State) -> Outcome:
        parts: list[Outcome] = []
        for predicate in self.of:
            parts.append(predicate.evaluate(state))
            if parts[-1].known() and not parts[-1].settle({})[0]:
                return parts[-1]
        return Combined("all", tuple(parts))


@dataclass(frozen=True)
class AnyOf(Predicate):
    """At least one expression of a list holds."""

    name = "any"
    takes = "of"
    examples = ("any: [ { exists: lm_head.weight }, { exists: wte.weight } ]",)

    of: tuple[Predicate, ...] = base.declare(base.Field("list of assertions", "the expressions", _parse_list))

    def evaluate(self, state: State) -> Outcome:
        parts: list[Outcome] = []
        for predicate in self.of:
            parts.append(_attempt(predicate, state))
            if parts[-1].known() and parts[-1].settle({})[0]:
                return parts[-1]
        return Combined("any", tuple(parts))


@dataclass(frozen=True)
class Not(Predicate):
    """The expression fails, for whatever reason."""

    name = "not"
    takes = "of"
    examples = ("not: { exists: 'tmp\\..*' }",)

    of: Predicate = base.declare(base.Field("assertion", "the expression", parse_predicate))

    def evaluate(self, state: State) -> Outcome:
        return Combined("not", (_attempt(self.of, state),))
