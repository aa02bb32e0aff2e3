"""The tasks of a program: tiles, whole components and moves, in the order of where their bytes lie. Pure; opens
nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ..compile.blueprint import Blueprint
from ..compile.pieces import Piece
from ..compile.program import ByteMove, Component, Group, Program
from ..core.exact import exact
from ..graph.node import Source
from ..io.decoded import covering
from ..io.needs import LEAST_PIECE, PAGE

__all__ = ["MOVE_BYTES", "DecodeTask", "MoveTask", "Segment", "Task", "Tile", "plan_tasks"]

SHORT_MOVE = 64 << 10  # moves below this are gathered in memory,
GATHERED = LEAST_PIECE - PAGE  # so many bytes at a time: the buffer begins where the page of the file does
MOVE_BYTES = 32 << 20  # of one copy: long enough to be efficient, short enough to share among workers and show progress


@dataclass(frozen=True, slots=True)
class MoveTask:
    """Copy bytes from file to file: one long range, or short ones that are neighbours where they go."""

    moves: tuple[ByteMove, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it copies."""
        return sum(move.nbytes for move in self.moves)


@dataclass(frozen=True, slots=True)
class DecodeTask:
    """Decode a block of a tensor, `count` elements from number `first` on, and write parts of it: (first byte in the
    block, file, offset there, number of bytes)."""

    source: Source
    first: int
    count: int
    parts: tuple[tuple[int, int, int, int], ...]


Segment = tuple[Component, int, int]  # first row and number of rows of a component


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows of components of one group: what the group's blueprint computes at once. All have the same numbers, to the
    last bit, but for a stack, whose segments are whole components. Of a reduced group it is a component, which is gone
    over in parts.

    The first `seen` rows belong to the tile before as well: they are only there because all tiles have one length.
    """

    group: int
    segments: tuple[Segment, ...]
    seen: int = 0

    @property
    def num_fresh(self) -> int:
        """Rows that no tile before has computed."""
        return sum(count for _, _, count in self.segments) - self.seen


Task = MoveTask | DecodeTask | Tile


def plan_tasks(
    program: Program, blueprints: Sequence[Blueprint], *, by_output: bool = False, most: int = MOVE_BYTES
) -> list[Task]:
    """All tasks in the order of the bytes they read first, in the file that most of them read: those that read the same
    tensor of a base come together. With `by_output` it is the order of the bytes they write first. `blueprints` are
    those of the groups; no task copies more than `most` bytes."""
    tasks: list[tuple[_At, Task]] = []
    for moves in _gathered(program.moves):
        for part in _parts(moves[0], most) if len(moves) == 1 else ():
            tasks.append((_at(part, by_output), MoveTask((part,))))
        if len(moves) > 1:
            tasks.append((_at(moves[0], by_output), MoveTask(moves)))
    for decoded in _decode_tasks(program):
        tasks.append((decoded.parts[0][1:3] if by_output else ("", 0), decoded))
    components = (component for group in program.groups for component in group.components)
    readers = Counter(path for component in components for path in {path for path, _ in _stored(component)})
    position: _Position = _written if by_output else partial(_position, readers=readers)
    for number, (group, plan) in enumerate(zip(program.groups, blueprints, strict=True)):
        tiles = _CUTTERS[plan.kind](number, group, plan, position)
        tasks += [(position(tile.segments[0], plan), tile) for tile in tiles]
    tasks.sort(key=lambda entry: entry[0])
    return [task for _, task in tasks]


_At = tuple[str | int, int]  # a file, by its path or its number, and an offset in it
_Position = Callable[[Segment, Blueprint], _At]


def _at(move: ByteMove, by_output: bool) -> _At:
    return (move.file, move.offset) if by_output else (move.path, move.source)


def _parts(move: ByteMove, most: int) -> Iterator[ByteMove]:
    """A move in parts that end where pages of the file do."""
    done = 0
    while done < move.nbytes:
        count = min(most - (move.offset + done) % PAGE, move.nbytes - done)
        yield ByteMove(move.path, move.source + done, move.file, move.offset + done, count)
        done += count


def _written(segment: Segment, plan: Blueprint) -> _At:
    """File and offset of the first bytes that are written; first comes what writes none."""
    component, first, _ = segment
    values, found = plan.value_specs(), [(-1, 0)]
    for number, output in zip(plan.leaving, component.outputs, strict=True):
        begin = first * (values[number].nbytes // plan.rows)
        found += [(d.file, d.offset + max(0, begin - d.start)) for d in output.dests if d.start + d.nbytes > begin]
    return min(found[1:], default=found[0])


def _gathered(moves: Sequence[ByteMove]) -> Iterator[tuple[ByteMove, ...]]:
    """Moves, short ones that are neighbours where they go taken together: a write costs more than a read."""
    short = sorted((move for move in moves if move.nbytes < SHORT_MOVE), key=lambda move: (move.file, move.offset))
    yield from ((move,) for move in moves if move.nbytes >= SHORT_MOVE)
    together: list[ByteMove] = []
    total = 0
    for move in short:
        last = together[-1] if together else None
        if last is not None and (
            (last.file, last.offset + last.nbytes) != (move.file, move.offset) or total + move.nbytes > GATHERED
        ):
            yield tuple(together)
            together, total = [], 0
        together.append(move)
        total += move.nbytes
    if together:
        yield tuple(together)


def _decode_tasks(program: Program) -> list[DecodeTask]:
    """One task for every block of which anything is wanted, so that it is decoded once; the largest ones first, since
    a block is decoded by one worker and the others should not wait for it at the end."""
    wanted: dict[tuple[int, int], tuple[Source, int, int, list[tuple[int, int, int, int]]]] = {}
    for source, start, file, offset, nbytes in program.decodes:
        for first, count, begin, end in covering(source.entry, start, nbytes):
            row = wanted.setdefault((id(source), first), (source, first, count, []))
            row[3].append((begin, file, offset, end - begin))
            offset += end - begin
    tasks = [DecodeTask(source, first, count, tuple(parts)) for source, first, count, parts in wanted.values()]
    return sorted(tasks, key=lambda task: -task.count * task.source.entry.spec.dtype.bits)


def _stored(component: Component) -> Iterator[tuple[str, tuple[int, Piece]]]:
    """Files that a component reads, with the number of the input and its first piece there."""
    for number, pieces in enumerate(component.inputs):
        for piece in pieces:
            entry = piece.node.op.entry if isinstance(piece.node.op, Source) else None
            if entry is not None and entry.extent is not None:
                yield entry.extent.path, (number, piece)


def _position(segment: Segment, plan: Blueprint, readers: Mapping[str, int]) -> tuple[str, int]:
    """File and offset of the first bytes that are read of the file with most readers, of several that of the first
    input."""
    component, first, _ = segment
    found = max(_stored(component), key=lambda entry: readers[entry[0]], default=None)
    if found is None:
        return "", 0
    _, (number, piece) = found
    extent = piece.node.op.entry.extent  # type: ignore[union-attr]
    path, offset, _ = extent.ranges(piece.start + first * plan.specs[number].nbytes // plan.rows, 1)[0]
    return path, offset


def _row_tiles(number: int, group: Group, plan: Blueprint, _: _Position) -> Iterator[Tile]:
    """Tiles of one component each; the last one of a component begins early enough to be as long as the others."""
    for component in group.components:
        total = plan.total(component)
        for start in range(0, total, plan.rows):
            first = min(start, total - plan.rows)
            yield Tile(number, ((component, first, plan.rows),), start - first)


def _components(number: int, group: Group, plan: Blueprint, _: _Position) -> Iterator[Tile]:
    """A whole component each, which its task cuts into tiles: partial results are brought together in its order."""
    for component in group.components:
        yield Tile(number, ((component, 0, plan.total(component)),))


def _stacks(number: int, group: Group, plan: Blueprint, position: _Position) -> Iterator[Tile]:
    """Fill stacks with components that lie near each other."""
    whole = [(component, 0, 1) for component in group.components]
    whole.sort(key=lambda segment: position(segment, plan))
    for start in range(0, len(whole), plan.rows):
        yield Tile(number, tuple(whole[start : start + plan.rows]))


def _flat_tiles(number: int, group: Group, plan: Blueprint, position: _Position) -> Iterator[Tile]:
    """Fill tiles with components one after the other, those with the same numbers together."""
    alike: dict[Hashable, list[Component]] = {}
    for component in group.components:
        alike.setdefault(exact(component.numbers), []).append(component)
    for components in alike.values():
        components.sort(key=lambda component: position((component, 0, 0), plan))
        yield from _filled(number, components, plan)


def _filled(number: int, components: Sequence[Component], plan: Blueprint) -> Iterator[Tile]:
    segments: list[Segment] = []
    room = plan.rows
    for component in components:
        start, size = 0, component.size
        while start < size:
            count = min(room, size - start)
            segments.append((component, start, count))
            start, room = start + count, room - count
            if room == 0:
                yield Tile(number, tuple(segments))
                segments, room = [], plan.rows
    if segments:
        yield Tile(number, tuple(segments))


_CUTTERS: dict[str, Callable[..., Iterator[Tile]]] = {
    "flat": _flat_tiles,
    "reduced": _components,
    "rows": _row_tiles,
    "stack": _stacks,
    "whole": _row_tiles,
}
