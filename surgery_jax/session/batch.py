"""Many jobs of one plan: what they have in common is read once and compiled once, and each succeeds or fails by itself.

Jobs are taken in passes. Those of a pass are built in one graph, so that a tensor which several of them read, and what
several of them make of it, are one node; their work is one program. Then every job settles its assertions and lets its
outputs appear by itself. If the work of a pass fails, its halves are tried, down to the job that is the cause.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import PlanError
from ..core.interrupts import check_interrupted
from ..execute.observers import Observer
from ..execute.options import Options
from ..graph.node import Graph
from ..language.jobs import Job, load_jobs
from ..storage import formats
from ..storage.base import Checkpoint, Single
from ..storage.documents import DocumentText
from ..storage.identity import Identity
from .compiled import StorageOutside, compile_with
from .finished import FileState, FinishedJobs, key_of, states_of
from .ledger import BatchReport, JobReport, Ledger, Ready, amounts
from .listening import showing
from .passes import Show, check_targets, output_paths
from .reading import Headers
from .run import Session, Transaction

__all__ = ["batch"]

TOGETHER = 16  # jobs of a pass: their outputs appear together at its end, and one that fails costs the pass again
MAX_FILES = 200  # of the outputs of a pass: they are open all the time
MAX_NODES = 500_000  # of the graph of a pass, some hundred bytes each


def batch(
    path: str,
    options: Options | None = None,
    *,
    overrides: Sequence[str] = (),
    together: int = TOGETHER,
    again: bool = False,
    stop_on_failure: bool = False,
    only_check: bool = False,
    record: str | None = None,
    progress: Show | None = None,
    observers: Sequence[Observer] = (),
    tell: Callable[[JobReport], None] | None = None,
) -> BatchReport:
    """Run the jobs of a job file (`language.jobs`).

    overrides: `key=value` for the plan of every job. together: how many jobs share a pass at most. again: also jobs
    that are finished, by `record`, a file of finished jobs (by default the name of the job file with `.done`).
    stop_on_failure: start no more after a failure. only_check: find what headers can tell, and run nothing. progress,
    observers: those of `run`; the tag of what appears is a job. tell: is called when a job has ended.

    Raises:
        SurgeryError: the job file is wrong, or the record cannot be used. What a job raises is in its report.
    """
    jobs = load_jobs(path, overrides)
    with FinishedJobs(record or f"{path}.done", is_kept=not only_check) as finished:
        ledger = Ledger(jobs, finished, options or Options(), tell)
        session = Session(options, observers=showing(progress, [ledger, *observers]))
        work = _Batch(jobs, session, ledger)
        work.run(max(together, 1), again=again, stop_on_failure=stop_on_failure, only_check=only_check)
    return BatchReport(
        jobs=tuple(ledger.reports[number] for number in range(len(jobs))),
        leftovers=tuple(session.leftovers),
        **session.figures.of(BatchReport),
    )


_DOCUMENT = "\0document "  # before the path of an input that is a file as it is, whatever it looks like


class _Headers(StorageOutside):
    """The outside world of the jobs of a pass: headers are read once, and the files of each job are known."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.opened: dict[str, tuple[FileState, ...]] = {}  # by the current job, before their headers were read
        self._known: dict[str, tuple[Checkpoint, tuple[FileState, ...]]] = {}

    def open_checkpoint(self, path: str) -> Checkpoint:
        key = os.path.realpath(path)
        if key not in self._known:
            found = super().open_checkpoint(path)
            self._known[key] = found, states_of(found.files)
        found, self.opened[path] = self._known[key]
        return found

    def open_single(self, path: str, format: str) -> Single:
        self.opened[path] = states_of([path])
        return super().open_single(path, format)

    def open_plan(self, path: str) -> Any:
        self.opened[path] = states_of([path])
        return super().open_plan(path)

    def read_document(self, path: str) -> DocumentText:
        self.opened[_DOCUMENT + path] = states_of([path])
        return super().read_document(path)

    def identify(self, path: str) -> dict[str, Identity]:
        self.opened[_DOCUMENT + path] = states_of([path])
        return super().identify(path)


class _Pass:
    """Jobs that are run together."""

    def __init__(self, options: Options) -> None:
        self.graph = Graph()
        self.headers = _Headers(options)
        self.jobs: list[Ready] = []

    @property
    def is_full(self) -> bool:
        """Whether more jobs would take too much at once."""
        files = sum(len(layout.files) for ready in self.jobs for _, layout in ready.compiled.outputs)
        return files >= MAX_FILES or self.graph.size >= MAX_NODES


class _Batch:
    """Jobs, and which files they read and write."""

    def __init__(self, jobs: Sequence[Job], session: Session, ledger: Ledger) -> None:
        self.jobs = jobs
        self.session = session
        self.options = session.options
        self.headers = Headers()
        self.ledger = ledger
        self._stop_on_failure = False
        self._files: dict[str, Sequence[str]] = {}
        self._writers: dict[str, int] = {}
        self._readers: dict[str, int] = {}

    def run(self, together: int, *, again: bool, stop_on_failure: bool, only_check: bool) -> None:
        """Every job, in passes."""
        self._stop_on_failure = stop_on_failure
        current = _Pass(self.options)
        for number in range(len(self.jobs)):
            if self._is_stopped():
                self.ledger.end(number, "not run")
                continue
            try:
                check_interrupted()
                ready = self._prepare(number, current, again, only_check)
                if only_check and ready is not None:
                    check_targets(ready.compiled, self.options, ready.compiled.outputs)
            except Exception as error:
                self.ledger.fail(number, error)
                continue
            if ready is None:
                continue
            if only_check:
                self.ledger.end(number, "ready", **amounts(ready.compiled.symbolic, ready.compiled.outputs))
                current = _Pass(self.options) if current.is_full else current
                continue
            current.jobs.append(ready)
            if len(current.jobs) >= together or current.is_full:
                self._run(current.jobs)
                current = _Pass(self.options)
        self._run(current.jobs)

    def _prepare(self, number: int, current: _Pass, again: bool, only_check: bool) -> Ready | None:
        """The compiled job; None if it is finished.

        Raises:
            SurgeryError: what headers can tell is wrong with it.
        """
        from ..storage.publish import check_target

        plan = self.jobs[number].plan(self.headers)
        self.session.sweep(output_paths(plan), mend=not only_check)  # also of a job that had just ended
        key = key_of(plan, self.options)
        known = None if again else self.ledger.finished.entries.get(key)
        if known is not None and known.holds(self._files_of):
            self._claim(number, list(known.outputs), known.inputs)
            self.ledger.end(number, "skipped", outputs=tuple(known.outputs))
            return None
        current.headers.opened = {}
        compiled = compile_with(plan, current.headers, current.graph)
        self._claim(number, [output.path for output, _ in compiled.outputs], current.headers.opened)
        self.session.sweep(output_paths(plan, compiled.outputs), mend=not only_check)
        for output, layout in compiled.outputs:
            check_target(output, self.options.overwrite, layout.documents)
        return Ready(number, key, compiled, dict(current.headers.opened))

    def _claim(self, number: int, outputs: Sequence[str], inputs: Any) -> None:
        """Note what a job reads and writes; jobs that share a pass cannot read what others of it write.

        Raises:
            PlanError: another job writes the same, or one reads what the other writes.
        """
        mark = self.jobs[number].mark
        writes = [os.path.realpath(path) for path in outputs]
        reads = {os.path.realpath(path) for path in inputs if not path.startswith(_DOCUMENT)}
        for states in inputs.values():
            for state in states:
                file = os.path.realpath(state[0])
                reads |= {file, str(Path(file).parent)}
        for table, paths, what in (
            (self._writers, writes, "writes what {} writes: {}"),
            (self._readers, writes, "writes what {} reads: {}"),
            (self._writers, reads, "reads what {} writes: {}"),
        ):
            for path in paths:
                other = table.get(path, number)
                if other != number:
                    told = what.format(f"job {self.jobs[other].name!r}", os.path.relpath(path))
                    raise PlanError(
                        f"job {self.jobs[number].name!r} {told}",
                        where=mark,
                        hint="jobs of a batch are independent: give each its own output, with ${job}",
                    )
        for path in writes:
            self._writers.setdefault(path, number)
        for path in reads:
            self._readers.setdefault(path, number)

    def _files_of(self, path: str) -> Sequence[str]:
        """The files of an input as it is now; of a base they are looked up once for all jobs.

        Raises:
            StorageError: it cannot be read.
        """
        if path.startswith(_DOCUMENT):
            return (path.removeprefix(_DOCUMENT),)
        if path not in self._files:
            place, _ = formats.split_part(path)
            self._files[path] = (place,) if formats.is_one_file(place) else formats.open_checkpoint(path).files
        return self._files[path]

    # -- passes -------------------------------------------------------------------------------------------------

    def _run(self, jobs: Sequence[Ready]) -> None:
        """Run jobs together; if that fails, their halves."""
        if not jobs:
            return
        if self._is_stopped():
            for ready in jobs:
                self.ledger.end(ready.number, "not run")
            return
        try:
            self._run_together(jobs)
        except Exception as error:
            if len(jobs) == 1:
                self.ledger.fail(jobs[0].number, error)
                return
            half = len(jobs) // 2
            self._run(jobs[:half])
            self._run(jobs[half:])

    def _run_together(self, jobs: Sequence[Ready]) -> None:
        """One program for all; what it raises is of any of them, and none has ended."""
        outcomes = self.session.run([Transaction(ready.compiled, ready) for ready in jobs])
        for ready, outcome in zip(jobs, outcomes, strict=True):
            if outcome.error is not None:
                self.ledger.fail(ready.number, outcome.error)

    def _is_stopped(self) -> bool:
        return self._stop_on_failure and self.ledger.has_failed
