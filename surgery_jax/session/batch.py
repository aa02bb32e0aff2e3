"""Many jobs of one plan: what they have in common is read once and compiled once, and each succeeds or fails by itself.

Jobs are taken in passes. Those of a pass are built in one graph, so that a tensor which several of them read, and what
several of them make of it, are one node; their work is one program. Then every job settles its assertions and lets its
outputs appear by itself. If the work of a pass fails, its halves are tried, down to the job that is the cause.

A batch may be shared among tasks, processes that know nothing of each other but what lies where outputs go: which jobs
are whose (`sharing_out`), which are finished (`finished`), and who is at work on which (`claims`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import PlanError, SurgeryError, listing
from ..core.interrupts import check_interrupted
from ..execute.observers import Observer
from ..execute.options import Options
from ..hosts.cluster import check_options
from ..hosts.tasks import BatchTask, find_task
from ..language.jobs import Job, load_jobs
from ..language.plan import Plan
from ..storage.places.found import is_local
from .batch_hosts import batch_on_all
from .batch_jobs import Conflicts, FilesNow, JointPass
from .claims import LEASE, Claim, Claims, Lost
from .compiled import compile_with
from .finished import FinishedJobs, job_files, key_of
from .ledger import BatchReport, JobReport, Ledger, Ready, amounts
from .listening import showing
from .passes import Show, check_targets, output_paths
from .reading import Headers
from .reads import paths_read
from .run import Session, Transaction
from .sharing_out import shares_of

__all__ = ["batch"]

TOGETHER = 16  # jobs of a pass: their outputs appear together at its end, and one that fails costs the pass again
QUIET_S = 3.0  # until it is said for whom this process waits
POLL_S = 1.0


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
    task: str = "none",
    lease: float = LEASE,
    progress: Show | None = None,
    observers: Sequence[Observer] = (),
    tell: Callable[[JobReport], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> BatchReport:
    """Run the jobs of a job file (`language.jobs`).

    overrides: `key=value` for the plan of every job. together: how many jobs share a pass at most. again: also jobs
    that are finished, by `record`, a file of finished jobs (by default the name of the job file with `.done`).
    stop_on_failure: start no more after a failure. only_check: find what headers can tell, and run nothing. task: run
    the share of one of several processes (`hosts.tasks.find_task`), beside the others. lease: seconds without a sign
    of life after which others take over what a process was at work on. progress, observers: those of `run`; the tag of
    what appears is a job. tell: is called when a job has ended. notify: gets a line on what share is taken if that was
    not asked for in so many words, and on who is waited for. With `options.distributed` all processes of a cluster do
    each job together (`session.batch_hosts`).

    Raises:
        SurgeryError: the job file is wrong, or the record cannot be used. What a job raises is in its report.
    """
    options = options or Options()
    check_options(options)
    if options.distributed:
        _check_joint(task, only_check)
        return batch_on_all(
            path,
            options,
            overrides=overrides,
            again=again,
            record=record,
            progress=progress,
            observers=observers,
            tell=tell,
            notify=notify,
        )
    own = find_task(task, os.environ)
    if not 0 < lease < float("inf"):
        raise PlanError("not a time for a lease", expected="--lease SECONDS, more than 0", found=f"{lease:g}")
    jobs = load_jobs(path, overrides)
    is_kept = not only_check
    with ExitStack() as stack:
        record = record or f"{path}.done"
        is_shared = own is not None or not is_local(record)  # at a store nobody can be kept from using it too
        finished = stack.enter_context(FinishedJobs(record, is_kept, is_shared=is_shared))
        claims = stack.enter_context(Claims(lease)) if is_shared and is_kept else None
        ledger = Ledger(jobs, finished, options, tell, claims)
        session = Session(options, observers=showing(progress, [ledger, *observers]))
        how = _How(max(together, 1), stop_on_failure, only_check, notify or (lambda text: None))
        work = _Batch(jobs, session, ledger, how)
        numbers = range(len(jobs)) if own is None else work.share(own)
        work.run(numbers, again=again)
    return BatchReport(
        jobs=tuple(ledger.reports[number] for number in sorted(numbers)),
        task="" if own is None else str(own),
        leftovers=tuple(session.leftovers),
        **session.taking.figures(),
        **session.figures.of(BatchReport),
    )


def _check_joint(task: str, only_check: bool) -> None:
    """Whether what is asked for can be done by all processes together.

    Raises:
        PlanError: it cannot.
    """
    if task not in ("none", "auto"):
        raise PlanError(
            "--distributed gives each job to all processes, --task gives each process jobs of its own",
            hint="leave out one of them",
        )
    if only_check:
        raise PlanError("--check needs no other processes", hint="leave out --distributed")


@dataclass(frozen=True)
class _How:
    """How the jobs of a batch are gone over; the arguments of `batch`."""

    together: int
    stop_on_failure: bool
    only_check: bool
    notify: Callable[[str], None]


class _Batch:
    """Jobs, and what becomes of those that this process takes."""

    def __init__(self, jobs: Sequence[Job], session: Session, ledger: Ledger, how: _How) -> None:
        self.jobs = jobs
        self.session = session
        self.options = session.options
        self.headers = Headers()
        self.ledger = ledger
        self._how = how
        self._conflicts = Conflicts(jobs)
        self._files = FilesNow()
        self._waiting: dict[int, Claim | None] = {}  # jobs that others are, or were, at work on

    def share(self, task: BatchTask) -> list[int]:
        """The numbers of the jobs of a task, in its order; tells of it if nobody has asked for that task by number.

        Raises:
            StorageError: what the other tasks know of that cannot be read.
        """
        plans = [self._plan(number) for number in range(len(self.jobs))]
        numbers = self.shares(plans, task.count)[task.number - 1]
        if task.source:
            self._how.notify(
                f"task {task}, by {task.source}: {len(numbers)} of {len(self.jobs)} jobs; --task none takes all"
            )
        for number, plan in enumerate(plans):  # of the jobs of others this is all that is looked at
            if plan is not None:
                try:
                    self._conflicts.note(number, output_paths(plan), {path: () for path in paths_read(plan)})
                except PlanError as error:
                    if number in numbers:
                        self.ledger.fail(number, error)
        return numbers

    def shares(self, plans: Sequence[Plan | None], count: int) -> list[list[int]]:
        """The numbers of the jobs of each of so many tasks.

        Raises:
            StorageError: what the tasks have settled cannot be read or written.
        """
        record = self.ledger.finished.path
        return shares_of(self.jobs, plans, count, record, is_settled=not self._how.only_check)

    def _plan(self, number: int) -> Plan | None:
        """The plan of a job, if it has one: whose turn it is tells what is wrong with it."""
        try:
            return self.jobs[number].plan(self.headers)
        except SurgeryError:
            return None

    def run(self, numbers: Sequence[int], *, again: bool) -> None:
        """These jobs, in passes; those that others are at work on when these are done or have left them."""
        left = [number for number in numbers if number not in self.ledger.reports]
        self._go(left, again)
        while self._waiting:
            if not self._is_stopped():
                self._wait()
            left, self._waiting = list(self._waiting), {}
            self._go(left, again=False)

    def _go(self, numbers: Sequence[int], again: bool) -> None:
        current = JointPass(self.options)
        for number in numbers:
            if self._is_stopped():
                self.ledger.end(number, "not run")
                continue
            try:
                check_interrupted()
                ready = self._prepare(number, current, again)
                if self._how.only_check and ready is not None:
                    check_targets(ready.compiled, self.options, ready.compiled.outputs)
            except Exception as error:
                self.ledger.fail(number, error)
                continue
            if ready is None:
                continue
            if self._how.only_check:
                self.ledger.end(number, "ready", **amounts(ready.compiled.symbolic, ready.compiled.outputs))
                current = JointPass(self.options) if current.is_full else current
                continue
            current.jobs.append(ready)
            if len(current.jobs) >= self._how.together or current.is_full:
                self._run(current.jobs)
                current = JointPass(self.options)
        self._run(current.jobs)

    def _prepare(self, number: int, current: JointPass, again: bool) -> Ready | None:
        """The compiled job; None if it is finished, or another process is at work on it.

        Raises:
            SurgeryError: what headers can tell is wrong with it.
        """
        from ..storage.publish import check_target

        plan = self.jobs[number].plan(self.headers)
        job = job_files(self.ledger.finished.path, key_of(plan, self.options), output_paths(plan))
        if self.ledger.claims is not None and not self._claim(number, job, again):
            return None
        self.session.sweep(output_paths(plan), mend=not self._how.only_check)  # also of a job that had just ended
        if not again and self._is_finished(number, job):
            if not self._how.only_check:
                self.session.look_back(plan)  # it may have been killed before it had cleared away
            return None
        current.headers.opened = {}
        compiled = compile_with(plan, current.headers, current.graph)
        self._conflicts.note(number, [output.path for output, _ in compiled.outputs], current.headers.opened)
        self.session.sweep(output_paths(plan, compiled.outputs), mend=not self._how.only_check)
        for output, layout in compiled.outputs:
            check_target(output, self.options.overwrite, layout.documents)
        return Ready(number, job, compiled, dict(current.headers.opened))

    def _is_finished(self, number: int, job: Path) -> bool:
        """Whether a job is finished, which then is told.

        Raises:
            SurgeryError: that cannot be found out, or it is at odds with another job.
        """
        for known in self.ledger.finished.of(job):
            if known.holds(self._files.of):
                self._conflicts.note(number, list(known.outputs), known.inputs)
                self.ledger.end(number, "skipped", outputs=tuple(known.outputs))
                return True
        return False

    def _claim(self, number: int, job: Path, again: bool) -> bool:
        """Whether this process has the job now. If not, it is finished, or it is to be looked at again later."""
        assert self.ledger.claims is not None
        if not again and self._is_finished(number, job):
            return False
        self.ledger.claimed[number] = job
        other = self.ledger.claims.take(job, self.jobs[number].name)
        if other is not None:
            self._waiting[number] = other
        return other is None

    def _wait(self) -> None:
        """Until one of the jobs that others are at work on is finished, or can be had."""
        assert self.ledger.claims is not None
        began, told = time.monotonic(), ""
        while True:
            check_interrupted()
            for number in self._waiting:
                self._waiting[number] = holder = self.ledger.claims.holder(self.ledger.claimed[number])
                if holder is None:
                    return
            names = listing([self.jobs[number].name for number in self._waiting])
            who = listing(dict.fromkeys(map(str, self._waiting.values())))
            text = f"waiting for jobs that others are at work on: {names}, by {who}"
            if time.monotonic() - began > QUIET_S and text != told:
                told = text
                self._how.notify(text)
            time.sleep(min(POLL_S, *(claim.lease / 8 for claim in self._waiting.values() if claim is not None)))

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
                self._fail(jobs[0], error)
                return
            half = len(jobs) // 2
            self._run(jobs[:half])
            self._run(jobs[half:])

    def _run_together(self, jobs: Sequence[Ready]) -> None:
        """One program for all; what it raises is of any of them, and none has ended."""
        outcomes = self.session.run(
            [Transaction(ready.compiled, ready, reuse=self._earlier(ready.number)) for ready in jobs]
        )
        for ready, outcome in zip(jobs, outcomes, strict=True):
            if outcome.error is not None:
                self._fail(ready, outcome.error)

    def _fail(self, ready: Ready, error: Exception) -> None:
        """What went wrong with a job is told. If it is another's now, or is one of a pass of which that is true of some
        job, nothing has: it is looked at again."""
        if isinstance(error, Lost) and self.ledger.claims is not None:
            self.ledger.claims.leave(ready.job)
            self._waiting[ready.number] = None
        else:
            self.ledger.fail(ready.number, error)

    def _earlier(self, number: int) -> str | None:
        return self.session.taking.path_of(self.options.reuse, self.jobs[number].name)

    def _is_stopped(self) -> bool:
        return self._how.stop_on_failure and self.ledger.has_failed
