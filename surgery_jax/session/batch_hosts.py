"""A batch of huge jobs: one after the other, each by all processes of a cluster together, as `run` does one.

Processes meet anew for every job. Process 0 has the record, and tells the others which jobs are left.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from ..core.errors import SurgeryError
from ..core.interrupts import check_interrupted
from ..execute.observers import Observer
from ..execute.options import Options
from ..execute.report import Figures
from ..hosts.cluster import join
from ..hosts.peers import Peers
from ..language.jobs import Job, load_jobs
from .batch_jobs import Conflicts, FilesNow, JobHeaders
from .finished import FinishedJobs, job_files, key_of
from .ledger import BatchReport, JobReport, Ledger, Ready, amounts
from .listening import showing
from .passes import Show, output_paths
from .reading import Headers
from .run import Session, Transaction
from .taking import Taking

__all__ = ["batch_on_all"]


def batch_on_all(
    path: str,
    options: Options,
    *,
    overrides: Sequence[str] = (),
    again: bool = False,
    record: str | None = None,
    progress: Show | None = None,
    observers: Sequence[Observer] = (),
    tell: Callable[[JobReport], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> BatchReport:
    """Run the jobs of a job file, each by all processes together; all of them call this. The arguments are those of
    `batch`. Whoever is not process 0 has the same report, but is told of errors only.

    A job that fails ends the batch, since then processes may be lost.

    Raises:
        SurgeryError: the job file is wrong, the record cannot be used, or not all processes came.
    """
    jobs = load_jobs(path, overrides)
    record = record or f"{path}.done"
    with join(options, notify) as peers:
        finished = FinishedJobs(record, is_kept=peers.rank == 0)
        try:
            left = _left(jobs, finished, options, again, peers)
        except BaseException:
            finished.close()
            raise
    with finished:
        ledger = Ledger(jobs, finished, options, tell if peers.rank == 0 else _failures(tell))
        work = _JointWork(jobs, ledger, options, showing(progress if peers.rank == 0 else None, observers), notify)
        work.run(left)
    return BatchReport(
        jobs=tuple(ledger.reports[number] for number in range(len(jobs))),
        process=peers.rank,
        leftovers=tuple(work.leftovers),
        **work.taking.figures(),
        **work.figures.of(BatchReport),
    )


def _failures(tell: Callable[[JobReport], None] | None) -> Callable[[JobReport], None]:
    def told(job: JobReport) -> None:
        if tell is not None and job.error is not None:
            tell(job)

    return told


def _left(jobs: Sequence[Job], finished: FinishedJobs, options: Options, again: bool, peers: Peers) -> dict[int, str]:
    """What is to become of each job, as process 0 knows: the outputs of those that are finished, as JSON, and nothing
    of those that are to be run."""
    told: dict[str, str] = {}
    if peers.rank == 0:
        headers, files = Headers(), FilesNow()
        for number, job in enumerate(jobs):
            try:
                plan = job.plan(headers)
                own = job_files(finished.path, key_of(plan, options), output_paths(plan))
                entries = [] if again else finished.of(own)
                outputs = next((list(entry.outputs) for entry in entries if entry.holds(files.of)), None)
            except SurgeryError:
                outputs = None  # told when it is its turn
            told[str(number)] = "" if outputs is None else json.dumps(outputs)
    shared = json.loads(peers.share(json.dumps(told).encode()))
    return {int(number): outputs for number, outputs in shared.items()}


class _JointWork:
    """What is done, job by job."""

    def __init__(
        self,
        jobs: Sequence[Job],
        ledger: Ledger,
        options: Options,
        observers: Iterable[Observer],
        notify: Callable[[str], None] | None,
    ) -> None:
        self.figures = Figures()
        self.leftovers: dict[str, None] = {}
        self.taking = Taking()
        self._jobs = jobs
        self._ledger = ledger
        self._options = options
        self._observers = [self.figures, ledger, *observers]
        self._notify = notify
        self._headers = Headers()
        self._conflicts = Conflicts(jobs)

    def run(self, left: dict[int, str]) -> None:
        """All jobs; after one that has failed, none."""
        for number in range(len(self._jobs)):
            if self._ledger.has_failed:
                self._ledger.end(number, "not run")
            elif left[number]:
                self._ledger.end(number, "skipped", outputs=tuple(json.loads(left[number])))
            else:
                check_interrupted()
                try:
                    self._run(number)
                except Exception as error:
                    self._ledger.fail(number, error)

    def _run(self, number: int) -> None:
        with join(self._options, self._notify) as peers:
            plan = self._jobs[number].plan(self._headers)
            session = Session(self._options, peers=peers, observers=self._observers)
            session.sweep(output_paths(plan))
            headers = JobHeaders(self._options)
            compiled = session.compile(plan, outside=headers)
            outputs = [output.path for output, _ in compiled.outputs]
            self._conflicts.note(number, outputs, headers.opened)
            own = job_files(self._ledger.finished.path, key_of(plan, self._options), output_paths(plan))
            ready = Ready(number, own, compiled, headers.opened)
            found = session.taking.path_of(self._options.reuse, self._jobs[number].name) if peers.rank == 0 else None
            reuse = peers.share((found or "").encode()).decode() or None
            (outcome,) = session.run([Transaction(compiled, ready, reuse=reuse)])
        self.leftovers |= session.leftovers
        self.taking.add(session.taking)
        if peers.rank:  # process 0 has told its ledger when the outputs appeared
            self._ledger.end(number, "done", **amounts(outcome.compiled.symbolic, outcome.compiled.outputs))
