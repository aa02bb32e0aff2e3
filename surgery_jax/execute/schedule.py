"""The schedule of a program: what is done where, in which tasks, with which memory. Pure; opens nothing.

It is made once for a program and its limits, and is what checking, explaining, simulating, executing and sharing among
processes go by. What not all of these need is found on first use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ..compile.blueprint import Blueprint, blueprint, passes_of
from ..compile.pieces import cut
from ..compile.program import Component, Group, Program
from ..compile.sharding import partition
from ..core.cores import usable_cores
from ..core.specs import Spec
from ..graph.node import Node, Source
from ..io.decoded import cache_bytes
from ..io.needs import FAR_PIECE, Needs, footprint, rounded
from ..kit.made import Made
from ..storage.places.base import USUAL_PART
from ..storage.places.found import is_local, place_of
from .keys import TaskKeys
from .reservations import (
    Limits,
    decode_needs,
    device_bytes,
    device_limit,
    encode_needs,
    move_needs,
    peak_bytes,
    piece_bytes,
    tile_limit,
)
from .shares import Sized, shares
from .tasks import MOVE_BYTES, DecodeTask, MoveTask, Task, Tile, plan_tasks

__all__ = ["GroupSchedule", "Place", "Schedule", "schedule"]

Place = Literal["host", "device", "mesh"]


@dataclass(frozen=True, eq=False)
class GroupSchedule:
    """How the tasks of a group are done.

    place: what computes them: NumPy on the `host`, where they only move elements, are complex, or one is too large for
    a device; one `device`; or a `mesh` of several, where one is too small. passes: how often the elements of a
    component are gone over. room: bytes that inputs of a task may take to be held from pass to pass. piece: bytes of
    the buffer for writing. beside: bytes that others allocate for a task: every result, and what making inputs takes.
    hands: how many threads there are for the tiles of a component that is gone over. memory: bytes that tasks have
    together.
    """

    group: Group
    blueprint: Blueprint
    place: Place
    passes: int
    room: int
    piece: int
    beside: int
    hands: int
    memory: int

    def num_tiles(self, component: Component) -> int:
        """Tiles of a component that are gone over several times."""
        return -(-self.blueprint.total(component) // self.blueprint.rows)

    def is_held(self, component: Component) -> bool:
        """Whether the inputs of a component are gone over several times and read once: they fit whole."""
        tiles = self.num_tiles(component) if self.passes > 1 else 0
        return tiles > 0 and sum(rounded(tiles * spec.nbytes) for spec in self.blueprint.specs) <= self.room

    def needs(self, component: Component) -> Needs:
        """What a task reserves: its inputs, a piece for writing, and what others allocate. A task of a reduced group
        has one component, whose inputs come first where they are held; there every hand has a piece, else inputs as
        well. Tasks of any other group need the same, whatever their components are."""
        return self._needs(component, self.num_hands(component))

    def _needs(self, component: Component, hands: int) -> Needs:
        sizes = [spec.nbytes for spec in self.blueprint.specs]
        beside = hands * self.beside + self.blueprint.remembered_bytes(component)
        if self.is_held(component):
            return [*(self.num_tiles(component) * size for size in sizes), *[self.piece] * hands], beside
        return [*sizes, self.piece] * hands, beside

    def num_hands(self, component: Component) -> int:
        """How many threads may be at the tiles of a component at once: no more than what they need leaves room for."""
        hands = min(self.hands, self.num_tiles(component)) if self.blueprint.kind == "reduced" else 1
        while hands > 1 and footprint(self._needs(component, hands)) > self.memory * 3 // 4:
            hands -= 1
        return max(hands, 1)

    def held_bytes(self, component: Component) -> int:
        """Bytes of inputs that a task holds from pass to pass."""
        held = (self.num_tiles(component) * spec.nbytes for spec in self.blueprint.specs)
        return sum(map(rounded, held)) if self.is_held(component) else 0

    @property
    def least(self) -> int:
        """Bytes that a task takes of the budget which holds no inputs: what there must be room for."""
        beside = self.beside + max(map(self.blueprint.remembered_bytes, self.group.components), default=0)
        return footprint(([*(spec.nbytes for spec in self.blueprint.specs), self.piece], beside))

    @property
    def most(self) -> int:
        """Bytes that a task takes of the budget at most."""
        several = self.group.components if self.blueprint.kind == "reduced" else ()
        return max((footprint(self.needs(component)) for component in several), default=self.least)


@dataclass(frozen=True, eq=False)
class Schedule:
    """All work of a program within its limits. Sizes in bytes.

    tasks: in the order in which they are begun. keys: of the tasks, the same in every process and every repetition
    (`execute.keys` says what they cover). groups: how the tasks of each group of the program are done. cached: the part
    of the budget for decoded blocks that are computed with. piece: the buffer through which results are written.
    """

    program: Program
    limits: Limits

    @property
    def held_inputs(self) -> int:
        """The part of the budget that inputs may take together which are held from pass to pass: more is left to what
        passes by, and to what compiled functions and the C library take that nobody counts."""
        return self.memory * 3 // 8

    def holding(self, task: Task) -> int:
        """What a task takes of that."""
        if not isinstance(task, Tile):
            return 0
        return self.groups[task.group].held_bytes(task.segments[0][0])

    @property
    def hands(self) -> int:
        """Threads that may be at work on one component at once."""
        return max(1, min(self.limits.workers, usable_cores()))

    @cached_property
    def cached(self) -> int:
        return cache_bytes(self.program, self.limits.memory)

    @property
    def memory(self) -> int:
        """The part of the budget from which tasks reserve."""
        return self.limits.memory - self.cached - self.parted - self.held

    @cached_property
    def parted(self) -> int:
        """The part of the budget for parts of outputs that are held until they are whole, at places that take such."""
        is_parted = any(place_of(path).holds_parts for path in self.program.files)
        return max(self.limits.memory // 4, USUAL_PART) if is_parted else 0

    @cached_property
    def held(self) -> int:
        """The part of the budget for tensors that several components read: those that tasks which follow one another
        read at once. Where it would be too large, they are read again, from the page cache if there is one."""
        sizes = (node.spec.nbytes for node in self.repeated if isinstance(node.op, Source) and node.op.entry.extent)
        largest, room = max(sizes, default=0), self.limits.memory // 8
        return min(2 * largest, room) if largest <= room else 0

    @property
    def piece(self) -> int:
        return piece_bytes(self.limits.memory, self.limits.workers)

    @cached_property
    def moving(self) -> int:
        """The buffer through which bytes are moved: one of several requests, if it is by requests that they come."""
        # what is hashed while it is written comes in pieces, none of them far ahead of the others
        is_near = self.limits.in_order or all(map(is_local, {move.path for move in self.program.moves}))
        return self.piece if is_near else piece_bytes(self.limits.memory, self.limits.workers, FAR_PIECE)

    @cached_property
    def groups(self) -> tuple[GroupSchedule, ...]:
        return tuple(map(self._group, self.program.groups))

    def _group(self, group: Group) -> GroupSchedule:
        limit = tile_limit(self.memory, self.limits.workers)
        plan = blueprint(group, limit if group.on_host else min(limit, device_limit(self.limits)))
        beside = plan.produced_bytes + _making_bytes(group)
        passes = passes_of(group, plan).number if plan.kind == "reduced" else 1
        remembered = max(map(plan.remembered_bytes, group.components), default=0)
        room = min(self.held_inputs, self.memory - rounded(self.piece) - beside - remembered)
        place = self._place(group, plan)
        return GroupSchedule(group, plan, place, passes, room, self.piece, beside, self.hands, self.memory)

    def _place(self, group: Group, plan: Blueprint) -> Place:
        if group.on_host:
            return "host"
        if device_bytes(plan) <= self.limits.device:
            return "device"
        return "host" if partition(plan) is None else "mesh"

    @cached_property
    def blueprints(self) -> tuple[Blueprint, ...]:
        """What one task of every group computes."""
        return tuple(work.blueprint for work in self.groups)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        # of several outputs, those tasks come together that read the same tensors of a base
        in_order = self.limits.in_order and len(self.program.symbolic.saves) == 1
        # who has to wait before it is hashed what it copied should have written all of it
        most = self.piece if in_order else MOVE_BYTES
        return tuple(plan_tasks(self.program, self.blueprints, by_output=in_order or self.parted > 0, most=most))

    @cached_property
    def repeated(self) -> frozenset[Node]:
        """Tensors of files that several components read, each by itself: what the jobs of a batch have in common where
        they are not elementwise. A program with one output has none that would be worth looking for."""
        if len(self.program.symbolic.saves) == 1:
            return frozenset()
        readers = Counter(
            node
            for group in self.program.groups
            for component in group.components
            for node in {piece.node for pieces in component.inputs for piece in pieces}
        )
        return frozenset(node for node, count in readers.items() if count > 1 and isinstance(node.op, Source))

    # -- what a task needs ----------------------------------------------------------------------------------------

    def needs(self, task: Task) -> Needs:
        """The memory that a task reserves."""
        if isinstance(task, MoveTask):
            return move_needs(self.moving), 0
        if isinstance(task, DecodeTask):
            return decode_needs(task.source.entry, self.piece)
        return self.groups[task.group].needs(task.segments[0][0])

    @property
    def encodings(self) -> Iterator[tuple[str, Needs]]:
        """Files that are encoded as a whole once they are full, with what that reserves."""
        return ((path, encode_needs(size, workspace)) for path, size, workspace in self.program.encoded)

    @property
    def peak_bytes(self) -> int:
        """The most that buffers can hold at once: a bound."""
        footprints = [footprint(needs) for _, needs in self.encodings]
        footprints += [footprint(self.needs(task)) for task in self.tasks]
        return self.cached + self.parted + self.held + peak_bytes(footprints, self.memory, self.limits.workers)

    # -- what a task reads and writes -----------------------------------------------------------------------------

    def sized(self, task: Task) -> Sized:
        """A task with the bytes that it reads from files and writes to them. Rows that it only computes once more, and
        elements that it goes over again, are read all the same."""
        if isinstance(task, MoveTask):
            return Sized(task, task.nbytes, task.nbytes)
        if isinstance(task, DecodeTask):
            read = Spec((task.count,), task.source.entry.spec.dtype).nbytes
            return Sized(task, read, sum(nbytes for *_, nbytes in task.parts))
        return self._sized_tile(task)

    def _sized_tile(self, tile: Tile) -> Sized:
        work = self.groups[tile.group]
        plan, values = work.blueprint, work.blueprint.value_specs()
        read = written = 0
        for component, first, count in tile.segments:
            for spec, pieces in zip(plan.specs, component.inputs, strict=True):
                width = spec.nbytes // plan.rows
                cuts = cut(pieces, first * width, count * width)
                read += sum(piece.nbytes for piece in cuts if isinstance(piece.node.op, Source))
            for number, output in zip(plan.leaving, component.outputs, strict=True):
                width = values[number].nbytes // plan.rows
                begin, end = (first + tile.seen) * width, (first + count) * width
                written += sum(max(0, min(d.start + d.nbytes, end) - max(d.start, begin)) for d in output.dests)
        is_read_again = work.passes > 1 and not work.is_held(tile.segments[0][0])
        return Sized(tile, read * work.passes if is_read_again else read, written)

    def read_once(self, tasks: Iterable[Sized]) -> Iterator[Sized]:
        """Tasks of one process, of which those that read what another has just read take it from memory."""
        known = set[tuple[Node, int]]()
        for entry in tasks:
            again = 0
            if self.repeated and isinstance(entry.task, Tile):
                plan = self.groups[entry.task.group].blueprint
                for component, first, count in entry.task.segments:
                    for spec, pieces in zip(plan.specs, component.inputs, strict=True):
                        width = spec.nbytes // plan.rows
                        for piece in cut(pieces, first * width, count * width):
                            if piece.node in self.repeated:
                                again += piece.nbytes if (piece.node, piece.start) in known else 0
                                known.add((piece.node, piece.start))
            yield entry._replace(read=max(0, entry.read - again))

    def places(self, task: Task) -> Iterator[tuple[int, int, int]]:
        """Where a task writes: number of the output file, offset there, bytes."""
        if isinstance(task, MoveTask):
            yield from ((move.file, move.offset, move.nbytes) for move in task.moves)
        elif isinstance(task, DecodeTask):
            yield from ((file, offset, nbytes) for _, file, offset, nbytes in task.parts)
        else:
            plan = self.blueprints[task.group]
            values = plan.value_specs()
            for component, first, count in task.segments:
                is_whole = first + task.seen == 0 and count == plan.total(component)
                for number, output in zip(plan.leaving, component.outputs, strict=True):
                    width = values[number].nbytes // plan.rows
                    begin, end = (first + task.seen) * width, (first + count) * width
                    for dest in output.dests:
                        span = (dest.start, dest.nbytes) if is_whole else (begin, end - begin)
                        yield from ((dest.file, offset, nbytes) for _, offset, nbytes in dest.parts(*span))

    def amounts(self, tasks: Sequence[Task]) -> tuple[int, int, int]:
        """Bytes that tasks move, that they read for computing, and that computing writes."""
        if tasks is self.tasks and not self.repeated:
            return self.program.bytes_moved, self.program.bytes_read, self.program.bytes_computed
        moved = sum(self.sized(task).written for task in tasks if not isinstance(task, Tile))
        tiles = list(self.read_once(self.sized(task) for task in tasks if isinstance(task, Tile)))
        return moved, sum(tile.read for tile in tiles), sum(tile.written for tile in tiles)

    def advance(self, task: Task) -> int:
        """Bytes by which a task brings a run forward: those that it moves, or of all its inputs, once."""
        if isinstance(task, MoveTask):
            return task.nbytes
        if isinstance(task, DecodeTask):
            return sum(nbytes for *_, nbytes in task.parts)
        plan = self.blueprints[task.group]
        return task.num_fresh * sum(spec.nbytes for spec in plan.specs) // plan.rows

    def shares(self, count: int, tasks: Sequence[Task] | None = None) -> list[list[Sized]]:
        """The tasks, or these of them, as shares of so many processes: every byte of the outputs is written by one of
        them, and every file that is encoded as a whole by one."""
        return shares(self.tasks if tasks is None else tasks, count, self.sized, self.blueprints, self._whole_files)

    @cached_property
    def _encoded(self) -> frozenset[int]:
        """Numbers of the files that are encoded as a whole."""
        names = {path for path, _, _ in self.program.encoded}
        return frozenset(number for number, path in enumerate(self.program.files) if path in names)

    def _whole_files(self, task: Task) -> Iterator[int]:
        if not self._encoded:
            return iter(())
        return (file for file, _, nbytes in self.places(task) if nbytes and file in self._encoded)

    # -- names that last ------------------------------------------------------------------------------------------

    @cached_property
    def _keys(self) -> TaskKeys:
        return TaskKeys(self.program.files, self.blueprints)

    def key(self, task: Task) -> str:
        """The key of a task, or of a part of one that a process has as its share."""
        return self._keys.of(task)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return tuple(map(self.key, self.tasks))

    @cached_property
    def tensor_keys(self) -> tuple[Mapping[str, str], ...]:
        """For every output, the keys of its tensors by name: what each of them is, wherever it comes to lie."""
        saves = self.program.symbolic.saves
        return tuple({name: self._keys.computations.of(node).hex() for name, node in save.tensors} for save in saves)


def schedule(program: Program, limits: Limits) -> Schedule:
    """The schedule of a program within limits."""
    return Schedule(program, limits)


def _making_bytes(group: Group) -> int:
    """What making the inputs of a task takes beside them."""
    nodes = (piece.node for component in group.components for pieces in component.inputs for piece in pieces)
    return max((node.op.scratch_bytes for node in nodes if isinstance(node.op, Made)), default=0)
