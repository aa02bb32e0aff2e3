"""The plan that a configuration becomes, while it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, TypeAlias

from ..core.errors import Mark
from ..language import nodes
from ..language.nodes import Mapping, Node, Scalar
from ..language.plan import Input, Output, Plan
from ..storage.formats import as_directory
from .options import MergeOptions

__all__ = ["Recipe", "Value"]

Value: TypeAlias = Any  # None, bool, int, float, str, lists and dictionaries of these, and nodes that keep their place

OUT = "out"  # the alias of what is written


@dataclass
class Recipe:
    """Inputs and steps, in their order; `extra` are aliases beside the output that steps have written to."""

    inputs: list[Input] = field(default_factory=list)
    steps: list[Node] = field(default_factory=list)
    extra: dict[str, None] = field(default_factory=dict)
    taken: set[str] = field(default_factory=lambda: {OUT})

    def alias(self, path: str) -> str:
        """A new alias that reminds of a path."""
        place = PurePath(path)
        stem = place.stem if place.suffix in (".safetensors", ".bin", ".pt", ".pth") else place.name
        if stem in ("model", "pytorch_model", "consolidated") and place.parent.name:
            stem = place.parent.name
        word = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("._-") or "model"
        found, number = word, 1
        while found in self.taken:
            number += 1
            found = f"{word}_{number}"
        self.taken.add(found)
        return found

    def input(self, path: str, mark: Mark, word: str = "") -> str:
        """One more input; its alias, which reminds of `word`."""
        alias = self.alias(word or path)
        self.inputs.append(Input(alias, path, mark))
        return alias

    def step(self, word: str, payload: AnyMapping[str, Value], mark: Mark, changes: str = "") -> None:
        """One more step, written at a place of the configuration; `changes` is an alias that it writes to."""
        self.steps.append(_node({word: {key: value for key, value in payload.items() if value is not None}}, mark))
        if changes and changes != OUT:
            self.extra[changes] = None

    def plan(self, path: str, options: MergeOptions, mark: Mark) -> Plan:
        """All of it; the output goes to a path."""
        gone = [_node({"prefixes": {"mode": "remove", "alias": alias}}, mark) for alias in self.extra]
        output = Output(as_directory(path), options.format, options.shard, mark)
        return Plan(tuple(self.inputs), nodes.Sequence((*self.steps, *gone), mark), output)


def _node(value: Value, mark: Mark) -> Node:
    """Ordinary values as nodes at a place; nodes stay as they are."""
    if isinstance(value, Scalar | nodes.Sequence | Mapping):
        return value
    if isinstance(value, AnyMapping):
        entries = {str(key): _node(item, mark) for key, item in value.items()}
        return Mapping(entries, dict.fromkeys(entries, mark), mark)
    if isinstance(value, list | tuple):
        return nodes.Sequence(tuple(_node(item, mark) for item in value), mark)
    return Scalar(value, mark)
