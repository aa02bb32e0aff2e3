"""One run on several processes: they make sure that they mean the same, take shares of the tasks, and bring together
what they found. Every exchange here is one that all processes make."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import PlanError, SurgeryError
from ..execute.options import Options
from ..execute.schedule import Schedule
from ..execute.tasks import DecodeTask, MoveTask, Task
from ..execute.verdicts import Findings
from ..graph.roots import Symbolic
from ..storage.places.found import is_local
from .agreement import compare, facts_of_options, facts_of_outputs
from .peers import Peers

if TYPE_CHECKING:
    from ..storage.base import Layout
    from ..storage.formats import OutputPlan
    from ..storage.publish import Staging

__all__ = ["OwnTasks", "agree", "agreed_options", "bring_in", "bring_together", "together"]

T = TypeVar("T")
Outputs = Sequence[tuple["OutputPlan", "Layout"]]


def together(peers: Peers, make: Callable[[], T], tried: Callable[[], object] | None = None) -> T:
    """What `make` gives, once it has succeeded in all processes. `tried` is called when it has not succeeded too, and
    before anyone hears of that: what differs between the processes explains why only some of them failed.

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
    if tried is not None:
        tried()
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
    """The options of this process, with as many workers as process 0 has where it leaves that open.

    Raises:
        PlanError: those that decide how the work is cut differ.
    """
    if peers.size == 1:
        return options
    compare(peers, facts_of_options(options))
    workers = int(peers.share(str(options.num_workers).encode()))
    return dataclasses.replace(options, workers=options.workers or workers)


def agree(peers: Peers, outputs: Outputs) -> None:
    """Make sure that all processes write the same outputs.

    Raises:
        PlanError: they do not, or an output is one that a single process must write.
    """
    if peers.size > 1:
        for output, layout in outputs:
            if any(file.encode is not None for file in layout.files) and not is_local(output.path):
                raise PlanError(
                    f"{output.path}: files that are encoded as a whole go to such a place from one process alone",
                    found=f"{peers.size} processes",
                    hint="leave out the compression, and for a mesh cut the first axis alone; or use one process, or a "
                    "disk that all processes have",
                )
        compare(peers, facts_of_outputs(outputs))


@dataclass
class OwnTasks:
    """The tasks of one process of several, and what they amount to."""

    peers: Peers
    work: Schedule
    left: Sequence[Task]  # those of all processes that are not done yet
    written: int = 0  # bytes
    files: frozenset[int] = frozenset()  # written to

    def tasks(self) -> Sequence[Task]:
        """The share of this process.

        Raises:
            PlanError: another process has scheduled other tasks.
        """
        compare(self.peers, {"the tasks": lambda: ((line, "") for line in _spelled(self.work, self.left))})
        own = self.work.shares(self.peers.size, self.left)[self.peers.rank]
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


def _spelled(work: Schedule, tasks: Sequence[Task]) -> Iterable[str]:
    """The tasks in their order: what the first one that differs is about, and the key that tells it from all others."""
    for task in tasks:
        places = sorted(work.program.files[number] for number in set(_files(task)))
        yield f"task {work.key(task)} of {work.advance(task)} bytes, into {', '.join(places[:3]) or 'nothing'}"


def bring_in(peers: Peers, stagings: Sequence[Staging]) -> None:
    """What all processes have written of outputs that are sent in parts becomes known to the one that publishes.

    Raises:
        SurgeryError: something of it could not be sent, here or in another process.
    """
    if peers.size == 1 or all(staging.is_on_disk for staging in stagings):
        return
    own = [staging.hand_in() for staging in stagings] if peers.rank else []
    for message in peers.gather(json.dumps(own).encode())[1:]:
        for staging, told in zip(stagings, json.loads(message), strict=True):
            staging.take_in(told)


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
