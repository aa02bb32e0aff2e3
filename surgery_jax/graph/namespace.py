"""The namespace of a plan at one step, as a value: aliases, names, versions, counters, flags and documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..core.errors import Mark
from ..language.names import NameIndex, Reference
from .node import Node
from .roots import Render

__all__ = ["Binding", "Document", "Namespace", "SymbolicModel"]


@dataclass(frozen=True, slots=True)
class Binding:
    """A name's current version and its access counters; `node` is a stand-in for a name whose step failed."""

    node: Node
    reads: int = 0
    writes: int = 1


class Document(NamedTuple):
    """A small file that tells of a model: a text, or, where `text` is None, the file at `path` as it is."""

    path: str
    text: str | None = None


@dataclass(slots=True)
class SymbolicModel:
    """One alias: slots by name in order, the text metadata of the checkpoint it came from, texts that are to be written
    beside it by file name, the format it is written in where a plan names none, and its documents by name."""

    slots: dict[str, Binding] = field(default_factory=dict)
    index: NameIndex = field(default_factory=NameIndex)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Render] = field(default_factory=dict)
    format: str | None = None
    documents: Mapping[str, Document] = field(default_factory=dict)  # is replaced, not changed

    def add(self, name: str, slot: Binding) -> None:
        """A new name, at the end."""
        self.slots[name] = slot
        self.index.add(name)

    def drop(self, name: str) -> None:
        """Remove a name."""
        del self.slots[name]
        self.index.discard(name)

    def copy(self) -> SymbolicModel:
        """An independent one of the same content: what it holds is immutable."""
        return replace(self, slots=dict(self.slots), index=self.index.copy())


@dataclass(slots=True)
class Namespace:
    """All that steps have made of the names of a plan so far. A copy is as cheap as its number of aliases: a model is
    shared until one of the two changes it.

    `models`: None stands for an input that nothing has touched yet. `broken`: aliases whose checkpoint could not be
    read. `ghosts`: templates of names that failed steps would have made. `counts`: whether reads and writes are
    counted. `before`: what the end of dry-run gives back.
    """

    models: dict[str, SymbolicModel | None]
    inputs: dict[str, tuple[str, Mark]]
    flags: dict[str, bool] = field(default_factory=lambda: {"dry-run": False, "preview": False, "verbose": False})
    stopped: bool = False
    broken: set[str] = field(default_factory=set)
    ghosts: list[tuple[str, Reference]] = field(default_factory=list)
    counts: bool = True
    before: Namespace | None = None
    _own: set[str] = field(default_factory=set)  # aliases whose model no other namespace holds

    def copy(self) -> Namespace:
        """An independent namespace of the same content."""
        self._own.clear()
        return replace(
            self,
            models=dict(self.models),
            inputs=dict(self.inputs),
            flags=dict(self.flags),
            broken=set(self.broken),
            ghosts=list(self.ghosts),
            before=self.before and self.before.copy(),
            _own=set(),
        )

    def trial(self) -> Namespace:
        """A copy that counts nothing, to be thrown away."""
        twin = self.copy()
        twin.counts, twin.before = False, None
        return twin

    def dry(self) -> Namespace:
        """A copy that counts nothing and remembers what to give back."""
        twin = self.trial()
        twin.before = self
        return twin

    def ended(self) -> Namespace:
        """What was before dry-run, with what is wrong with the plan since."""
        assert self.before is not None
        self.before.flags, self.before.stopped = self.flags, self.stopped
        self.before.broken, self.before.ghosts = self.broken, self.ghosts
        return self.before

    # -- aliases ------------------------------------------------------------------------------------------------

    def opened(self, alias: str, model: SymbolicModel) -> None:
        """What an input holds, here and before dry-run."""
        self.models[alias] = model
        if self.before is not None and self.before.models.get(alias, model) is None:
            self.before.models[alias] = model
        else:
            self._own.add(alias)

    def add(self, alias: str, for_good: bool = False) -> SymbolicModel:
        """A new alias without tensors; `for_good`: also when dry-run has ended."""
        model = self.models[alias] = SymbolicModel()
        self._own.add(alias)
        if for_good and self.before is not None:
            self.before.add(alias)
        return model

    def remove(self, alias: str) -> None:
        """Forget an alias, for good."""
        self.models.pop(alias, None)
        self._own.discard(alias)
        if self.before is not None:
            self.before.remove(alias)

    def rename(self, alias: str, new: str) -> None:
        """Give an alias another name, for good; its place in the order stays."""
        self.models = {new if key == alias else key: model for key, model in self.models.items()}
        if alias in self.inputs:
            self.inputs[new] = self.inputs.pop(alias)
        if alias in self._own:
            self._own.discard(alias)
            self._own.add(new)
        if self.before is not None:
            self.before.rename(alias, new)

    # -- names of a model that was opened -----------------------------------------------------------------------

    def held(self, alias: str) -> SymbolicModel:
        """A model to look at."""
        found = self.models[alias]
        assert found is not None
        return found

    def writable(self, alias: str) -> SymbolicModel:
        """A model to change."""
        found = self.held(alias)
        if alias not in self._own:
            found = self.models[alias] = found.copy()
            self._own.add(alias)
        return found

    def count(self, alias: str, name: str, reads: int) -> Binding:
        """The slot of a name, after so many more reads."""
        slot = self.held(alias).slots[name]
        if not reads or not self.counts:
            return slot
        found = self.writable(alias).slots[name] = Binding(slot.node, slot.reads + reads, slot.writes)
        return found

    def rebind(self, alias: str, name: str, node: Node) -> None:
        """Another version of a name."""
        slot = self.held(alias).slots[name]
        self.writable(alias).slots[name] = Binding(node, slot.reads, slot.writes + self.counts)
