r"""The steps that ran, as YAML that is a plan again.

`raw` gives the steps as they were written, after merging. `resolve` also gives inputs and output, and spells out
assertions and fills: aliases, dtypes and defaults.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..core.dtypes import DType
from ..core.errors import Mark
from ..graph.build import parse_step
from ..language.document import Node, Scalar, Sequence, node_of, plain
from ..language.names import parse_reference
from ..language.plan import Plan
from ..language.writing import yaml_text

__all__ = ["is_dry", "summarize"]

MODES = ("raw", "resolve")
_MARK = Mark("summary", 1, 1)


def summarize(plan: Plan, executed: list[Any], mode: str) -> str:
    """The summary of the executed steps of a plan."""
    steps = [_step(step) for step in executed]
    if mode == "raw":
        return yaml_text({"transforms": steps})
    default = plan.inputs[0].alias if len(plan.inputs) == 1 else None
    document: dict[str, Any] = {
        "inputs": sorted(f"{entry.alias}::{entry.path}" for entry in plan.inputs),
        "transforms": [_resolved(step, default) for step in steps],
    }
    if plan.output is not None:
        output: dict[str, Any] = {"path": plan.output.path, "format": plan.output.format, "shard": plan.output.shard}
        output["options"] = dict(plan.output.options) or None
        document["output"] = {key: value for key, value in output.items() if value is not None}
    return yaml_text(document)


def is_dry(executed: list[Any]) -> bool:
    """Whether the steps ended in a dry run."""
    dry = False
    for step in map(_step, executed):
        payload = step.get("set") or {}
        if isinstance(payload, dict) and "dry-run" in payload:
            dry = str(payload["dry-run"]).strip().lower() in ("t", "true")
    return dry


def _step(step: Any) -> dict[str, Any]:
    """A step as a mapping whose payload is never null."""
    if isinstance(step, str):
        return {step: {}}
    return {word: {} if payload is None else payload for word, payload in step.items()}


def _resolved(step: dict[str, Any], default: str | None) -> dict[str, Any]:
    ((word, payload),) = step.items()
    if word not in ("assert", "fill", "fill_"):
        return step
    bound = parse_step(node_of({word: payload}, _MARK))
    if word == "assert":
        directive: Any = bound.thing
        return {word: _expression(directive.expression[0], default)}
    references = {key: _reference(node, default) for key, node in bound.refs.items()}
    return {word: _fill(bound.thing) | references}


def _fill(op: Any) -> dict[str, Any]:
    """The keys that the mode of a fill uses, with their defaults."""
    numbers = ("low", "high") if op.distribution == "uniform" else ("mean", "std")
    modes = {"constant": ("value",), "tensor": ("values",), "rand": ("distribution", *numbers)}
    seed = {} if op.seed is None else {"seed": op.seed}
    return {"mode": op.mode, **seed, **{key: _value(getattr(op, key)) for key in modes[op.mode]}}


def _expression(predicate: Any, default: str | None) -> dict[str, Any]:
    """A predicate with its references and dtypes spelled out; what was not given is left out."""
    payload: dict[str, Any] = {}
    for field in dataclasses.fields(predicate):
        value = getattr(predicate, field.name)
        if value is None or field.name in ("at_least", "at_most"):  # `ge` and `le` say the same
            continue
        declared = field.metadata["field"]
        key = declared.key or field.name.rstrip("_")
        if dataclasses.is_dataclass(value) and hasattr(value, "evaluate"):
            payload[key] = _expression(value, default)
        elif isinstance(value, tuple) and value and hasattr(value[0], "evaluate"):
            payload[key] = [_expression(part, default) for part in value]
        else:
            payload[key] = _reference(value, default) if isinstance(value, Scalar | Sequence) else _value(value)
    bare = predicate.takes and len(payload) == 1
    return {predicate.name: next(iter(payload.values())) if bare else payload}


def _reference(node: Node, default: str | None) -> Any:
    """A reference with its alias; one in list form has no place for it."""
    if isinstance(node, Sequence):
        return plain(node)
    found = parse_reference(node, default)
    qualified = found.text.startswith(f"{found.alias}::{found.expr}")
    return found.text if qualified else f"{found.alias}::{found.text.removeprefix('::')}"


def _value(value: Any) -> Any:
    if isinstance(value, DType):
        return value.name
    return [_value(item) for item in value] if isinstance(value, tuple) else value
