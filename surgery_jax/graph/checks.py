"""Questions to the data, and what must be true of it, while a plan runs symbolically."""

from __future__ import annotations

from typing import Any

from ..kit.operations import TensorOp
from ..kit.state import Value
from .frame import BROKEN, Consequence, Frame
from .node import node_of
from .roots import Assertion, Check, Sink
from .versions import GraphVersions

__all__ = ["GraphChecks"]


class GraphChecks:
    """See `kit.state.Checks` for the promises of the methods."""

    def __init__(self, frame: Frame, versions: GraphVersions) -> None:
        self.frame, self.versions = frame, versions

    def check(self, op: TensorOp, operands: tuple[Value, ...], label: str) -> Check:
        if any(operand is BROKEN for operand in operands):
            raise Consequence
        self.frame.demands.checks.append(Check(self.versions.compute(op, *operands), label))
        return self.frame.demands.checks[-1]

    def sink(self, node: Value, wants: str) -> Sink:
        if node is BROKEN:
            raise Consequence
        self.frame.demands.sinks.append(Sink(node_of(node), wants))
        return self.frame.demands.sinks[-1]

    def ask(self, node: Value) -> Any:
        if node is BROKEN:
            raise Consequence
        asked = node_of(node)
        if asked not in self.frame.answers:
            self.frame.demands.questions.append(Check(asked, "") if asked.kind == "check" else Sink(asked, "array"))
        return self.frame.answers.get(asked)

    def waits(self) -> bool:
        return bool(self.frame.demands.questions)

    def is_used(self, alias: str, name: str, node: Value) -> bool:
        used = (alias, name, node_of(node)) in self.frame.used
        return used or any(node is other for save in self.frame.demands.saves for _, other in save.tensors)

    def assert_(self, outcome: Any, text: str) -> None:
        self.frame.demands.assertions.append(Assertion(self.frame.demands.step, self.frame.mark, outcome, text))
