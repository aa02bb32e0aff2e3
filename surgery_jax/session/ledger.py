"""What becomes of the jobs of a batch: which will appear is recorded, and whatever ends is told and reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import Notice, PlanError, StorageError, SurgeryError, told
from ..execute.observers import Appearing, Observer
from ..execute.options import Options
from ..execute.report import Amounts, Share
from ..graph.roots import Symbolic
from ..language.jobs import Job
from ..storage.places.found import is_local
from .claims import Claims
from .compiled import Compiled, Outputs
from .finished import FileState, FinishedJob, FinishedJobs, states_of

__all__ = ["BatchReport", "JobReport", "Ledger", "Ready", "amounts"]


@dataclass(frozen=True)
class JobReport:
    """What became of a job.

    status: `done`, `skipped` (finished by an earlier batch), `failed`, `not run` (after a failure), or `ready` where
    nothing is to be run. outputs, num_tensors, bytes_written: of what is there now, or would be; those of a skipped job
    are not counted again.
    """

    name: str
    status: str
    parameters: dict[str, Any]
    outputs: tuple[str, ...] = ()
    num_tensors: int = 0
    bytes_written: int = 0
    printed: str = ""
    warnings: tuple[Notice, ...] = ()
    error: SurgeryError | None = None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        told = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "error"}
        told["warnings"] = [warning.as_json() for warning in self.warnings]
        return told | {"problems": [] if self.error is None else [problem.as_json() for problem in self.error.single]}


@dataclass(frozen=True, kw_only=True)
class BatchReport(Amounts):
    """The account of a batch, with the amounts also of passes that were tried again. `task`: if the batch is shared,
    which of how many tasks this is the account of, as in `2/4`. `processes`: what each of those did that worked
    together, if they were several, and `process`: which of them this is."""

    jobs: tuple[JobReport, ...]
    num_passes: int
    task: str = ""
    process: int = 0
    processes: tuple[Share, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs have each status."""
        found = [job.status for job in self.jobs]
        return {status: found.count(status) for status in dict.fromkeys(found)}

    @property
    def has_failed(self) -> bool:
        """Whether any job failed."""
        return any(job.status == "failed" for job in self.jobs)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        told = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "jobs"}
        told["processes"] = [asdict(share) for share in self.processes]
        return {"jobs": [job.as_json() for job in self.jobs], "counts": self.counts} | told


@dataclass(frozen=True, eq=False)
class Ready:
    """A job that headers find nothing wrong with."""

    number: int
    job: Path  # what the names of its small files begin with; that ends with the key of its plan
    compiled: Compiled
    inputs: dict[str, tuple[FileState, ...]]


class Ledger(Observer):
    """What became of the jobs: those whose outputs will appear are recorded, and whatever has ended is told. In a
    batch that is shared, `claims` are those of this process, and `claimed` is what jobs are claimed by, by number."""

    def __init__(
        self,
        jobs: Sequence[Job],
        finished: FinishedJobs,
        options: Options,
        tell: Callable[[JobReport], None] | None,
        claims: Claims | None = None,
    ) -> None:
        self.jobs = jobs
        self.finished = finished
        self.claims = claims
        self.claimed: dict[int, Path] = {}
        self._files: dict[int, dict[str, list[str]]] = {}  # of outputs that will appear, by job and output
        self.reports: dict[int, JobReport] = {}
        self.has_failed = False
        self._sync = options.sync
        self._tell = tell

    def appearing(self, plans: Sequence[Appearing]) -> None:
        if self.claims is not None:
            self.claims.check(plan.tag.job for plan in plans)
        for plan in plans:
            self._files[plan.tag.number] = {output: list(files) for output, files in plan.files().items()}
        renamed = [plan for plan in plans if _is_renamed(plan)]
        self._record({plan.tag: _entry(plan) for plan in renamed})

    def appeared(self, plan: Appearing) -> None:
        ready, files = plan.tag, self._files.pop(plan.tag.number)
        if not _is_renamed(plan):
            self._record({ready: FinishedJob(ready.inputs, {path: states_of(names) for path, names in files.items()})})
        outputs = [(staging.plan, staging.layout) for staging in plan.stagings]
        self.end(ready.number, "done", printed=plan.printed, **amounts(plan.symbolic, outputs))

    def _record(self, entries: Mapping[Ready, FinishedJob]) -> None:
        if entries:
            told = {ready.job: (self.jobs[ready.number].name, entry) for ready, entry in entries.items()}
            self.finished.add(told, self._sync)

    def fail(self, number: int, error: Exception) -> None:
        """A job has failed."""
        self.has_failed = True
        self.end(number, "failed", error=told(error), printed=getattr(error, "printed", ""))

    def end(self, number: int, status: str, **more: Any) -> None:
        """A job has ended; `more` are further fields of its report."""
        job = self.jobs[number]
        try:
            parameters = job.parameters
        except PlanError:
            parameters = {}  # its report has that error
        self.reports[number] = JobReport(job.name, status, parameters, **more)
        self._end_claim(number, self.reports[number])
        if self._tell is not None:
            self._tell(self.reports[number])

    def _end_claim(self, number: int, report: JobReport) -> None:
        if self.claims is None or number not in self.claimed:
            return
        job = self.claimed[number]
        with suppress(StorageError):  # what became of the job is told anyhow, and its claim ends with this process
            if report.status in ("done", "skipped"):
                self.claims.done(job)
            elif report.status == "failed":
                self.claims.fail(job, str(report.error))
            else:
                self.claims.leave(job)


def amounts(symbolic: Symbolic, outputs: Outputs) -> dict[str, Any]:
    """What a report says of the outputs of a job."""
    return {
        "outputs": tuple(output.path for output, _ in outputs),
        "warnings": tuple(symbolic.warnings),
        "num_tensors": sum(len(save.tensors) for save in symbolic.saves),
        "bytes_written": sum(file.size for _, layout in outputs for file in layout.files),
    }


def _is_renamed(plan: Appearing) -> bool:
    """Whether the outputs appear by being renamed, so that what they will be is known before. What other places know
    them by is known when they are there."""
    return all(is_local(staging.plan.path) for staging in plan.stagings)


def _entry(plan: Appearing) -> FinishedJob:
    """What is to be recorded of a job whose outputs are complete and will appear."""
    outputs = {}
    for output, files in plan.files().items():
        states = states_of([str(path) for path in files.values()])
        named = ((path, size, changed) for path, (_, size, changed) in zip(files, states, strict=True))
        outputs[output] = tuple(named)
    return FinishedJob(plan.tag.inputs, outputs)
