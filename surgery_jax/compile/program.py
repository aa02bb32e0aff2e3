"""From roots to work: byte moves, and components of computed nodes in groups of equal structure.

Roots that share computed nodes form a component; elementwise components that read the same tensor are joined, so that
it is read once. Components with the same structure form a group with names removed. A *flat* group is elementwise
throughout: its tensors are seen as rows of elements and processed in tiles of one fixed length, so it is compiled once
whatever the shapes are. The others are *whole*: compiled per shape, or gathered on the host when they only move
elements.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..core.ranges import Parts, ranges, run_length
from ..core.specs import Spec
from ..graph.node import Node, Source
from ..graph.roots import Check, Sink, Symbolic
from ..kit.base import TensorOp
from ..kit.structure import Structure
from .pieces import Geometry, Interleaved, Piece

__all__ = [
    "Component",
    "Decode",
    "Dest",
    "Eqn",
    "Group",
    "Move",
    "Output",
    "Program",
    "compile_program",
    "keeps_order",
    "spread",
]

MAX_JOINED = 32  # operations of a component that shared inputs may join: keeps compiled functions small
Place = tuple[int, int, Parts[int]]  # (number of the output file, offset, where the bytes go on elsewhere)


class Move(NamedTuple):
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
class Output:
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
    outputs: list[Output]
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
    moves: list[Move]
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


def compile_program(
    symbolic: Symbolic,
    places: Sequence[Mapping[str, Place]],
    files: Sequence[str] = (),
    encoded: Sequence[tuple[str, int, int]] = (),
) -> Program:
    """The work of a plan whose saves are laid out at `places` (per save: name to place), in `files` of which some are
    `encoded`."""
    collector = _Collector()
    for save, names in zip(symbolic.saves, places, strict=True):
        for name, node in save.tensors:
            collector.write(node, *names[name])
    for check in symbolic.checks:
        collector.check(check)
    for sink in symbolic.sinks:
        collector.sink(sink)
    groups = collector.group()
    moves = _merge(collector.moves)
    parts = collector.geometry.parts
    return Program(symbolic, moves, groups, collector.trivial, collector.decodes, parts, encoded, files)


def _merge(moves: list[Move]) -> list[Move]:
    """Moves in source order, adjacent ones joined."""
    moves.sort(key=lambda move: (move.path, move.source, move.file, move.offset))
    merged: list[Move] = []
    for move in moves:
        last = merged[-1] if merged else None
        if (
            last is not None
            and (last.path, last.file) == (move.path, move.file)
            and last.source + last.nbytes == move.source
            and last.offset + last.nbytes == move.offset
        ):
            merged[-1] = Move(last.path, last.source, last.file, last.offset, last.nbytes + move.nbytes)
        else:
            merged.append(move)
    return merged


def spread(file: int, offset: int, rest: Parts[int], at: int, block: int, step: int, count: int) -> list[Dest]:
    """Where a value of `count` blocks belongs whose first block is byte `at` of what is saved, the others every `step`
    bytes; it is saved at an offset and goes on as `rest` says."""
    found: list[Dest] = []
    number = 0
    while number < count:
        begin = at + number * step
        room = run_length(rest, begin)
        here = count - number if room is None else min((room - block) // step + 1, count - number)
        if here > 0:
            ((to, where, _),) = ranges(file, offset, rest, begin, block)
            found.append(Dest(to, where, number * block, here * block, block, step))
            number += here
            continue
        start = number * block
        for to, where, nbytes in ranges(file, offset, rest, begin, block):
            found.append(Dest(to, where, start, nbytes))
            start += nbytes
        number += 1
    return found


class _Collector:
    """Gathers what is demanded of every node, then cuts the graph into components and groups."""

    def __init__(self) -> None:
        self.geometry = Geometry()
        self.moves: list[Move] = []
        self.decodes: list[Decode] = []
        self.trivial: list[Check] = []
        self.outputs: dict[Node, Output] = {}  # of nodes that are not stored, or that a sink wants
        self.checks: dict[Node, list[Check]] = defaultdict(list)
        self._keys: dict[Any, int] = {}
        self._key_of: dict[int, int] = {}

    def write(self, node: Node, file: int, offset: int, rest: Parts[int]) -> None:
        """Demand the bytes of a node at a place."""
        at = 0
        for piece in self.geometry.pieces(node):
            parts = self.geometry.interleaved(piece)
            if parts is not None:
                self._write_interleaved(parts, file, offset, rest, at)
                at += piece.nbytes
                continue
            begin, op = piece.start, piece.node.op
            for to, where, nbytes in ranges(file, offset, rest, at, piece.nbytes):
                if not isinstance(op, Source):
                    output = self.outputs.setdefault(piece.node, Output(-1))
                    output.dests.append(Dest(to, where, begin, nbytes))
                elif op.entry.extent is None:
                    self.decodes.append(Decode(op, begin, to, where, nbytes))
                else:
                    self._move(op.entry.extent, begin, to, where, nbytes)
                begin += nbytes
            at += piece.nbytes

    def _write_interleaved(self, parts: list[Interleaved], file: int, offset: int, rest: Parts[int], at: int) -> None:
        """Demand tensors whose blocks are written in turn, from byte `at` of what is saved on."""
        step = sum(part.block for part in parts)
        for part in parts:
            output = self.outputs.setdefault(part.node, Output(-1))
            output.dests += spread(file, offset, rest, at, part.block, step, part.node.spec.nbytes // part.block)
            at += part.block

    def _move(self, extent: Any, start: int, file: int, offset: int, nbytes: int) -> None:
        for path, source, count in extent.ranges(start, nbytes):
            self.moves.append(Move(path, source, file, offset, count))
            offset += count

    def check(self, check: Check) -> None:
        """Demand a verdict."""
        if check.node.spec.size:
            self.checks[check.node].append(check)
        else:
            self.trivial.append(check)

    def sink(self, sink: Sink) -> None:
        """Demand elements."""
        self.outputs.setdefault(sink.node, Output(-1)).sinks.append(sink)

    # -- components ---------------------------------------------------------------------------------------------

    def group(self) -> list[Group]:
        """Components in groups of equal structure, in order of appearance."""
        groups: dict[Any, Group] = {}
        for calls, leaves, flat in self._components():
            component = self._component(calls, leaves, flat)
            key, on_host = self._signature(component, flat)
            groups.setdefault(key, Group(flat, on_host)).components.append(component)
        return list(groups.values())

    def _components(self) -> Iterator[tuple[list[list[Node]], list[Node], bool]]:
        """Calls (nodes of one operation on the same operands) per component, leaves that are outputs themselves, and
        whether the component is flat."""
        calls: dict[int, list[Node]] = {}  # by number of the first result
        leaves: list[Node] = []
        joined = _Joined()
        stack = [*self.outputs, *self.checks]
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if self.geometry.is_input(node):
                leaves.append(node)
                continue
            call = node.number - node.index
            calls.setdefault(call, []).append(node)
            joined.add(call)
            for operand in node.operands:
                if not self.geometry.is_input(operand):
                    joined.join(call, operand.number - operand.index)
                    stack.append(operand)
        parts: dict[int, list[list[Node]]] = defaultdict(list)
        for call in sorted(calls):
            parts[joined.find(call)].append(sorted(calls[call], key=lambda node: node.index))
        for part, flat in self._join_by_inputs(list(parts.values())):
            yield part, [], flat
        for leaf in leaves:
            yield [], [leaf], True

    def _join_by_inputs(self, parts: list[list[list[Node]]]) -> Iterator[tuple[list[list[Node]], bool]]:
        """Flat components that read the same bytes become one, as long as they stay small."""
        joined = _Joined()
        weight: dict[int, int] = {}
        users: dict[Any, int] = {}
        flat = [_is_flat(part) for part in parts]
        for number, part in enumerate(parts):
            joined.add(number)
            weight[number] = len(part)
            if not flat[number]:
                continue
            for call in part:
                for operand in call[0].operands:
                    if not self.geometry.is_input(operand):
                        continue
                    key = (self.geometry.pieces(operand), operand.spec.size)
                    other = users.setdefault(key, number)
                    a, b = joined.find(other), joined.find(number)
                    if a != b and weight[a] + weight[b] <= MAX_JOINED:
                        total = weight[a] + weight[b]
                        joined.join(a, b)
                        weight[joined.find(a)] = total
        merged: dict[int, list[list[Node]]] = defaultdict(list)
        for number, part in enumerate(parts):
            merged[joined.find(number)] += part
        self._absorb(merged)
        for number, part in merged.items():
            yield sorted(part, key=lambda call: call[0].number), flat[number]

    def _absorb(self, parts: dict[int, list[list[Node]]]) -> None:
        """Checks that read nothing but what a whole operation holds anyway become part of its component."""
        holders: dict[Any, int] = {}
        for number, part in parts.items():
            if any(call[0].kind == "whole" for call in part):
                for key in self._inputs_of(part):
                    holders.setdefault(key, number)
        if not holders:
            return
        for number, part in list(parts.items()):
            if all(call[0].kind == "check" for call in part):
                hosts = {holders.get(key, -1) for key in self._inputs_of(part)}
                host = hosts.pop() if len(hosts) == 1 else -1
                if host >= 0 and len(parts[host]) + len(part) <= MAX_JOINED:
                    parts[host] += parts.pop(number)

    def _inputs_of(self, part: list[list[Node]]) -> set[Any]:
        return {
            (self.geometry.pieces(operand), operand.spec.size)
            for call in part
            for operand in call[0].operands
            if self.geometry.is_input(operand)
        }

    def _component(self, calls: list[list[Node]], leaves: list[Node], flat: bool) -> Component:
        """Number the values of a component; equal structures get equal numbers."""
        numbers: dict[Any, int] = {}
        inputs: list[tuple[Piece, ...]] = []
        specs: list[Spec] = []

        def number_of(node: Node) -> int:
            """Number of an input; bytes read under two shapes are two inputs unless shapes do not matter."""
            pieces = self.geometry.pieces(node)
            key = (pieces, node.spec.dtype, None if flat else node.spec.shape)
            if key not in numbers:
                numbers[key] = len(inputs)
                inputs.append(pieces)
                specs.append(node.spec)
            return numbers[key]

        own = {node for call in calls for node in call}
        for call in calls:
            for operand in call[0].operands:
                if self.geometry.is_input(operand):
                    number_of(operand)
        leaf_numbers = {leaf: number_of(leaf) for leaf in leaves}
        value_of: dict[tuple[int, int], int] = {}
        eqns = []
        at = len(inputs)
        for call in calls:
            first = call[0]
            args = tuple(
                number_of(o) if self.geometry.is_input(o) else value_of[o.number - o.index, o.index]
                for o in first.operands
            )
            op: Any = first.op
            results = op.infer(*(o.spec for o in first.operands)) if op.outputs > 1 else (first.spec,)
            for index in range(len(results)):
                value_of[first.number - first.index, index] = at + index
            eqns.append(Eqn(op, args, results))
            at += len(results)
        outputs = []
        for node in sorted({*own, *leaves} & self.outputs.keys(), key=lambda node: node.number):
            output = self.outputs[node]
            output.node = node
            output.value = (
                leaf_numbers[node] if node in leaf_numbers else value_of[node.number - node.index, node.index]
            )
            outputs.append(output)
        checks = [
            (value_of[node.number - node.index, node.index], self.checks[node])
            for node in sorted(own & self.checks.keys(), key=lambda node: node.number)
        ]
        values = tuple(value for eqn in eqns for value in eqn.op.numbers())
        origins = tuple(dict.fromkeys(node.origin for node in [*(call[0] for call in calls), *leaves]))
        return Component(tuple(eqns), tuple(inputs), tuple(specs), outputs, checks, values, origins)

    def _signature(self, component: Component, flat: bool) -> tuple[Any, bool]:
        """What two components must share to be computed by one function, and whether that runs on the host."""
        values = component.value_specs()
        structural = all(eqn.op.kind == "structure" for eqn in component.eqns)
        # squares of float64 can be subnormal numbers, which a device may flush
        squared = (values[arg] for eqn in component.eqns if eqn.op.kind == "reduce" for arg in eqn.args)
        on_host = structural or any(spec.dtype.kind == "c" for spec in values)
        on_host = on_host or any(spec.dtype.name == "float64" for spec in squared)
        shape = [spec.dtype if flat else spec for spec in values]
        eqns = tuple(
            ("reshape" if flat and keeps_order(eqn.op) else self._static_key(eqn.op), eqn.args)
            for eqn in component.eqns
        )
        leaving = tuple(output.value for output in component.outputs)
        return (flat, eqns, tuple(shape), leaving, tuple(value for value, _ in component.checks)), on_host

    def _static_key(self, op: TensorOp) -> int:
        """A number that stands for what of an operation belongs to the structure; the steps of a layer share theirs."""
        found = self._key_of.get(id(op))
        if found is None:
            found = self._key_of[id(op)] = self._keys.setdefault(op.static_key(), len(self._keys))
        return found


def keeps_order(op: Any) -> bool:
    """Whether an operation leaves every element at its number."""
    return isinstance(op, Structure) and op.keeps_order


def _is_flat(calls: list[list[Node]]) -> bool:
    """Whether all values are elementwise of one size."""
    sizes = set()
    for call in calls:
        node = call[0]
        if node.kind not in ("elementwise", "check", "reduce") and not keeps_order(node.op):
            return False
        if node.kind != "reduce":
            sizes.add(node.spec.size)
        sizes.update(operand.spec.size for operand in node.operands if operand.kind != "reduce")
    return len(sizes) <= 1


class _Joined:
    """Disjoint sets; the smallest member stands for its set, so that results do not depend on order."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def add(self, item: int) -> None:
        self._above.setdefault(item, item)

    def find(self, item: int) -> int:
        self.add(item)
        root = item
        while self._above[root] != root:
            root = self._above[root]
        while self._above[item] != root:
            self._above[item], item = root, self._above[item]
        return root

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self._above[max(a, b)] = min(a, b)
