"""`execute`: nested steps."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import Directive, node, text
from ..kit.state import State
from ..language.document import Node, Scalar


@dataclass(frozen=True)
class Execute(Directive):
    """Run the steps of another plan here: given inline, as a plan mapping, as text, or in a file; in this order."""

    word = "execute"
    examples = ("execute: { path: steps.yaml }", "execute: { transforms: [ { scale_: { target: w, by: 2 } } ] }")

    transforms: Node | None = node("a step or a list of steps", None, kind="steps")
    plan: Node | None = node("a plan mapping or a list of steps", None, kind="plan")
    plan_yaml: Node | None = node("YAML text of a plan", None, kind="text", key="plan-yaml")
    path: str | None = text("file of a plan", None)

    def build(self, state: State) -> None:
        sources: list[tuple[str, Node]] = []
        for kind, given in (("transforms", self.transforms), ("plan", self.plan), ("plan-yaml", self.plan_yaml)):
            if given is not None and not (isinstance(given, Scalar) and given.value is None):
                sources.append((kind, given))
        if self.path is not None:
            sources.append(("path", Scalar(self.path, state.mark)))
        if not sources:
            raise PlanError("execute needs at least one step", expected="transforms, plan, plan-yaml or path")
        state.control.run_nested(sources)
