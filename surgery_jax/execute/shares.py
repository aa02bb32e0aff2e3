"""The tasks of a run as shares of several processes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ..compile.blueprint import Blueprint
from ..compile.program import ByteMove
from ..io.needs import PAGE
from .tasks import MoveTask, Segment, Task, Tile

__all__ = ["Sized", "shares"]

FINEST = 64  # parts of the share of a process: what is less is not cut off from a task


class Sized(NamedTuple):
    """A task with the bytes that it reads and writes."""

    task: Task
    read: int
    written: int

    @property
    def weight(self) -> int:
        """What it adds to the share of a process."""
        return self.read + self.written


def shares(
    tasks: Sequence[Task],
    count: int,
    sized: Callable[[Task], Sized],
    blueprints: Sequence[Blueprint],
    whole_files: Callable[[Task], Iterable[int]] = lambda task: (),
) -> list[list[Sized]]:
    """The tasks of so many processes: neighbours stay together, and the shares come out equal in bytes, which `sized`
    tells of every task and part of one. `blueprints` are those of the groups, and `whole_files` tells to which of those
    files a task writes that one process must write as a whole.

    A task in which one share ends and the next begins is cut there, if it can be and the parts are worth it; else it
    belongs to the share in which its middle lies. So do tasks that have such a file in common, all together.
    """
    units = [([sized(task) for task in unit], is_whole) for unit, is_whole in _units(tasks, whole_files)]
    total = sum(entry.weight for unit, _ in units for entry in unit)
    least = total // count // FINEST
    found: list[list[Sized]] = [[] for _ in range(count)]
    at = 0
    for unit, is_whole in units:
        end = at + sum(entry.weight for entry in unit)
        for number in range(at * count // max(total, 1) + 1, count):
            bound = total * number // count
            if is_whole or bound + least >= end:
                break
            parts = _halves(unit[0], bound - at, blueprints) if bound - at > least else None
            if parts is not None:
                first, left = map(sized, parts)
                found[number - 1].append(first)
                at, unit = at + first.weight, [left]
        found[min((at + end) * count // max(2 * total, 1), count - 1)] += unit
        at = end
    return found


def _units(
    tasks: Sequence[Task], whole_files: Callable[[Task], Iterable[int]]
) -> Iterator[tuple[Sequence[Task], bool]]:
    """Tasks that are not to be parted, in the place of the first of them, and whether none of them may be cut."""
    above: dict[int, int] = {}  # of files that belong together, one that is nearer to the one that stands for all

    def root(file: int) -> int:
        while (higher := above.setdefault(file, file)) != file:
            above[file] = file = above[higher]
        return file

    files = [sorted(set(whole_files(task))) for task in tasks]
    for own in files:
        for file in own[1:]:
            above[root(file)] = root(own[0])
    units: dict[int, list[Task]] = {}  # by what stands for its files; what has none by a number of its own
    for number, (task, own) in enumerate(zip(tasks, files, strict=True)):
        units.setdefault(root(own[0]) if own else -1 - number, []).append(task)
    yield from ((unit, key >= 0) for key, unit in units.items())


def _halves(entry: Sized, weight: int, blueprints: Sequence[Blueprint]) -> tuple[Task, Task] | None:
    """A task in two, the first of about a weight; None if it cannot be cut."""
    task = entry.task
    if isinstance(task, MoveTask) and len(task.moves) == 1:
        (move,) = task.moves
        end = move.offset + move.nbytes * weight // entry.weight
        head = end // PAGE * PAGE - move.offset  # no page of the output is written by two processes
        if 0 < head < move.nbytes:
            rest = ByteMove(move.path, move.source + head, move.file, move.offset + head, move.nbytes - head)
            return MoveTask((move._replace(nbytes=head),)), MoveTask((rest,))
    elif isinstance(task, Tile) and _can_be_cut(task, blueprints[task.group]):
        rows = sum(count for _, _, count in task.segments)
        head = rows * weight // entry.weight
        if 0 < head < rows:
            return _cut_tile(task, head)
    return None


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
