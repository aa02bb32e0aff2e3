"""`surgery-jax batch`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ..command import (
    BUDGETS,
    CLUSTER,
    CONFIG_CHECK,
    DIGEST,
    JSON,
    NO_RECEIPT,
    OVERWRITE,
    QUIET,
    RESUME,
    REUSE,
    SHARD_SIZE,
    SIGN,
    SIMULATE,
    STRICT,
    SYNC,
    Argument,
    Command,
    options_of,
    whole,
)
from ..streams import emit, flush, name_leftovers, note
from ..text import count, json_text, listed, seconds, some, table, visible

if TYPE_CHECKING:
    from ...session.ledger import BatchReport, JobReport


class Batch(Command):
    """Run one plan as many jobs: lists, globs and combinations of values.

    What jobs have in common is compiled once and read once. A job that fails does not stop the others; one that is
    finished is skipped, unless its plan, its inputs or its outputs have changed. The exit code is 1 if any failed.
    """

    name = "batch"
    arguments = (
        Argument("jobs", "file of jobs", "JOBS", completes="plan"),
        Argument("overrides", "key=value for the plan of every job", "KEY=VALUE", many=True, optional=True),
        Argument("--check", "find what headers can tell, and run nothing"),
        Argument("--summary", "tell which jobs are done, failed, running and left, of all tasks, and run nothing"),
        SIMULATE,
        Argument("--again", "also run jobs that are finished"),
        Argument("--stop-on-failure", "start no more jobs after one has failed"),
        Argument(
            "--together",
            "jobs that share a pass at most (default: 16); 1: each by itself",
            "N",
            default=16,
            parse=whole,
        ),
        Argument("--record", "file that remembers finished jobs (default: JOBS with .done)", "PATH", completes="file"),
        Argument(
            "--task",
            "run only the share of task I of N, beside the others: I/N; auto (default): what a Slurm array or the "
            "workers of a TPU say; auto/N, for an indexed Job; none: all jobs, alone",
            "I/N",
            default="auto",
        ),
        Argument(
            "--lease",
            "seconds without a sign of life after which other tasks take over what one was at work on (default: 120)",
            "SECONDS",
            parse=float,
        ),
        *CLUSTER,
        *BUDGETS,
        SHARD_SIZE,
        OVERWRITE,
        CONFIG_CHECK,
        SYNC,
        RESUME,
        replace(REUSE, help=f"{REUSE.help}; ${{job}} in it is the name of each job"),
        NO_RECEIPT,
        DIGEST,
        SIGN,
        STRICT,
        QUIET,
        JSON,
    )

    def run(self, args: Namespace) -> int:
        _check_one_of(args)
        if args.summary:
            return _summary(args)
        if args.simulate is not None:
            return _simulate(args)
        from ...session.batch import batch
        from ...session.claims import LEASE
        from ..failures import warn
        from ..progress import shown

        with shown(args.quiet) as display:

            def say(text: str) -> None:
                if display is not None:
                    display.clear()
                note(visible(text))

            def tell(job: JobReport) -> None:
                if display is not None:
                    display.clear()
                for problem in job.error.single if job.error is not None else ():
                    note(f"error: job {visible(job.name)}: {visible(str(problem))}")
                warn(job.warnings, f"job {visible(job.name)}: ")
                if not args.quiet and not args.check and job.status == "done":
                    note(visible(f"done: {job.name}"))

            report = batch(
                args.jobs,
                options_of(args),
                overrides=args.overrides or (),
                together=args.together,
                again=args.again,
                stop_on_failure=args.stop_on_failure,
                only_check=args.check,
                record=args.record,
                task=args.task,
                lease=LEASE if args.lease is None else args.lease,
                progress=display,
                tell=tell,
                notify=say,
            )
        if report.process:
            return 1 if report.has_failed else 0
        if args.json:
            emit(json_text(report.as_json()))
        else:
            name_leftovers(report.leftovers)
            emit(listed(_lines(report)))
            flush()
            if not args.quiet and report.num_passes:
                note(_account(report))
        return 1 if report.has_failed else 0


def _check_one_of(args: Namespace) -> None:
    """Whether at most one thing is asked for that is not to run.

    Raises:
        PlanError: it is not.
    """
    from ...core.errors import PlanError

    given = {"--check": args.check, "--summary": args.summary, "--simulate": args.simulate is not None}
    asked = [word for word, is_given in given.items() if is_given]
    if len(asked) > 1:
        raise PlanError(f"{' and '.join(asked)} contradict each other")


def _simulate(args: Namespace) -> int:
    """How the batch would go on other machines, a task on each; gives the exit code."""
    from ...reports.simulate import parse_machines, simulate_batch
    from ...session.rehearsal import rehearsed
    from .explain import forecast_lines

    options, machines = options_of(args), parse_machines(args.simulate)
    shares = rehearsed(
        args.jobs,
        machines.hosts,
        options,
        overrides=args.overrides or (),
        together=max(args.together, 1),
        record=args.record,
    )
    programs = ([compiled.passes for compiled in share] for share in shares)
    forecast = simulate_batch(programs, options, machines)
    emit(json_text(forecast.as_json()) if args.json else "\n".join(forecast_lines(forecast)))
    return 0


def _summary(args: Namespace) -> int:
    """How the batch stands; gives the exit code."""
    from ...session.standing import standing

    found = standing(args.jobs, options_of(args), overrides=args.overrides or (), record=args.record)
    if args.json:
        emit(json_text(found.as_json()))
        return 0
    rows = []
    for job in found.jobs:
        by = f"{job.by}, heard of {seconds(job.age_s)} ago" if job.age_s is not None else some(job.outputs, 2)
        rows.append((job.name, job.status, "; ".join(filter(None, (by, " ".join(job.why.split()))))))
    told = ", ".join(f"{number} {status}" for status, number in found.counts.items())
    lines = [*table([("job", "status", ""), *rows]), f"{count(len(rows), 'job')}: {told}"]
    emit(listed(lines))
    return 0


def _lines(report: BatchReport) -> Iterator[str]:
    from ...core.specs import format_bytes

    for job in report.jobs:
        if job.printed:
            yield f"{job.name}:"
            yield from (f"  {line}" for line in job.printed.splitlines())
    rows = [
        (
            job.name,
            job.status,
            some(job.outputs, 2),
            str(job.num_tensors) if job.num_tensors else "",
            format_bytes(job.bytes_written) if job.bytes_written else "",
        )
        for job in report.jobs
    ]
    yield from table([("job", "status", "output", "tensors", "bytes"), *rows], right=(3, 4))
    task = f"task {report.task}, " if report.task else ""
    told = ", ".join(f"{n} {status}" for status, n in report.counts.items()) or "nothing to do"
    yield f"{task}{count(len(report.jobs), 'job')}: {told}"


def _account(report: BatchReport) -> str:
    """A line on what was done, and one on each earlier output that was to be taken over from."""
    from ...core.specs import format_bytes

    size = format_bytes
    through = report.bytes_moved + report.bytes_read
    resumed = f"; {size(report.bytes_resumed)} were there already" if report.bytes_resumed else ""
    line = (
        f"{count(report.num_passes, 'pass', 'passes')}: {size(report.bytes_moved)} moved; "
        f"{size(report.bytes_read)} read and {size(report.bytes_computed)} computed in {seconds(report.wall_s)}, "
        f"{size(through / max(report.wall_s, 1e-9))}/s{resumed}"
    )
    return "\n".join([line, *map(visible, report.reused)])
