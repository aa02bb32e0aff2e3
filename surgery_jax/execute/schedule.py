"""What is done in which order: tiles, whole components and moves, sorted by where their bytes lie. Pure;
opens nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..compile.blueprint import Blueprint, flat_blueprint, row_bytes, rows_blueprint, stack_blueprint, whole_blueprint
from ..compile.pieces import Piece, cut
from ..compile.program import Component, Group, Move, Program
from ..core.exact import exact
from ..core.specs import Spec
from ..graph.node import Source
from ..io.decoded import cache_bytes, covering
from ..io.needs import LEAST_PIECE, PAGE
from ..kit.reduction import tile_length
from .reservations import Limits, device_limit, tile_limit

__all__ = [
    "DecodeTask",
    "MoveTask",
    "Segment",
    "Sized",
    "Task",
    "Tile",
    "blueprint",
    "blueprints",
    "plan_tasks",
    "shares",
    "task_bytes",
]

SHORT_MOVE = 64 << 10  # moves below this are gathered in memory,
GATHERED = LEAST_PIECE - PAGE  # so many bytes at a time: the buffer begins where the page of the file does
MOVE_BYTES = 32 << 20  # of one copy: long enough to be efficient, short enough to share among workers and show progress
TILE = 4 << 20  # bytes of the widest input or output of a tile: enough that what a call costs by itself does not count
SMALLEST_TILE = 1 << 10
FINEST = 64  # parts of the share of a process: what is less is not cut off from a task


@dataclass(frozen=True, slots=True)
class MoveTask:
    """Copy bytes from file to file: one long range, or short ones that are neighbours where they go."""

    moves: tuple[Move, ...]

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


Task = MoveTask | DecodeTask | Tile


def blueprints(program: Program, limits: Limits) -> list[Blueprint]:
    """What one task of every group computes within the budgets."""
    limit = tile_limit(limits.memory - cache_bytes(program, limits.memory), limits.workers)
    return [blueprint(group, limit if group.on_host else min(limit, device_limit(limits))) for group in program.groups]


def blueprint(group: Group, limit: int) -> Blueprint:
    """What one task of a group computes when its buffers may take `limit` bytes; one blueprint for the whole group."""
    if group.flat:
        length = _tile_length(group, limit)
        return flat_blueprint(group, tile_length(length) if group.reduces else length)
    whole = whole_blueprint(group)
    if sum(spec.nbytes for spec in whole.specs) + whole.produced_bytes > limit:
        per_row = row_bytes(group)
        if per_row is not None and per_row > 0:
            length = whole.specs[0].shape[0]
            return rows_blueprint(group, min(max(limit // per_row, 1), length)) or whole
        return whole
    return stack_blueprint(group, limit) or whole


def _tile_length(group: Group, limit: int) -> int:
    """Elements of a tile of a flat group."""
    total = sum(component.size for component in group.components)
    values = group.sample.value_specs()
    per_element = sum(spec.dtype.itemsize for spec in values)
    crossing = [*group.sample.specs, *(values[output.value] for output in group.sample.outputs)]
    length = TILE // max((spec.dtype.itemsize for spec in crossing), default=1)
    while length > SMALLEST_TILE and length * per_element > limit:
        length //= 2
    while length > SMALLEST_TILE and length // 2 >= total:
        length //= 2
    return length


def plan_tasks(program: Program, blueprints: Sequence[Blueprint]) -> list[Task]:
    """All tasks in the order of the bytes they read first, in the file that most of them read: those that read the same
    tensor of a base come together. `blueprints` are those of the groups."""
    tasks: list[tuple[tuple[str, int], Task]] = []
    for moves in _gathered(program.moves):
        first = moves[0]
        for start in range(0, first.nbytes, MOVE_BYTES) if len(moves) == 1 else ():
            count = min(MOVE_BYTES, first.nbytes - start)
            part = Move(first.path, first.source + start, first.file, first.offset + start, count)
            tasks.append(((part.path, part.source), MoveTask((part,))))
        if len(moves) > 1:
            tasks.append(((first.path, first.source), MoveTask(moves)))
    tasks += [(("", 0), task) for task in _decode_tasks(program)]
    components = (component for group in program.groups for component in group.components)
    readers = Counter(path for component in components for path in {path for path, _ in _stored(component)})
    for number, (group, plan) in enumerate(zip(program.groups, blueprints, strict=True)):
        tiles = _CUTTERS[plan.kind](number, group, plan, readers)
        tasks += [(_position(tile.segments[0], plan, readers), tile) for tile in tiles]
    tasks.sort(key=lambda entry: entry[0])
    return [task for _, task in tasks]


def _gathered(moves: Sequence[Move]) -> Iterator[tuple[Move, ...]]:
    """Moves, short ones that are neighbours where they go taken together: a write costs more than a read."""
    short = sorted((move for move in moves if move.nbytes < SHORT_MOVE), key=lambda move: (move.file, move.offset))
    yield from ((move,) for move in moves if move.nbytes >= SHORT_MOVE)
    together: list[Move] = []
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


def _row_tiles(number: int, group: Group, plan: Blueprint, _: Mapping[str, int]) -> Iterator[Tile]:
    """Tiles of one component each; the last one of a component begins early enough to be as long as the others."""
    for component in group.components:
        total = plan.total(component)
        for start in range(0, total, plan.rows):
            first = min(start, total - plan.rows)
            yield Tile(number, ((component, first, plan.rows),), start - first)


def _components(number: int, group: Group, plan: Blueprint, _: Mapping[str, int]) -> Iterator[Tile]:
    """A whole component each, which its task cuts into tiles: partial results are brought together in its order."""
    for component in group.components:
        yield Tile(number, ((component, 0, component.size),))


def _stacks(number: int, group: Group, plan: Blueprint, readers: Mapping[str, int]) -> Iterator[Tile]:
    """Fill stacks with components that lie near each other."""
    whole = [(component, 0, 1) for component in group.components]
    whole.sort(key=lambda segment: _position(segment, plan, readers))
    for start in range(0, len(whole), plan.rows):
        yield Tile(number, tuple(whole[start : start + plan.rows]))


def _flat_tiles(number: int, group: Group, plan: Blueprint, readers: Mapping[str, int]) -> Iterator[Tile]:
    """Fill tiles with components one after the other, those with the same numbers together."""
    alike: dict[Hashable, list[Component]] = {}
    for component in group.components:
        alike.setdefault(exact(component.numbers), []).append(component)
    for components in alike.values():
        components.sort(key=lambda component: _position((component, 0, 0), plan, readers))
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


def task_bytes(task: Task, blueprints: Sequence[Blueprint]) -> tuple[int, int]:
    """Bytes that a task reads and writes. Rows that it only computes once more are read all the same."""
    if isinstance(task, MoveTask):
        return task.nbytes, task.nbytes
    if isinstance(task, DecodeTask):
        return Spec((task.count,), task.source.entry.spec.dtype).nbytes, sum(nbytes for *_, nbytes in task.parts)
    plan = blueprints[task.group]
    values = plan.value_specs()
    read = written = 0
    for component, first, count in task.segments:
        for spec, pieces in zip(plan.specs, component.inputs, strict=True):
            width = spec.nbytes // plan.rows
            cuts = cut(pieces, first * width, count * width)
            read += sum(piece.nbytes for piece in cuts if isinstance(piece.node.op, Source))
        for number, output in zip(plan.leaving, component.outputs, strict=True):
            width = values[number].nbytes // plan.rows
            begin, end = (first + task.seen) * width, (first + count) * width
            written += sum(max(0, min(d.start + d.nbytes, end) - max(d.start, begin)) for d in output.dests)
    return read, written


class Sized(NamedTuple):
    """A task with the bytes that it reads and writes."""

    task: Task
    read: int
    written: int

    @property
    def weight(self) -> int:
        """What it adds to the share of a process."""
        return self.read + self.written


def shares(tasks: Sequence[Task], blueprints: Sequence[Blueprint], count: int) -> list[list[Sized]]:
    """The tasks of so many processes: neighbours stay together, and the shares come out equal in bytes.

    A task in which one share ends and the next begins is cut there, if it can be and the parts are worth it; else it
    belongs to the share in which its middle lies.
    """
    sized = [Sized(task, *task_bytes(task, blueprints)) for task in tasks]
    total = sum(entry.weight for entry in sized)
    least = total // count // FINEST
    found: list[list[Sized]] = [[] for _ in range(count)]
    at = 0
    for entry in sized:
        end, left = at + entry.weight, entry
        for number in range(at * count // max(total, 1) + 1, count):
            bound = total * number // count
            if bound + least >= end:
                break
            parts = _halves(left, bound - at, blueprints) if bound - at > least else None
            if parts is not None:
                found[number - 1].append(parts[0])
                left, at = parts[1], at + parts[0].weight
        found[min((at + end) * count // max(2 * total, 1), count - 1)].append(left)
        at = end
    return found


def _halves(entry: Sized, weight: int, blueprints: Sequence[Blueprint]) -> tuple[Sized, Sized] | None:
    """A task in two, the first of about a weight; None if it cannot be cut."""
    task = entry.task
    parts: tuple[Task, Task] | None = None
    if isinstance(task, MoveTask) and len(task.moves) == 1:
        (move,) = task.moves
        end = move.offset + move.nbytes * weight // entry.weight
        head = end // PAGE * PAGE - move.offset  # no page of the output is written by two processes
        if 0 < head < move.nbytes:
            rest = Move(move.path, move.source + head, move.file, move.offset + head, move.nbytes - head)
            parts = MoveTask((move._replace(nbytes=head),)), MoveTask((rest,))
    elif isinstance(task, Tile) and _can_be_cut(task, blueprints[task.group]):
        rows = sum(count for _, _, count in task.segments)
        head = rows * weight // entry.weight
        if 0 < head < rows:
            parts = _cut_tile(task, head)
    if parts is None:
        return None
    first, second = (Sized(part, *task_bytes(part, blueprints)) for part in parts)
    return first, second


def _can_be_cut(tile: Tile, plan: Blueprint) -> bool:
    """Whether some of its rows may be computed without the others. Where statistics of elements are wanted they may
    not: their sums are rounded, and must not depend on where a tile is cut."""
    if plan.kind == "stack":
        return True
    is_looked_at = any(output.sinks for component, _, _ in tile.segments for output in component.outputs)
    return plan.kind == "flat" and not is_looked_at


def _cut_tile(tile: Tile, rows: int) -> tuple[Tile, Tile]:
    """The first rows of a tile, and the others."""
    before: list[Segment] = []
    after: list[Segment] = []
    for component, first, count in tile.segments:
        here = min(count, rows)
        before += [(component, first, here)] if here else []
        after += [(component, first + here, count - here)] if here < count else []
        rows -= here
    return Tile(tile.group, tuple(before)), Tile(tile.group, tuple(after))
