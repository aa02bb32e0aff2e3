"""All work of a program, into staged outputs that nobody sees yet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..compile.program import Program
from ..storage.base import Layout
from ..storage.formats import OutputPlan
from .devices import CompileClock, device_trace
from .options import Options
from .outputs import OutputFile
from .pace import Pace
from .report import Progress
from .stream import Executor
from .timeline import Timeline
from .verdicts import Findings

__all__ = ["Performed", "Target", "figures", "perform"]


class Target(Protocol):
    """An output that is being written: a `Staging`, or something else that has files for its layout."""

    @property
    def plan(self) -> OutputPlan: ...

    @property
    def layout(self) -> Layout: ...

    def fd(self, index: int) -> int: ...

    def direct_fd(self, index: int) -> int | None: ...


@dataclass(frozen=True)
class Performed:
    """What came of the checks and sinks, and the account of the work; the fields are those of `Report`."""

    findings: Findings
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
    summed = ("num_compilations", "num_host_fallbacks", "stream_s", "compile_s")
    return {
        **{name: sum(getattr(done, name) for done in passes) for name in summed},
        "peak_buffer_bytes": max(done.peak_buffer_bytes for done in passes),
        "busy_s": dict(busy),
    }


def perform(
    program: Program,
    stagings: Sequence[Target],
    options: Options,
    progress: Callable[[int, int], None] | None = None,
) -> Performed:
    """Read, compute and write everything; `stagings` are the outputs in the order in which the program numbers their
    files.

    Raises:
        SurgeryError: the first thing that went wrong.
    """
    if options.profile is not None:
        Path(options.profile).mkdir(parents=True, exist_ok=True)
    timeline = Timeline(keep_events=options.profile is not None)
    pace = Pace(only_direct=options.sync)
    executor = Executor(
        program,
        [file for staging in stagings for file in _files(staging, pace)],
        memory_bytes=options.memory_bytes,
        num_workers=options.num_workers,
        num_devices=options.devices or None,
        progress=Progress(progress),
        timeline=timeline,
    )
    start = time.perf_counter()
    with CompileClock() as clock, device_trace(options.profile if program.needs_device else None):
        executor.run()
    stream_s = time.perf_counter() - start
    if options.profile is not None:
        timeline.write(Path(options.profile) / "stages.trace.json")
    return Performed(
        executor.findings,
        sum(function.num_traces for function in executor.functions),
        executor.num_fallbacks,
        executor.budget.peak + executor.blocks.peak,
        stream_s,
        clock.seconds,
        timeline.busy_s,
    )


def _files(staging: Target, pace: Pace) -> list[OutputFile]:
    return [
        OutputFile(str(Path(staging.plan.path) / file.name), staging.fd(index), staging.direct_fd(index), pace)
        for index, file in enumerate(staging.layout.files)
    ]
