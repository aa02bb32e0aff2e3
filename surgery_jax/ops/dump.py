"""`dump`: print names, shapes, statistics or values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from ..core.errors import PlanError
from ..core.specs import Spec
from ..core.trees import format_number, render_json, render_tree
from ..kit.base import Directive, choice, reference
from ..kit.state import Found, Key, State
from ..language.document import Node
from ..language.names import Reference

Leaf = tuple[Spec, Key | None, int, int]  # with reads and writes


@dataclass(frozen=True)
class Dump(Directive):
    """Print tensors as a tree or as JSON: shapes, statistics, or all values."""

    word = "dump"
    examples = ("dump: { target: 'h\\.0\\..*', format: tree, verbosity: stat }",)

    target: Node | None = reference("which tensors, may be sliced; all by default", None)
    format: str = choice("layout", ("compact", "tree", "json"), "compact")
    verbosity: str = choice("how much", ("shape", "stat", "full"), "shape")

    def build(self, state: State) -> None:
        for alias, ref, names in self._groups(state):
            leaves: dict[str, Leaf] = {}
            for name in names:
                slot = state.versions.slot(alias, name, reads=1)
                node = slot.node if ref is None else state.versions.view(slot.node, ref)
                if node.spec is None:
                    continue
                if self.verbosity != "shape" and not node.spec.dtype.array:
                    raise PlanError(f"{name}: {node.spec.dtype} has no values to print", hint="use verbosity: shape")
                key = None if self.verbosity == "shape" else state.checks.sink(node, self.verbosity)
                leaves[name] = (node.spec, key, slot.reads, slot.writes)
            root = alias if self.target is None else None
            state.speech.say_later(partial(self._render, leaves, root))

    def _groups(self, state: State) -> list[tuple[str, Reference | None, list[str]]]:
        """Alias, reference and names of what is printed; without a target, every checkpoint as a whole."""
        if self.target is None:
            return [(alias, None, state.names.of(alias)) for alias in state.names.aliases()]
        ref = state.names.reference(self.target, key="target")
        return [(ref.alias, ref, state.names.select(ref))]

    def _render(self, leaves: Mapping[str, Leaf], root: str | None, found: Found) -> str:
        entries = {name: self._leaf(leaf, found) for name, leaf in leaves.items()}
        if self.format == "json":
            return render_json(entries, root=root)
        return render_tree(
            {
                name: " ".join(f"{key}={_text(value)}" for key, value in entry.items())
                for name, entry in entries.items()
            },
            fold=self.format == "compact",
            root=root,
        )

    def _leaf(self, leaf: Leaf, found: Found) -> dict[str, object]:
        spec, key, reads, writes = leaf
        entry: dict[str, object] = {"shape": list(spec.shape)}
        if self.verbosity == "stat":
            entry |= {name: found[key][name] for name in ("min", "max", "mean")}
        elif self.verbosity == "full":
            entry |= {"dtype": spec.dtype.name, "values": found[key]}
        if self.verbosity != "shape":
            entry |= {"reads": reads, "writes": writes}
        return entry


def _text(value: object) -> str:
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)
