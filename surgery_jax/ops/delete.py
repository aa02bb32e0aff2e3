"""`delete`: remove tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit.base import Directive, reference
from ..kit.state import State
from ..language.document import Node


@dataclass(frozen=True)
class Delete(Directive):
    """Remove every match."""

    word = "delete"
    selects = True
    examples = ("delete: { target: '.*\\.rotary_emb\\.inv_freq' }",)

    target: Node = reference("tensors to remove")

    def build(self, state: State) -> None:
        target = state.names.reference(self.target, key="target", slices=False)
        for name in state.names.select(target):
            state.versions.drop(target.alias, name)
            state.speech.tell(f"delete: {name}")

    def contributes(self, state: State) -> str | None:
        return state.names.reference(self.target, key="target", slices=False).alias
