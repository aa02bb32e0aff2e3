"""The account of a program before it runs: what is moved, what is computed by which group, and what memory that takes.

Everything follows from headers; the numbers are those of the schedule that a run goes by, so it reports the same.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..compile.pieces import Geometry
from ..compile.program import Component, Group, Program
from ..core.errors import Mark
from ..core.patterns import collapse, spell_ranges, spell_runs, split_numbers
from ..execute.reservations import DEVICE_BYTES, PROCESS_BYTES
from ..execute.schedule import GroupSchedule, Schedule
from ..execute.tasks import Tile
from ..graph.node import Node, Source
from ..kit.base import TensorOp

__all__ = ["Explanation", "GroupAccount", "MoveAccount", "OperationAccount", "explain"]

_KINDS = {"flat": "tiles", "reduced": "reductions", "stack": "stacks"}


@dataclass(frozen=True, slots=True)
class OperationAccount:
    """One operation of a group: its word and the dtypes it takes and gives."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupAccount:
    """One compiled function and all that it is applied to.

    lines: places of the plan, such as `plan.yaml:3-5`. kind: `tiles` (elementwise, in tiles of one length), `rows`,
    `whole`, `stacks` (whole, many in one call), or `sharded` (over devices, since one is too small), with ` on host`
    where NumPy evaluates it. reads, writes: patterns of tensor names. shapes: distinct inputs of a component.
    task_bytes: memory that one task reserves, at most. varies: why results may have other bits on another processor.
    """

    lines: tuple[str, ...]
    kind: str
    operations: tuple[OperationAccount, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    num_components: int
    num_checks: int
    num_tasks: int
    shapes: tuple[str, ...]
    bytes_in: int
    bytes_out: int
    task_bytes: int
    varies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MoveAccount:
    """Tensors, or parts of them, that are copied as bytes: patterns of the names they come from and go to."""

    source: str
    target: str
    lines: tuple[str, ...]
    num_pieces: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """A compiled program in numbers. Sizes in bytes.

    bytes_read is what computing reads and bytes_computed what it writes; bytes_moved is neither. peak_buffer_bytes is a
    bound: the most that the buffers can hold at once with this budget and so many workers. peak_memory_bytes adds what
    the process takes by itself. With questions, which a first pass over the data answers, all amounts are upper bounds.
    """

    groups: tuple[GroupAccount, ...]
    moves: tuple[MoveAccount, ...]
    num_tensors_read: int
    num_compilations: int
    bytes_moved: int
    bytes_read: int
    bytes_computed: int
    peak_buffer_bytes: int
    peak_memory_bytes: int
    memory_bytes: int
    num_workers: int
    num_questions: int

    @property
    def bytes_written(self) -> int:
        """Bytes of all output tensors."""
        return self.bytes_moved + self.bytes_computed

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self) | {"bytes_written": self.bytes_written}


def explain(work: Schedule) -> Explanation:
    """The account of a program as it is scheduled."""
    program, limits = work.program, work.limits
    counts = Counter(task.group for task in work.tasks if isinstance(task, Tile))
    names = _SavedNames(program)
    peak = work.peak_bytes
    return Explanation(
        groups=tuple(_group(group, names, counts[number]) for number, group in enumerate(work.groups)),
        moves=names.moves(),
        num_tensors_read=len(names.sources),
        num_compilations=sum(group.place != "host" for group in work.groups),
        bytes_moved=program.bytes_moved,
        bytes_read=program.bytes_read,
        bytes_computed=program.bytes_computed,
        peak_buffer_bytes=peak,
        peak_memory_bytes=peak + PROCESS_BYTES + (DEVICE_BYTES if _needs_jax(work) else 0),
        memory_bytes=limits.memory,
        num_workers=limits.workers,
        num_questions=len(program.symbolic.questions),
    )


def _needs_jax(work: Schedule) -> bool:
    if not work.program.needs_device:
        return False
    from ..compile.functions import Functions  # with NumPy, which what computes nothing does without
    from ..execute.computing import needs_jax

    functions = Functions()
    return needs_jax(work, [functions.of(part.group, part.blueprint) for part in work.groups])


class _SavedNames:
    """Which names the nodes of a program are saved under, and what its moves are about."""

    def __init__(self, program: Program) -> None:
        self.saved: dict[Node, list[str]] = defaultdict(list)
        self.sources: set[Node] = set()
        self._moved: dict[Any, list[Any]] = defaultdict(list)
        geometry = Geometry()
        for save in program.symbolic.saves:
            for name, node in save.tensors:
                target = split_numbers(name)
                for piece in geometry.pieces(node):
                    if isinstance(piece.node.op, Source):
                        self._move(target, node, piece.node, piece.nbytes)
                        continue
                    parts = program.parts.get(piece.node)
                    for inner in [piece.node] if parts is None else [part.node for part in parts]:
                        if name not in (known := self.saved[inner])[-1:]:
                            known.append(name)
        for group in program.groups:
            for component in group.components:
                pieces = (piece for row in component.inputs for piece in row)
                self.sources.update(piece.node for piece in pieces if isinstance(piece.node.op, Source))

    def _move(self, target: Any, node: Node, origin: Node, nbytes: int) -> None:
        assert isinstance(origin.op, Source)
        self.sources.add(origin)
        source = split_numbers(origin.op.name)
        mark = None if node is origin else node.origin
        self._moved[source[0], target[0]].append((source[1], target[1], mark, nbytes))

    def moves(self) -> tuple[MoveAccount, ...]:
        """Moves by pattern, in the order of the output."""
        return tuple(
            MoveAccount(
                source=spell_ranges(source, (row[0] for row in rows)),
                target=spell_ranges(target, (row[1] for row in rows)),
                lines=spell_lines(row[2] for row in rows),
                num_pieces=len(rows),
                nbytes=sum(row[3] for row in rows),
            )
            for (source, target), rows in self._moved.items()
        )


def _kind(work: GroupSchedule) -> str:
    """How a group is computed, in the words of `GroupAccount`."""
    if work.place == "mesh":
        return "sharded"
    kind = work.blueprint.kind
    return _KINDS.get(kind, kind) + (" on host" if work.place == "host" else "")


def _group(work: GroupSchedule, names: _SavedNames, num_tasks: int) -> GroupAccount:
    group = work.group
    components = group.components
    inputs = dict.fromkeys(label for component in components for label in component.labels)
    nodes = (output.node for component in components for output in component.outputs)
    outputs = dict.fromkeys(name for node in nodes if node is not None for name in names.saved.get(node, ()))
    shapes = dict.fromkeys(
        str(spec) for component in components for spec in (component.specs or component.eqns[0].specs)
    )
    return GroupAccount(
        lines=spell_lines(mark for component in components for mark in _origins(component)),
        kind=_kind(work),
        operations=_operations(group),
        reads=tuple(collapse(inputs)),
        writes=tuple(collapse(outputs)),
        num_components=len(components),
        num_checks=sum(len(checks) for component in components for _, checks in component.checks),
        num_tasks=num_tasks,
        shapes=tuple(shapes),
        bytes_in=group.bytes_in,
        bytes_out=group.bytes_out,
        task_bytes=work.most,
        varies=tuple(_varying(group)),
    )


def _varying(group: Group) -> Iterable[str]:
    """What may have other bits on another processor or backend, a sentence for each reason."""
    told = dict.fromkeys(eqn.op.varies for eqn in group.sample.eqns if eqn.op.varies is not None)
    return (f"{why}; by at most {part:g} of the largest magnitude" for why, part in told)


def _origins(component: Component) -> Iterable[Any]:
    """The places of the plan that demand a component; reading a tensor is none."""
    if component.eqns:
        return component.origins
    nodes = (output.node for output in component.outputs)
    return [node.origin for node in nodes if node is not None and not isinstance(node.op, Source)]


def _operations(group: Group) -> tuple[OperationAccount, ...]:
    specs = group.sample.value_specs()
    computed = [
        OperationAccount(
            name=spell_operation(eqn.op),
            inputs=tuple(specs[arg].dtype.name for arg in eqn.args),
            outputs=() if eqn.op.kind == "check" else tuple(spec.dtype.name for spec in eqn.specs),
        )
        for eqn in group.sample.eqns
    ]
    others: dict[OperationAccount, None] = {}  # what is not computed: numbers that are made, values that are printed
    for output in (output for component in group.components for output in component.outputs):
        dtype = specs[output.value].dtype.name
        if output.node is not None and output.value < len(group.sample.specs) and isinstance(output.node.op, TensorOp):
            others[OperationAccount(spell_operation(output.node.op), (), (dtype,))] = None
        for sink in output.sinks:
            others[OperationAccount(f"print {sink.wants}", (dtype,), ())] = None
    return (*computed, *others)


def spell_operation(op: TensorOp) -> str:
    """The word of an operation; a check is called after its predicate."""
    if op.spellings:
        return op.spellings[0].word
    name = type(op).__name__.lower()
    return f"check {name.removesuffix('mask')}" if op.kind == "check" else name


def spell_lines(marks: Iterable[Any]) -> tuple[str, ...]:
    """Places of the plan by file, neighbouring lines joined: `plan.yaml:3-5,9`."""
    lines: dict[str, set[int]] = defaultdict(set)
    for mark in marks:
        if isinstance(mark, Mark):
            lines[mark.file].add(mark.line)
    return tuple(f"{file}:{spell_runs(numbers)}" for file, numbers in lines.items())
