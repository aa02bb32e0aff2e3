"""What is done in which order: tiles, whole components and moves, sorted by where their bytes lie. Pure;
opens nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..compile.program import Component, Group, Move, Program
from ..graph.node import Source

__all__ = ["MoveTask", "Tile", "WholeTask", "plan_tasks", "tile_length"]

MOVE_BYTES = 32 << 20  # of one copy: long enough to be efficient, short enough to share among workers and show progress
TILE = 1 << 20  # elements: a few MB of every input stay in the processor's cache between reading and computing
SMALLEST_TILE = 1 << 10


@dataclass(frozen=True, slots=True)
class MoveTask:
    """Copy bytes from file to file."""

    move: Move


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive elements of components of a flat group, with equal numbers: (component, first element, count)."""

    group: int
    length: int
    segments: tuple[tuple[Component, int, int], ...]


@dataclass(frozen=True, slots=True)
class WholeTask:
    """One component that needs its tensors whole."""

    group: int
    component: Component


Task = MoveTask | Tile | WholeTask


def tile_length(group: Group, limit: int) -> int:
    """Elements of a tile of a flat group whose buffers may take `limit` bytes; one length for the whole group."""
    total = sum(component.size for component in group.components)
    per_element = sum(spec.dtype.itemsize for spec in group.sample.value_specs())
    length = TILE
    while length > SMALLEST_TILE and length * per_element > limit:
        length //= 2
    while length > SMALLEST_TILE and length // 2 >= total:
        length //= 2
    return length


def plan_tasks(program: Program, limit: int) -> list[Task]:
    """All tasks in the order of the bytes they read first. `limit` bounds the bytes of one tile."""
    tasks: list[tuple[tuple[str, int], Task]] = []
    for move in program.moves:
        for start in range(0, move.nbytes, MOVE_BYTES):
            count = min(MOVE_BYTES, move.nbytes - start)
            part = Move(move.path, move.source + start, move.file, move.offset + start, count)
            tasks.append(((part.path, part.source), MoveTask(part)))
    for number, group in enumerate(program.groups):
        if group.flat:
            tasks += [
                (_position(tile.segments[0][0], tile.segments[0][1]), tile) for tile in _tiles(number, group, limit)
            ]
        else:
            tasks += [(_position(component, 0), WholeTask(number, component)) for component in group.components]
    tasks.sort(key=lambda entry: entry[0])
    return [task for _, task in tasks]


def _position(component: Component, element: int) -> tuple[str, int]:
    """File and offset of the first input."""
    for spec, pieces in zip(component.specs, component.inputs, strict=True):
        for piece in pieces:
            entry = piece.node.op.entry if isinstance(piece.node.op, Source) else None
            if entry is not None and entry.extent is not None:
                return entry.extent.path, entry.extent.offset + piece.start + element * spec.dtype.itemsize
    return "", 0


def _tiles(number: int, group: Group, limit: int) -> Iterator[Tile]:
    """Fill tiles with components one after the other; a new tile begins where the numbers change."""
    length = tile_length(group, limit)
    ordered = sorted(group.components, key=lambda component: (component.numbers, _position(component, 0)))
    segments: list[tuple[Component, int, int]] = []
    room = length
    for component in ordered:
        if segments and segments[-1][0].numbers != component.numbers:
            yield Tile(number, length, tuple(segments))
            segments, room = [], length
        start, size = 0, component.size
        while start < size:
            count = min(room, size - start)
            segments.append((component, start, count))
            start, room = start + count, room - count
            if room == 0:
                yield Tile(number, length, tuple(segments))
                segments, room = [], length
    if segments:
        yield Tile(number, length, tuple(segments))
