"""`move`: rename."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit.base import Directive, reference
from ..kit.state import State
from ..language.document import Node


@dataclass(frozen=True)
class Move(Directive):
    """Rename tensors, also into another checkpoint; no data is touched.

    A moved tensor goes to the end of its checkpoint's order.
    """

    word = "move"
    selects = True
    examples = ("move: { from: 'blk\\.(\\d+)\\.(.+)', to: 'layers.\\1.\\2' }",)

    source: Node = reference("tensors to rename", key="from")
    to: Node = reference("their new names, must be new")

    def build(self, state: State) -> None:
        source = state.names.reference(self.source, key="from", slices=False)
        dest = state.names.reference(self.to, key="to", slices=False)
        pairs = state.names.pairs(source, dest)
        state.names.expect_new(dest.alias, [name for _, name in pairs])
        for name, new in pairs:
            node = state.versions.slot(source.alias, name).node
            state.versions.drop(source.alias, name)
            state.versions.create(dest.alias, new, node, reads=1)
            state.speech.tell(f"move: {name} -> {new}")

    def contributes(self, state: State) -> str | None:
        return state.names.reference(self.to, key="to", slices=False).alias
