"""What a plan demands: outputs, verdicts, printed lines. Everything else in the graph is dead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any

from ..core.errors import Mark, Notice, SurgeryError
from ..language.plan import Plan
from .node import Node

__all__ = ["Assertion", "Check", "Demands", "Print", "Request", "Save", "Sink", "Symbolic"]

Render = Callable[[Mapping[Any, Any]], str]  # makes a text of verdicts and sinks, once they are known


@dataclass(frozen=True, slots=True)
class Request:
    """Where and how a plan wants something written; the storage layer decides what that means."""

    path: str
    format: str | None
    shard: str | None
    kind: str  # "output", "alias" or "tensor"
    mark: Mark
    options: Mapping[str, str] = field(default_factory=dict)  # of the format
    documents: tuple[str, ...] | None = None  # patterns of their names; None: all, where the output is a directory


@dataclass(frozen=True, slots=True, eq=False)
class Save:
    """Versions to be written, in order."""

    request: Request
    tensors: tuple[tuple[str, Node], ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Render] = field(default_factory=dict)  # texts for files beside the tensors, by file name
    documents: Mapping[str, Any] = field(default_factory=dict)  # texts, or else the paths of files, by name


@dataclass(frozen=True, slots=True, eq=False)
class Check:
    """A mask node that must be true everywhere; `label` names the tensors."""

    node: Node
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class Sink:
    """A version whose elements something on the host wants to see."""

    node: Node
    wants: str  # "stat", "full" (nested lists) or "array" (of NumPy)


@dataclass(frozen=True, slots=True, eq=False)
class Print:
    """Lines to print at a place of the plan, once the checks and sinks they speak of are known."""

    step: int
    render: Render


@dataclass(frozen=True, slots=True, eq=False)
class Assertion:
    """An assertion whose outcome depends on values."""

    step: int
    mark: Mark
    outcome: Any
    text: str


@dataclass(slots=True)
class Demands:
    """All that the steps of a plan demand so far, and what is wrong with them."""

    step: int = 0
    saves: list[Save] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    prints: list[Print] = field(default_factory=list)
    assertions: list[Assertion] = field(default_factory=list)
    questions: list[Check | Sink] = field(default_factory=list)
    executed: list[Any] = field(default_factory=list)
    errors: list[SurgeryError] = field(default_factory=list)
    warnings: dict[str, Notice] = field(default_factory=dict)  # by their texts: each is told once

    def copy(self) -> Demands:
        """Independent demands of the same content."""
        held: dict[str, Any] = {entry.name: copy(getattr(self, entry.name)) for entry in fields(self)}
        return Demands(**held)


@dataclass(frozen=True, slots=True, eq=False)
class Symbolic:
    """A plan after symbolic execution: all that has to be read, computed, written, checked and printed."""

    saves: Sequence[Save]
    checks: Sequence[Check]
    sinks: Sequence[Sink]
    prints: Sequence[Print]
    assertions: Sequence[Assertion]
    executed: Sequence[Any]  # the YAML of the steps that ran
    needs_whole: bool  # whether some work may need whole tensors in memory, or large blocks of them
    warnings: Sequence[Notice] = ()
    questions: Sequence[Check | Sink] = ()  # what the data must tell before the plan is final; until then it is a bound
    identities: Mapping[str, Any] = field(default_factory=dict)  # of the files whose headers were read, by path
    plan: Plan | None = None  # that it was made of
    given: Mapping[str, Mapping[str, Node]] = field(default_factory=dict)  # stored tensors by alias and name, as opened
    met: Set[Node] = frozenset()  # those that a step has looked at, moved or dropped

    def stored(self) -> list[Node]:
        """The stored tensors that anything demanded comes from, in the order of the plan's reading."""
        stack = [node for save in self.saves for _, node in save.tensors]
        stack += [*(check.node for check in self.checks), *(sink.node for sink in self.sinks)]
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack.extend(node.operands)
        return sorted((node for node in seen if node.kind == "read"), key=lambda node: node.number)
