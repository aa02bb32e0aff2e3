"""Which paths a plan reads, as far as its words say so: its inputs, and what its steps load."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.errors import SurgeryError
from ..language.document import parse_plan_file, parse_yaml
from ..language.nodes import Mapping, Node, Scalar, Sequence
from ..language.plan import Plan, inputs_of

__all__ = ["paths_read"]

_DEPTH = 8  # of plans that execute plans; one may execute itself, which its job will tell


def paths_read(plan: Plan) -> list[str]:
    """The paths of checkpoints and files that a plan reads, each once; what is wrong with a step names none."""
    return list(dict.fromkeys([*(entry.path for entry in plan.inputs), *_of_steps(plan.steps, _DEPTH)]))


def _of_steps(node: Node | None, depth: int) -> Iterator[str]:
    for step in node.items if isinstance(node, Sequence) else (node,):
        if isinstance(step, Mapping):
            for word, told in step.entries.items():
                if word == "load":
                    yield from _text(told.entries.get("path") if isinstance(told, Mapping) else told)
                elif word == "execute" and isinstance(told, Mapping) and depth:
                    yield from _of_execute(told, depth - 1)


def _text(node: Node | None) -> Iterator[str]:
    if isinstance(node, Scalar) and isinstance(node.value, str):
        yield node.value


def _of_execute(told: Mapping, depth: int) -> Iterator[str]:
    yield from _of_steps(told.entries.get("transforms"), depth)
    yield from _of_plan(told.entries.get("plan"), depth)
    for key, parse in (("plan-yaml", _parsed), ("path", _parsed_file)):
        for text in _text(told.entries.get(key)):
            try:
                found = parse(text)
            except SurgeryError:  # whose turn it is tells what is wrong with it
                continue
            yield from _of_plan(found, depth)


def _parsed(text: str) -> Node:
    return parse_yaml(text, "plan-yaml", interpolate=False)


def _parsed_file(path: str) -> Node:
    return parse_plan_file(path, interpolate=False)


def _of_plan(node: Node | None, depth: int) -> Iterator[str]:
    if isinstance(node, Mapping) and {"inputs", "transforms", "output"} & set(node.entries):
        try:
            yield from (entry.path for entry in inputs_of(node.entries.get("inputs"), nested=True))
        except SurgeryError:
            return
        node = node.entries.get("transforms")
    yield from _of_steps(node, depth)
