"""`dump`: print names, shapes, statistics or values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import PlanError
from ..core.trees import format_number, render_json, render_tree
from ..language.document import Node
from .base import Directive, choice, reference
from .state import State


@dataclass(frozen=True)
class Dump(Directive):
    """Print tensors as a tree or as JSON: shapes, statistics, or all values."""

    word = "dump"
    examples = ("dump: { target: 'h\\.0\\..*', format: tree, verbosity: stat }",)

    target: Node | None = reference("which tensors, may be sliced; all by default", None)
    format: str = choice("layout", ("compact", "tree", "json"), "compact")
    verbosity: str = choice("how much", ("shape", "stat", "full"), "shape")

    def build(self, state: State) -> None:
        if self.target is None:
            groups = [(alias, None, state.names(alias)) for alias in state.aliases()]
        else:
            ref = state.reference(self.target, key="target")
            groups = [(ref.alias, ref, state.select(ref))]
        for alias, ref, names in groups:
            leaves = {}
            for name in names:
                slot = state.slot(alias, name, reads=1)
                node = slot.node if ref is None else state.view(slot.node, ref)
                if node.spec is None:
                    continue
                if self.verbosity != "shape" and not node.spec.dtype.array:
                    raise PlanError(f"{name}: {node.spec.dtype} has no values to print", hint="use verbosity: shape")
                key = None if self.verbosity == "shape" else state.sink(node, self.verbosity)
                leaves[name] = (node.spec, key, slot.reads, slot.writes)
            title = f"{alias}:\n" if self.target is None and len(groups) > 1 and self.format != "json" else ""
            state.say_later(lambda found, leaves=leaves, title=title: title + self._render(leaves, found))

    def _render(self, leaves: Mapping[str, Any], found: Mapping[Any, Any]) -> str:
        entries = {name: self._leaf(*leaf, found) for name, leaf in leaves.items()}
        if self.format == "json":
            return render_json(entries)
        return render_tree(
            {name: " ".join(f"{key}={_text(value)}" for key, value in entry.items()) for name, entry in entries.items()},
            fold=self.format == "compact",
        )

    def _leaf(self, spec: Any, key: Any, reads: int, writes: int, found: Mapping[Any, Any]) -> dict[str, Any]:
        entry: dict[str, Any] = {"shape": list(spec.shape)}
        if self.verbosity == "stat":
            entry |= {name: found[key][name] for name in ("min", "max", "mean")}
        elif self.verbosity == "full":
            entry |= {"dtype": spec.dtype.name, "values": found[key]}
        if self.verbosity != "shape":
            entry |= {"reads": reads, "writes": writes}
        return entry


def _text(value: Any) -> str:
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)
