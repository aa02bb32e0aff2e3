"""The work of a plan: byte moves, and components of computed nodes in groups of equal structure.

A *flat* group is elementwise throughout: its tensors are seen as rows of elements and processed in tiles of one fixed
length, so it is compiled once whatever the shapes are. The others are *whole*: compiled per shape, or gathered on the
host when they only move elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..core.specs import Spec
from ..graph.node import Node, Source
from ..graph.roots import Check, Sink, Symbolic
from ..kit.base import TensorOp
from ..kit.structure import Structure
from .pieces import Interleaved, Piece

__all__ = [
    "ByteMove",
    "Component",
    "Decode",
    "Dest",
    "Eqn",
    "Group",
    "Program",
    "Result",
    "keeps_order",
]


class ByteMove(NamedTuple):
    """Bytes that only change place."""

    path: str
    source: int
    file: int
    offset: int
    nbytes: int


class Decode(NamedTuple):
    """Bytes of a tensor from `start` on that only change place, but must be decoded first."""

    source: Source
    start: int
    file: int
    offset: int
    nbytes: int


class Dest(NamedTuple):
    """Bytes [start, start + nbytes) of a value belong at an offset of an output file.

    With `block`, only so many bytes follow one another there, and every block begins `step` bytes after the one before.
    """

    file: int
    offset: int
    start: int
    nbytes: int
    block: int = 0
    step: int = 0

    def parts(self, start: int, nbytes: int) -> list[tuple[int, int, int]]:
        """(byte of the value, offset, length) of what lies in [start, start + nbytes) of the value."""
        begin, end = max(self.start, start), min(self.start + self.nbytes, start + nbytes)
        if not self.block:
            return [(begin, self.offset + begin - self.start, end - begin)] if begin < end else []
        found = []
        while begin < end:
            number, inside = divmod(begin - self.start, self.block)
            count = min(self.block - inside, end - begin)
            found.append((begin, self.offset + number * self.step + inside, count))
            begin += count
        return found


@dataclass(frozen=True, slots=True)
class Eqn:
    """One operation of a group on values numbered as inputs first, then results in order."""

    op: TensorOp
    args: tuple[int, ...]
    specs: tuple[Spec, ...]


@dataclass(slots=True)
class Result:
    """A value that leaves the component."""

    value: int
    dests: list[Dest] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    node: Node | None = None


@dataclass(slots=True, eq=False)
class Component:
    """One instance of a group: where its inputs come from, where its outputs go, its numbers, its checks."""

    eqns: tuple[Eqn, ...]
    inputs: tuple[tuple[Piece, ...], ...]
    specs: tuple[Spec, ...]  # of the inputs
    outputs: list[Result]
    checks: list[tuple[int, list[Check]]]
    numbers: tuple[float, ...]
    origins: tuple[Any, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the stored inputs, for people."""
        stored = (piece.node.op for pieces in self.inputs for piece in pieces if isinstance(piece.node.op, Source))
        return tuple(dict.fromkeys(source.name for source in stored))

    @property
    def size(self) -> int:
        """Elements of every value of a flat component."""
        return (self.specs or self.eqns[0].specs)[0].size

    def value_specs(self) -> list[Spec]:
        """Specs of all values in order."""
        return [*self.specs, *(spec for eqn in self.eqns for spec in eqn.specs)]


@dataclass(slots=True, eq=False)
class Group:
    """Components of equal structure. `flat`: elementwise throughout. `on_host`: evaluated in NumPy."""

    flat: bool
    on_host: bool
    components: list[Component] = field(default_factory=list)

    @property
    def sample(self) -> Component:
        """Any component: they differ in places and numbers only (and in shapes if flat)."""
        return self.components[0]

    @property
    def reduces(self) -> bool:
        """Whether it is flat and statistics over all elements of a tensor leave it."""
        return self.flat and any(eqn.op.kind == "reduce" for eqn in self.sample.eqns)

    @property
    def bytes_in(self) -> int:
        """Bytes that its inputs need."""
        return sum(spec.nbytes for component in self.components for spec in component.specs)

    @property
    def bytes_out(self) -> int:
        """Bytes that its outputs write."""
        return sum(d.nbytes for component in self.components for output in component.outputs for d in output.dests)


@dataclass(slots=True, eq=False)
class Program:
    """All work of a plan."""

    symbolic: Symbolic
    moves: list[ByteMove]
    groups: list[Group]
    trivial: list[Check]  # checks of tensors without elements, which hold
    decodes: list[Decode] = field(default_factory=list)
    parts: Mapping[Node, list[Interleaved] | None] = field(default_factory=dict)  # of what is written in blocks
    encoded: Sequence[tuple[str, int, int]] = ()  # files that are encoded at the end: name, bytes, and memory beside
    files: Sequence[str] = ()  # paths of the outputs' files, by number

    @property
    def bytes_moved(self) -> int:
        """Bytes that only change place."""
        return sum(move.nbytes for move in self.moves) + sum(decode.nbytes for decode in self.decodes)

    @property
    def bytes_read(self) -> int:
        """Bytes read for computing."""
        return sum(
            piece.nbytes
            for group in self.groups
            for component in group.components
            for pieces in component.inputs
            for piece in pieces
            if isinstance(piece.node.op, Source)
        )

    @property
    def bytes_computed(self) -> int:
        """Bytes that computing writes."""
        return sum(group.bytes_out for group in self.groups)

    @property
    def needs_device(self) -> bool:
        """Whether anything is computed with JAX."""
        return any(not group.on_host for group in self.groups)


def keeps_order(op: Any) -> bool:
    """Whether an operation leaves every element at its number."""
    return isinstance(op, Structure) and op.keeps_order
