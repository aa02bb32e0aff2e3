"""Keys of tasks: the same in every process, and whenever the same plan is run on the same inputs.

The key of a task covers what it reads, what it computes (`compile.keys`), which part of that it does, and where in
which output files that goes, by their paths as the plan names them. What is cut alike has the same key under any budget
and with any number of workers and processes: moves, decoded blocks, components that a task computes whole or reduces.
Tiles are as long as the budget allows, and a process may get a part of one: these are other tasks, with other keys.
Nothing else of a plan is in a key, so steps that have no part in a task do not change it while its output keeps its
place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..compile.blueprint import Blueprint
from ..compile.keys import ComputationKeys, stored_key
from ..compile.program import Component
from ..core.digests import digest, encoded
from .tasks import DecodeTask, MoveTask, Task, Tile

__all__ = ["TaskKeys"]


class TaskKeys:
    """The keys of the tasks of one program: `files` are the paths of its outputs by number, `blueprints` those of its
    groups."""

    def __init__(self, files: Sequence[str], blueprints: Sequence[Blueprint]) -> None:
        self.computations = ComputationKeys()
        self._files = [encoded(path) for path in files]
        self._blueprints = blueprints
        self._components: dict[Component, bytes] = {}

    def of(self, task: Task) -> str:
        """The key of a task, in hexadecimal digits."""
        return digest(*self._parts(task)).hex()

    def _parts(self, task: Task) -> Iterable[bytes]:
        if isinstance(task, MoveTask):
            yield b"move"
            for path, source, file, offset, nbytes in task.moves:
                yield encoded(path)
                yield self._files[file]
                yield b"%d %d %d" % (source, offset, nbytes)
        elif isinstance(task, DecodeTask):
            yield b"decode"
            yield stored_key(task.source)
            yield b"%d %d" % (task.first, task.count)
            for begin, file, offset, nbytes in sorted(task.parts):
                yield self._files[file]
                yield b"%d %d %d" % (begin, offset, nbytes)
        else:
            yield b"tile"
            yield from self._segments(task)

    def _segments(self, tile: Tile) -> Iterable[bytes]:
        """What of each component is computed for the first time; all of one is the same however it is counted."""
        plan = self._blueprints[tile.group]
        for component, first, count in tile.segments:
            first, count = first + tile.seen, count - tile.seen
            yield self._component(component)
            yield b"all" if first == 0 and count == plan.total(component) else b"%d %d" % (first, count)

    def _component(self, component: Component) -> bytes:
        """The key of a component and of where its outputs go."""
        found = self._components.get(component)
        if found is None:
            places = []
            for output in component.outputs:
                parts = [] if output.node is None else [self.computations.of(output.node)]
                for dest in output.dests:
                    parts += [self._files[dest.file], b"%d %d %d %d %d" % dest[1:]]
                places.append(digest(*parts))
            found = self._components[component] = digest(self.computations.of_component(component), *sorted(places))
        return found
