"""`help`: print what a transform or an assertion takes."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit import base
from ..kit.base import Directive, Field
from ..kit.state import State
from ..language.document import Mapping, Node, Scalar
from ..language.nodes import shown


def _parse_topic(value: Node) -> tuple[str, str | None]:
    if isinstance(value, Mapping) and len(value.entries) == 1:
        ((name, inner),) = value.entries.items()
        if isinstance(inner, Scalar) and (inner.value is None or isinstance(inner.value, str)):
            return name, inner.value
    if isinstance(value, Scalar) and isinstance(value.value, str):
        return value.value, None
    raise PlanError("not a topic", where=value.mark, expected="a transform, or { assert: NAME }", found=shown(value))


@dataclass(frozen=True)
class Help(Directive):
    """Print the list of transforms, or the keys and examples of one."""

    word = "help"
    takes = "topic"
    examples = ("help: copy", "help: { assert: equal }")

    topic: tuple[str, str | None] | None = base.declare(Field("name", "what to explain", _parse_topic, None))

    def build(self, state: State) -> None:
        from .describe import describe

        state.speech.say(describe(*(self.topic or (None, None))))
