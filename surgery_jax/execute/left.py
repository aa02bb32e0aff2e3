"""What is left to do of a schedule of which another run has done a part. Pure; opens nothing.

That run may have had other budgets, workers and processes, and so other tiles: what it has done is known as ranges of
bytes of the outputs. A task is done if all that it writes is there. One whose results were looked at, by checks and
sinks, is done only if what was found is known of the very same task, since sums are rounded and must be of its rows.
"""

from __future__ import annotations

import base64
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from .schedule import Schedule
from .tasks import Task, Tile

__all__ = ["Done", "is_looked_at", "left"]

Place = tuple[int, int, int]  # number of an output file, offset there, number of bytes


class Done:
    """Ranges of bytes of output files that are in their place, and what was found by tasks that were looked at, by
    their keys."""

    def __init__(self, ranges: Iterable[Place] = (), found: Mapping[str, bytes] | None = None) -> None:
        self.found = dict(found or {})
        self._begins: dict[int, list[int]] = {}
        self._ends: dict[int, list[int]] = {}
        for file, offset, nbytes in sorted(ranges):
            begins, ends = self._begins.setdefault(file, []), self._ends.setdefault(file, [])
            if ends and offset <= ends[-1]:
                ends[-1] = max(ends[-1], offset + nbytes)
            else:
                begins.append(offset)
                ends.append(offset + nbytes)

    @property
    def ranges(self) -> list[Place]:
        """All of them, neighbours joined."""
        return [
            (file, begin, end - begin)
            for file, begins in self._begins.items()
            for begin, end in zip(begins, self._ends[file], strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes that are in their place."""
        return sum(nbytes for _, _, nbytes in self.ranges)

    def packed(self) -> bytes:
        """All of it, for other processes."""
        found = {key: base64.b85encode(what).decode() for key, what in self.found.items()}
        return json.dumps([self.ranges, found]).encode()

    @classmethod
    def unpacked(cls, packed: bytes) -> Done:
        """What `packed` gave."""
        ranges, found = json.loads(packed)
        return cls(map(tuple, ranges), {key: base64.b85decode(what) for key, what in found.items()})

    def has(self, place: Place) -> bool:
        """Whether all of a range is in its place."""
        file, offset, nbytes = place
        at = bisect_right(self._begins.get(file, ()), offset) - 1
        return nbytes == 0 or (at >= 0 and offset + nbytes <= self._ends[file][at])


def left(work: Schedule, done: Done) -> tuple[Sequence[Task], Sequence[bytes]]:
    """The tasks that are not done, in their order, and what was found by those that are."""
    if not done.ranges and not done.found:
        return work.tasks, ()
    tasks: list[Task] = []
    found: list[bytes] = []
    for task in work.tasks:
        key = work.key(task) if done.found and is_looked_at(task) else ""
        if (is_looked_at(task) and key not in done.found) or not all(map(done.has, work.places(task))):
            tasks.append(task)
        elif key:
            found.append(done.found[key])
    return tasks, found


def is_looked_at(task: Task) -> bool:
    """Whether checks or sinks want to see what a task computes."""
    return isinstance(task, Tile) and any(
        component.checks or any(output.sinks for output in component.outputs) for component, _, _ in task.segments
    )
