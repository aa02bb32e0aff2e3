"""All work of a program, into staged outputs that nobody sees yet."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..compile.functions import Functions
from ..compile.program import Program
from ..core.interrupts import check_interrupted
from ..execute.devices import CompileClock, device_trace
from ..execute.options import Options
from ..execute.report import Progress, Share
from ..execute.schedule import Schedule
from ..execute.stream import Executor
from ..execute.timeline import Timeline
from ..execute.verdicts import Findings
from ..hosts.peers import ALONE, Peers
from ..hosts.sharing import Part, bring_together
from ..io.encoded import EncodedFile
from ..io.fleeting import MANY, FleetingFile
from ..io.openfiles import room_for_files
from ..io.outputs import OutputFile
from ..io.pace import Pace
from ..storage.base import Layout
from ..storage.formats import OutputPlan

__all__ = ["Performed", "Target", "figures", "perform"]


class Target(Protocol):
    """An output that is being written: a `Staging`, or something else that has files for its layout."""

    @property
    def plan(self) -> OutputPlan: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def is_on_disk(self) -> bool: ...

    def place(self, index: int) -> str: ...


@dataclass(frozen=True)
class Performed:
    """What came of the checks and sinks, and the account of the work, of all processes; the fields are those of
    `Report`."""

    findings: Findings
    processes: tuple[Share, ...]
    num_compilations: int
    num_host_fallbacks: int
    peak_buffer_bytes: int
    stream_s: float
    compile_s: float
    busy_s: dict[str, float] = field(default_factory=dict)


def figures(passes: Sequence[Performed]) -> dict[str, Any]:
    """The account of several passes as that of one: sums, and the highest peak."""
    busy: Counter[str] = Counter()
    for done in passes:
        busy.update(done.busy_s)
    rows = list(zip(*(done.processes for done in passes), strict=True))
    summed = ("num_compilations", "num_host_fallbacks", "stream_s", "compile_s")
    return {
        **{name: sum(getattr(done, name) for done in passes) for name in summed},
        "peak_buffer_bytes": max(done.peak_buffer_bytes for done in passes),
        "busy_s": dict(busy),
        "processes": tuple(Share.of(row) for row in rows),
    }


def perform(
    work: Schedule,
    stagings: Sequence[Target],
    options: Options,
    progress: Callable[[int, int], None] | None = None,
    peers: Peers = ALONE,
    functions: Functions | None = None,
) -> Performed:
    """Read, compute and write everything, or the share of this process of it; `stagings` are the outputs in the order
    in which the program numbers their files, `functions` what programs before have compiled.

    Raises:
        SurgeryError: the first thing that went wrong, here or in another process.
    """
    program = work.program
    profile = None if options.profile is None else Path(options.profile)
    if profile is not None:
        profile = profile / f"process-{peers.rank}" if peers.size > 1 else profile
        profile.mkdir(parents=True, exist_ok=True)
    timeline = Timeline(keep_events=profile is not None)
    pace = Pace(only_direct=options.sync)
    part = Part(peers, work)

    def show(done: int, total: int) -> None:
        check_interrupted()
        peers.check()
        if progress is not None:
            progress(done, total)

    full: deque[EncodedFile] = deque()
    functions = functions or Functions()
    compiled_before = functions.num_compilations
    outputs = [file for staging in stagings for file in _files(staging, pace, full)]
    traced = str(profile) if profile and program.needs_device else None
    start = time.perf_counter()
    with (
        CompileClock() as clock,
        room_for_files(2 * len(outputs)),
        Executor(
            work,
            outputs,
            full=full,
            num_devices=options.devices or None,
            progress=Progress(show),
            timeline=timeline,
            functions=functions,
        ) as executor,
        device_trace(traced),
    ):
        executor.run(part.tasks() if peers.size > 1 else None)
        if peers.rank:  # process 0 does so for its own bytes when it publishes
            for number in _to_sync(stagings, options.sync) & part.files:
                outputs[number].sync()
    stream_s = time.perf_counter() - start
    if profile is not None:
        timeline.write(profile / "stages.trace.json")
    written = part.written if peers.size > 1 else program.bytes_moved + program.bytes_computed
    own = Performed(
        executor.findings,
        (Share(peers.name(peers.rank), executor.inputs.num_bytes, written, stream_s),),
        functions.num_compilations - compiled_before,
        executor.computing.num_fallbacks,
        executor.peak_buffer_bytes,
        stream_s,
        clock.seconds,
        timeline.busy_s,
    )
    return own if peers.size == 1 else _of_all(peers, program, own)


def _of_all(peers: Peers, program: Program, own: Performed) -> Performed:
    """The findings and the account of all processes; the other figures are those of this one, or the largest."""
    figures = {"shares": [asdict(share) for share in own.processes]}
    findings, accounts = bring_together(
        peers, program.symbolic, own.findings, figures | {n: getattr(own, n) for n in _COUNTED}
    )
    return replace(
        own,
        findings=findings,
        processes=tuple(Share(**share) for account in accounts for share in account["shares"]),
        num_compilations=sum(account["num_compilations"] for account in accounts),
        num_host_fallbacks=sum(account["num_host_fallbacks"] for account in accounts),
        peak_buffer_bytes=max(account["peak_buffer_bytes"] for account in accounts),
        stream_s=max(account["stream_s"] for account in accounts),
        compile_s=max(account["compile_s"] for account in accounts),
    )


_COUNTED = ("num_compilations", "num_host_fallbacks", "peak_buffer_bytes", "stream_s", "compile_s")


def _to_sync(stagings: Sequence[Target], sync: bool) -> set[int]:
    """Numbers of the files that one process must bring to the disk for another: all, or those that are read once more
    before they are published."""
    wanted = [sync or staging.layout.finish is not None for staging in stagings for _ in staging.layout.files]
    return {number for number, is_wanted in enumerate(wanted) if is_wanted}


def _files(staging: Target, pace: Pace, full: deque[EncodedFile]) -> Iterator[OutputFile]:
    for index, file in enumerate(staging.layout.files):
        path, place = str(Path(staging.plan.path) / file.name), staging.place(index)
        if file.encode is not None:
            yield EncodedFile(path, place, file, full)
        else:
            kind = FleetingFile if len(staging.layout.files) > MANY else OutputFile
            yield kind(path, place, pace, may_go_direct=staging.is_on_disk)
