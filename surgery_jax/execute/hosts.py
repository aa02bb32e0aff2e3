"""One run on several processes: they make sure that they mean the same, take shares of the tasks, and bring together
what they found. Every exchange here is one that all processes make."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar

from ..compile.blueprint import Blueprint
from ..compile.program import Program
from ..core.errors import PlanError, SurgeryError
from ..graph.node import Source
from ..graph.roots import Symbolic
from .options import Options
from .peers import Peers
from .schedule import DecodeTask, MoveTask, Task, plan_tasks, shares
from .verdicts import Findings

if TYPE_CHECKING:
    from ..storage.base import Layout
    from ..storage.formats import OutputPlan

__all__ = ["Part", "agree", "agreed_options", "bring_together", "together"]

T = TypeVar("T")
Outputs = Sequence[tuple["OutputPlan", "Layout"]]


def together(peers: Peers, make: Callable[[], T]) -> T:
    """What `make` gives, once it has succeeded in all processes.

    Raises:
        SurgeryError: it failed in this one, or in another.
    """
    error, made = None, None
    try:
        made = make()
    except SurgeryError as found:
        if peers.size == 1:
            raise
        error = found
    said = {} if error is None else {"exit_code": error.exit_code, "problem": str(error)}
    for rank, message in enumerate(peers.gather(json.dumps(said).encode())):
        if error is not None:
            raise error
        other = json.loads(message)
        if other:
            failure = SurgeryError(f"{peers.name(rank)}: {other['problem']}")
            failure.exit_code = other["exit_code"]
            raise failure
    peers.share()
    assert made is not None
    return made


def agreed_options(peers: Peers, options: Options) -> Options:
    """The options of process 0, in what decides how the work is cut.

    Raises:
        PlanError: those of this process differ.
    """
    if peers.size == 1:
        return options
    names = ("memory_bytes", "device_memory", "shard_size", "overwrite", "sync")
    compare(peers, {f"option {name.removesuffix('_bytes')}": str(getattr(options, name)) for name in names})
    workers = int(peers.share(str(options.num_workers).encode()))
    return dataclasses.replace(options, workers=options.workers or workers)


def agree(peers: Peers, symbolic: Symbolic, outputs: Outputs) -> None:
    """Make sure that all processes run the same programs and see the same headers and outputs.

    Raises:
        PlanError: one of them does not, or an output is one that a single process must write.
    """
    if peers.size > 1:
        for output, layout in outputs:
            if any(file.encode is not None for file in layout.files):  # the last byte may come from any process
                raise PlanError(
                    f"{output.path}: files that are compressed as a whole cannot be written by several processes",
                    found=f"{peers.size} processes",
                    hint="leave out the compression, or use one process",
                )
        compare(peers, versions())
        facts = {"the headers of the inputs": headers_digest(symbolic), "the outputs": outputs_digest(outputs)}
        compare(peers, facts)


def compare(peers: Peers, facts: Mapping[str, str]) -> None:
    """Make sure that facts are the same in all processes.

    Raises:
        PlanError: one of them differs somewhere.
    """
    for rank, message in enumerate(peers.gather(json.dumps(facts).encode())):
        for name, value in json.loads(message).items():
            if value != facts[name]:
                raise PlanError(
                    f"{peers.name(rank)} differs in: {name}",
                    expected=f"{facts[name]}, as in process 0",
                    found=value,
                    hint="all processes need the same program, the same plan and the same files",
                )
    peers.share()


def versions() -> dict[str, str]:
    """What computes."""
    found = {"python": platform.python_version()}
    for name in ("surgery-jax", "jax", "jaxlib", "numpy", "ml_dtypes"):
        try:
            found[f"version of {name}"] = version(name)
        except PackageNotFoundError:
            found[f"version of {name}"] = "not installed"
    return found


def headers_digest(symbolic: Symbolic) -> str:
    """A digest of what the headers say of all tensors that are used, and of what happens to them."""
    lines = []
    for node in symbolic.stored():
        assert isinstance(node.op, Source)
        lines.append(f"{node.op.name} {node.spec} {node.op.entry.spec} {node.op.entry.extent}")
    return _digest(lines)


def outputs_digest(outputs: Outputs) -> str:
    """A digest of which files are written, and what belongs where."""
    lines = []
    for output, layout in outputs:
        lines.append(f"{output.path} {output.format.name} {output.is_directory}")
        lines += [f"{file.name} {file.size} {[(at, len(data)) for at, data in file.fixed]}" for file in layout.files]
        lines += [f"{name} {place}" for name, place in layout.places.items()]
        lines += [f"{name} {parts}" for name, parts in layout.rest.items()]
    return _digest(lines)


def _digest(lines: Iterable[str]) -> str:
    made = hashlib.sha256()
    for line in lines:
        made.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return made.hexdigest()


@dataclass
class Part:
    """The tasks of one process of several, and what they amount to."""

    peers: Peers
    program: Program
    nbytes: int = 0  # read for them
    written: int = 0
    files: frozenset[int] = frozenset()  # written to

    def tasks(self, plans: Sequence[Blueprint]) -> Sequence[Task]:
        """The share of this process.

        Raises:
            PlanError: another process has planned other tasks.
        """
        tasks = plan_tasks(self.program, plans)
        compare(self.peers, {"tasks": _digest(_spelled(self.program, tasks))})
        own = shares(tasks, plans, self.peers.size)[self.peers.rank]
        self.nbytes = sum(entry.read for entry in own)
        self.written = sum(entry.written for entry in own)
        self.files = frozenset(file for entry in own for file in _files(entry.task))
        return [entry.task for entry in own]


def _files(task: Task) -> Iterable[int]:
    if isinstance(task, MoveTask):
        yield task.moves[0].file
    elif isinstance(task, DecodeTask):
        yield from (file for _, file, _, _ in task.parts)
    else:
        for component, _, _ in task.segments:
            for output in component.outputs:
                yield from (dest.file for dest in output.dests)


def _spelled(program: Program, tasks: Sequence[Task]) -> Iterable[str]:
    numbers = {id(component): n for group in program.groups for n, component in enumerate(group.components)}
    for group in program.groups:
        yield f"group {group.flat} {group.on_host} {[type(eqn.op).__name__ for eqn in group.sample.eqns]}"
        for component in group.components:
            yield f"{component.specs} {component.numbers} {[output.dests for output in component.outputs]}"
    for task in tasks:
        if isinstance(task, MoveTask):
            yield f"{task.moves}"
        elif isinstance(task, DecodeTask):
            yield f"{task.source.name} {task.first} {task.count} {task.parts}"
        else:
            segments = [(numbers[id(component)], first, count) for component, first, count in task.segments]
            yield f"{task.group} {segments} {task.seen}"


def bring_together(
    peers: Peers, symbolic: Symbolic, findings: Findings, account: Mapping[str, Any]
) -> tuple[Findings, list[dict[str, Any]]]:
    """What all processes found, and their accounts, as JSON has them."""
    head = json.dumps(account).encode()
    accounts = []
    for rank, message in enumerate(peers.gather(len(head).to_bytes(8, "little") + head + findings.pack(symbolic))):
        end = 8 + int.from_bytes(message[:8], "little")
        accounts.append(json.loads(message[8:end]))
        if rank:
            findings.unpack(symbolic, message[end:])
    said = peers.share(json.dumps(accounts).encode())
    packed = peers.share(findings.pack(symbolic) if peers.rank == 0 else b"")
    if peers.rank:
        findings = Findings()
        findings.unpack(symbolic, packed)
    return findings, json.loads(said)
