"""How a batch stands: which of its jobs are done, which failed, which somebody is at work on, and which are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import SurgeryError
from ..execute.options import Options
from ..language.jobs import Job, load_jobs
from .batch_jobs import Conflicts, FilesNow
from .claims import Claim, claim_of
from .finished import FinishedJobs, job_files, key_of
from .passes import output_paths
from .reading import Headers
from .reads import paths_read

__all__ = ["JobStanding", "Standing", "standing"]

STATUSES = ("done", "failed", "running", "left")


@dataclass(frozen=True, slots=True)
class JobStanding:
    """A job: `status` is one of `done`, `failed`, `running` and `left`; `by` is the process that is, or was, at work on
    it; `age_s` are the seconds since that was heard of, and `why` says what went wrong."""

    name: str
    status: str
    outputs: tuple[str, ...] = ()
    by: str = ""
    age_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """All jobs of a batch, in the order of their file."""

    jobs: tuple[JobStanding, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs have each status."""
        found = [job.status for job in self.jobs]
        return {status: found.count(status) for status in STATUSES}

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"jobs": [asdict(job) for job in self.jobs], "counts": self.counts}


def standing(
    path: str, options: Options | None = None, *, overrides: Sequence[str] = (), record: str | None = None
) -> Standing:
    """How the batch of a job file stands, by its record and by what its tasks have said beside that. Nothing is
    changed, and nobody is disturbed. The arguments are those of `batch`.

    Raises:
        SurgeryError: the job file is wrong, or the record cannot be read.
    """
    jobs = load_jobs(path, overrides)
    with FinishedJobs(record or f"{path}.done", is_kept=False) as finished:
        looker = _Looker(jobs, finished, options or Options())
        return Standing(tuple(looker.look(number) for number in range(len(jobs))))


class _Looker:
    def __init__(self, jobs: Sequence[Job], finished: FinishedJobs, options: Options) -> None:
        self._jobs = jobs
        self._finished = finished
        self._options = options
        self._headers = Headers()
        self._conflicts = Conflicts(jobs)
        self._files = FilesNow()

    def look(self, number: int) -> JobStanding:
        """How one job stands.

        Raises:
            SurgeryError: the record cannot be read.
        """
        name = self._jobs[number].name
        try:
            plan = self._jobs[number].plan(self._headers)
            self._conflicts.note(number, output_paths(plan), {path: () for path in paths_read(plan)})
        except SurgeryError as error:
            return JobStanding(name, "failed", why=str(error))
        job = job_files(self._finished.path, key_of(plan, self._options), output_paths(plan))
        known = self._finished.of(job)
        try:
            for entry in known:
                if entry.holds(self._files.of):
                    return JobStanding(name, "done", tuple(entry.outputs))
        except SurgeryError as error:
            return JobStanding(name, "failed", why=str(error))
        claim = claim_of(job)
        return JobStanding(name, "left") if claim is None else _claimed(name, claim)


def _claimed(name: str, claim: Claim) -> JobStanding:
    if claim.state == "failed":
        return JobStanding(name, "failed", by=str(claim), age_s=claim.age_s, why=claim.why)
    if claim.state != "held":
        return JobStanding(name, "left", by=str(claim), age_s=claim.age_s)
    if claim.is_dead or claim.age_s > claim.lease:
        return JobStanding(name, "left", by=str(claim), age_s=claim.age_s, why="not heard of any more")
    return JobStanding(name, "running", by=str(claim), age_s=claim.age_s)
