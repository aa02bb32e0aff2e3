"""All work of a program, into staged outputs that nobody sees yet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Protocol

from ..compile.functions import Functions
from ..core.interrupts import check_interrupted
from ..execute.devices import CompileClock
from ..execute.left import Done, left
from ..execute.observers import Observers, Pass
from ..execute.options import Options
from ..execute.report import Account, Share
from ..execute.schedule import Schedule
from ..execute.stream import Executor
from ..execute.verdicts import Findings
from ..graph.roots import Symbolic
from ..hosts.peers import Peers
from ..hosts.sharing import OwnTasks, bring_together
from ..io.encoded import EncodedFile
from ..io.fleeting import MANY, FleetingFile
from ..io.openfiles import room_for_files
from ..io.outputs import OutputFile
from ..io.pace import Pace, cached_room
from ..storage.base import Layout
from ..storage.formats import OutputPlan
from ..storage.places.found import locate

__all__ = ["Kept", "OutputTarget", "perform"]

NOTHING = Done()


class OutputTarget(Protocol):
    """An output that is being written: a `Staging`, or something else that has files for its layout."""

    @property
    def plan(self) -> OutputPlan: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def is_on_disk(self) -> bool: ...

    def place(self, index: int) -> str: ...


class Kept(OutputTarget, Protocol):
    """One that does not appear anywhere, until it is closed."""

    def close(self) -> None: ...


def perform(
    work: Schedule,
    targets: Sequence[OutputTarget],
    options: Options,
    observer: Observers,
    peers: Peers,
    functions: Functions,
    *,
    is_last: bool,
    done: Done = NOTHING,
) -> Findings:
    """Read, compute and write everything, or the share of this process of it; what came of the checks and sinks of all
    processes. `targets` are the outputs in the order in which the program numbers their files, `functions` what
    programs before have compiled, and `is_last` is for observers. What is `done` is left as it is.

    Raises:
        SurgeryError: the first thing that went wrong, here or in another process.
    """
    program = work.program
    size = sum(file.size for target in targets for file in target.layout.files)
    pace = Pace(only_direct=options.sync or size > cached_room())
    remaining, found = left(work, done)
    part = OwnTasks(peers, work, remaining)
    full: deque[EncodedFile] = deque()
    outputs: list[OutputFile] = []
    for target in targets:
        outputs += _files(target, pace, full, observer, done, len(outputs))
    if work.parted:
        from ..storage.places.room import room

        room().limit = work.parted
    compiled_before = functions.num_compilations

    def tick() -> None:
        check_interrupted()
        peers.check()
        observer.tick()

    start = time.perf_counter()
    with (
        CompileClock() as clock,
        room_for_files(2 * len(outputs)),
        Executor(work, outputs, full, functions, observer, options.devices or None) as executor,
    ):
        tasks = part.tasks() if peers.size > 1 else remaining
        account: Account | None = None
        try:
            nbytes = sum(map(work.advance, tasks))
            observer.pass_begins(Pass(work, remaining, tasks, nbytes, is_last, executor.findings))
            executor.run(tasks, tick)
            if peers.rank:  # process 0 does so for its own bytes when it publishes
                for number in _to_sync(targets, options.sync) & part.files:
                    outputs[number].sync()
            stream_s = time.perf_counter() - start
            moved, _, computed = work.amounts(remaining)
            written = part.written if peers.size > 1 else moved + computed
            own = Account(
                (Share(peers.name(peers.rank), executor.inputs.num_bytes, written, stream_s),),
                functions.num_compilations - compiled_before,
                executor.computing.num_fallbacks,
                executor.peak_buffer_bytes,
                stream_s,
                clock.seconds,
                executor.timeline.busy_s,
            )
            if peers.rank == 0:
                for packed in found:
                    executor.findings.unpack(program.symbolic, packed)
            findings, account = _of_all(peers, program.symbolic, executor.findings, own)
        finally:
            observer.pass_ends(account)
    return findings


def _of_all(peers: Peers, symbolic: Symbolic, findings: Findings, own: Account) -> tuple[Findings, Account]:
    """The findings and the account of all processes: times and peaks are the largest, stages are those of this one."""
    if peers.size == 1:
        return findings, own
    figures = {"shares": [asdict(share) for share in own.processes]}
    findings, accounts = bring_together(peers, symbolic, findings, figures | {n: getattr(own, n) for n in _COUNTED})
    return findings, replace(
        own,
        processes=tuple(Share(**share) for account in accounts for share in account["shares"]),
        num_compilations=sum(account["num_compilations"] for account in accounts),
        num_host_fallbacks=sum(account["num_host_fallbacks"] for account in accounts),
        peak_buffer_bytes=max(account["peak_buffer_bytes"] for account in accounts),
        stream_s=max(account["stream_s"] for account in accounts),
        compile_s=max(account["compile_s"] for account in accounts),
    )


_COUNTED = ("num_compilations", "num_host_fallbacks", "peak_buffer_bytes", "stream_s", "compile_s")


def _to_sync(targets: Sequence[OutputTarget], sync: bool) -> set[int]:
    """Numbers of the files that one process must bring to the disk for another: all, or those that are read once more
    before they are published."""
    wanted = [sync or target.layout.finish is not None for target in targets for _ in target.layout.files]
    return {number for number, is_wanted in enumerate(wanted) if is_wanted}


def _files(
    target: OutputTarget, pace: Pace, full: deque[EncodedFile], observer: Observers, done: Done, first: int
) -> Iterator[OutputFile]:
    hear, hear_raw = (observer.written, observer.encoding) if observer.wants_ranges else (None, None)
    for index, file in enumerate(target.layout.files):
        path, place = str(locate(target.plan.path) / file.name), target.place(index)
        if file.encode is not None:
            is_sealed = file.size > 0 and done.has((first + index, 0, file.size))
            yield EncodedFile(path, place, file, full, hear, hear_raw, is_sealed=is_sealed)
        else:
            kind = FleetingFile if len(target.layout.files) > MANY else OutputFile
            yield kind(path, place, pace, may_go_direct=target.is_on_disk, hear=hear)
