"""What the parts of the state share while a plan runs symbolically: namespace, demands, and the running step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.errors import Mark
from ..kit.where import Where
from ..language.document import Node as YamlNode
from .namespace import Namespace
from .node import Graph, Node
from .roots import Demands, Request

__all__ = ["BROKEN", "Consequence", "Frame", "Outside"]


class Outside(Protocol):
    """The headers of the outside world, and nested plans; the graph itself opens no file."""

    def open_checkpoint(self, path: str) -> Any: ...

    def open_single(self, path: str, format: str) -> Any: ...

    def open_plan(self, path: str) -> YamlNode: ...

    def read_document(self, path: str) -> Any: ...

    def identify(self, path: str) -> Any: ...

    def is_directory(self, request: Request) -> bool: ...

    def check_request(self, request: Request) -> None: ...


class Consequence(Exception):
    """A step cannot run only because an earlier one failed; nothing to report."""


class _Broken:
    """Stands for a version that an earlier failed step would have made."""

    spec: Any = None
    quantised: Any = None


BROKEN: Any = _Broken()
START = Mark("plan", 1, 1)


@dataclass(slots=True, eq=False)
class Frame:
    """`space` and `demands` are what a step changes: values that can be copied, kept and put back."""

    space: Namespace
    outside: Outside
    graph: Graph
    answers: Mapping[Node, Any]  # that an earlier pass over the data has given
    default_alias: str | None
    demands: Demands = field(default_factory=Demands)
    # of the running step
    word: str = ""
    mark: Mark = START
    where: Where | None = None
    raw: bool = False
    pending: list[tuple[str, str]] = field(default_factory=list)  # names that it will make
    recent: list[str] = field(default_factory=list)  # names that it has read since it last wrote one
    touched: dict[str, list[str]] = field(default_factory=lambda: {"changed": [], "created": [], "deleted": []})
    used: set[tuple[str, str, Node]] = field(default_factory=set)  # that a step has read, under their names
    met: set[Node] = field(default_factory=set)  # stored tensors that a step has looked at, moved or dropped
    given: dict[str, dict[str, Node]] = field(default_factory=dict)  # the stored tensors of each checkpoint, by alias
    # of all files whose headers were read, by path
    identities: dict[str, Any] = field(default_factory=dict)
    checkpoints: dict[str, Any] = field(default_factory=dict)

    def note_read(self, alias: str, name: str, node: Node) -> None:
        """A step reads what a name holds, and not on trial."""
        if self.space.counts:
            self.used.add((alias, name, node))
