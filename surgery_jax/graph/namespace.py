"""The namespace of a plan: aliases, the names of each, and the version every name holds now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..language.names import NameIndex
from .node import Node
from .roots import Render

__all__ = ["Model", "Slot"]


@dataclass(slots=True)
class Slot:
    """A name's current version and its access counters; `node` is a stand-in for a name whose step failed."""

    node: Node
    reads: int
    writes: int


@dataclass(slots=True)
class Model:
    """One alias: slots by name in order, the text metadata of the checkpoint it came from, texts that are to be written
    beside it by file name, the format it is written in where a plan names none, and the paths of texts that lie beside
    the checkpoint by file name."""

    slots: dict[str, Slot] = field(default_factory=dict)
    index: NameIndex = field(default_factory=NameIndex)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: dict[str, Render] = field(default_factory=dict)
    format: str | None = None
    documents: Mapping[str, str] = field(default_factory=dict)

    def add(self, name: str, slot: Slot) -> None:
        """A new name, at the end."""
        self.slots[name] = slot
        self.index.add(name)

    def drop(self, name: str) -> None:
        """Remove a name."""
        del self.slots[name]
        self.index.discard(name)

    def copy(self) -> Model:
        """An independent copy: versions are immutable, slots are not."""
        twin = Model(metadata=self.metadata, notes=dict(self.notes), format=self.format, documents=self.documents)
        for name, slot in self.slots.items():
            twin.add(name, Slot(slot.node, slot.reads, slot.writes))
        return twin
