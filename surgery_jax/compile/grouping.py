"""From roots to work.

Roots that share computed nodes form a component; elementwise components that read the same tensor are joined, so that
it is read once. Components with the same structure form a group with names removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..core.ranges import Parts, ranges, run_length
from ..core.specs import Spec
from ..graph.node import Node, Source
from ..graph.roots import Check, Sink, Symbolic
from ..kit.base import TensorOp
from ..kit.made import Positions
from .pieces import Geometry, Interleaved, Piece
from .program import ByteMove, Component, Decode, Dest, Eqn, Group, Program, Result, keeps_order

__all__ = ["compile_program", "spread"]

MAX_JOINED = 32  # operations of a component that shared inputs may join: keeps compiled functions small

# Of tensors with statistics, the elements of one that fills a good part of a tile, and of one that would waste it.
LARGE, SMALL = 1 << 20, 1 << 16

Place = tuple[int, int, Parts[int]]  # (number of the output file, offset, where the bytes go on elsewhere)


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


def _merge(moves: list[ByteMove]) -> list[ByteMove]:
    """Moves in source order, adjacent ones joined."""
    moves.sort(key=lambda move: (move.path, move.source, move.file, move.offset))
    merged: list[ByteMove] = []
    for move in moves:
        last = merged[-1] if merged else None
        if (
            last is not None
            and (last.path, last.file) == (move.path, move.file)
            and last.source + last.nbytes == move.source
            and last.offset + last.nbytes == move.offset
        ):
            merged[-1] = ByteMove(last.path, last.source, last.file, last.offset, last.nbytes + move.nbytes)
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
        self.moves: list[ByteMove] = []
        self.decodes: list[Decode] = []
        self.trivial: list[Check] = []
        self.outputs: dict[Node, Result] = {}  # of nodes that are not stored, or that a sink wants
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
                    output = self.outputs.setdefault(piece.node, Result(-1))
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
            output = self.outputs.setdefault(part.node, Result(-1))
            output.dests += spread(file, offset, rest, at, part.block, step, part.node.spec.nbytes // part.block)
            at += part.block

    def _move(self, extent: Any, start: int, file: int, offset: int, nbytes: int) -> None:
        for path, source, count in extent.ranges(start, nbytes):
            self.moves.append(ByteMove(path, source, file, offset, count))
            offset += count

    def check(self, check: Check) -> None:
        """Demand a verdict."""
        if check.node.spec.size:
            self.checks[check.node].append(check)
        else:
            self.trivial.append(check)

    def sink(self, sink: Sink) -> None:
        """Demand elements."""
        self.outputs.setdefault(sink.node, Result(-1)).sinks.append(sink)

    # -- components ---------------------------------------------------------------------------------------------

    def group(self) -> list[Group]:
        """Components in groups of equal structure, in order of appearance."""
        groups: dict[Any, Group] = {}
        for calls, leaves, flat in self._components():
            component = self._component(calls, leaves, flat)
            key, on_host = self._signature(component, flat)
            groups.setdefault(key, Group(flat, on_host)).components.append(component)
        return [part for group in groups.values() for part in _by_size(group)]

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
                    if not self.geometry.is_input(operand) or isinstance(operand.op, Positions):
                        continue  # numbers of elements are made, which costs less than what is alike in two tensors
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


def _by_size(group: Group) -> list[Group]:
    """A group with statistics without its small tensors, and these: each of them would take a tile of those that are
    large, and is gone over in NumPy sooner than that is. The bits are the same."""
    sizes = [component.size for component in group.components]
    if not group.reduces or group.on_host or max(sizes) < LARGE or min(sizes) > SMALL:
        return [group]
    parts = Group(group.flat, group.on_host), Group(group.flat, on_host=True)
    for component, size in zip(group.components, sizes, strict=True):
        parts[size <= SMALL].components.append(component)
    return [*parts]


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
