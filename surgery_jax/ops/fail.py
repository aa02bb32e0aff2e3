"""`fail`: refuse to go on."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import Directive, text
from ..kit.state import State


@dataclass(frozen=True)
class Fail(Directive):
    """End with an error that the plan words itself, before anything is written; with `when` beside it, a check.

    It is an error of the plan or of the command line: exit code 2. Nothing after it is looked at.
    """

    word = "fail"
    takes = "problem"
    examples = (
        "fail: 'this plan is for models without biases'",
        "fail: { problem: 'granularity does not divide experts', expected: 'a divisor of 8', found: '3' }",
    )

    problem: str = text("what is wrong")
    expected: str | None = text("what would be right", None)
    found: str | None = text("what there is instead", None)
    hint: str | None = text("what to try", None)

    def build(self, state: State) -> None:
        state.control.stop()
        raise PlanError(self.problem, expected=self.expected, found=self.found, hint=self.hint)
