"""The work of a batch as tasks would do it, compiled from headers and not done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..execute.options import Options
from ..language.jobs import Job, load_jobs
from .batch_jobs import JointPass
from .compiled import Compiled, compile_with, joined
from .finished import job_files, key_of
from .ledger import Ready
from .passes import output_paths
from .reading import Headers
from .sharing_out import shares_of

__all__ = ["rehearsed"]


def rehearsed(
    path: str,
    count: int,
    options: Options | None = None,
    *,
    overrides: Sequence[str] = (),
    together: int,
    record: str | None = None,
) -> Iterator[list[Compiled]]:
    """For each of so many tasks, one after the other, its passes: what up to `together` jobs are that share a pass. The
    arguments are those of `batch`; jobs that are finished count as well, and nothing is written.

    Raises:
        SurgeryError: the job file or one of its jobs is wrong.
    """
    options = options or Options()
    jobs = load_jobs(path, overrides)
    headers = Headers()
    plans = [job.plan(headers) for job in jobs]
    record = record or f"{path}.done"
    for share in shares_of(jobs, plans, count, record, is_settled=False):
        yield [joined(compiled) for compiled in _passes(jobs, share, headers, options, together, record)]


def _passes(
    jobs: Sequence[Job], share: Sequence[int], headers: Headers, options: Options, together: int, record: str
) -> Iterator[list[Compiled]]:
    current = JointPass(options)
    for number in share:
        plan = jobs[number].plan(headers)
        compiled = compile_with(plan, current.headers, current.graph)
        own = job_files(record, key_of(plan, options), output_paths(plan))
        current.jobs.append(Ready(number, own, compiled, {}))
        if len(current.jobs) >= together or current.is_full:
            yield [ready.compiled for ready in current.jobs]
            current = JointPass(options)
    if current.jobs:
        yield [ready.compiled for ready in current.jobs]
