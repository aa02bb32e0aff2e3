"""`surgery-jax run`."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..command import (
    BUDGETS,
    CLUSTER,
    CONFIG_CHECK,
    JSON,
    OVERWRITE,
    PLAN,
    PROOF,
    QUIET,
    RESUME,
    REUSE,
    SHARD_SIZE,
    STRICT,
    SYNC,
    Argument,
    PlanCommand,
    options_of,
)
from ..streams import emit, flush, name_leftovers, note
from ..text import count, json_text, seconds, some, visible

if TYPE_CHECKING:
    from ...api import Compiled
    from ...execute.options import Options
    from ...execute.report import Report
    from ...hosts.peers import Peers
    from ...language.plan import Plan

__all__ = ["account"]


class Run(PlanCommand):
    """Run a plan: compute, check and write everything, then let the outputs appear.

    Nothing appears under an output's name unless the whole plan and all its assertions succeeded. What the plan prints,
    and a summary of its steps as YAML, go to stdout; progress and the account of the run go to stderr.
    """

    name = "run"
    arguments = (
        *PLAN,
        *BUDGETS,
        SHARD_SIZE,
        OVERWRITE,
        CONFIG_CHECK,
        SYNC,
        RESUME,
        REUSE,
        *PROOF,
        Argument(
            "--locked",
            "refuse to run if plan, parameters or inputs are not those of this receipt",
            "RECEIPT",
            completes="file",
        ),
        STRICT,
        QUIET,
        JSON,
        *CLUSTER,
        Argument("--no-summary", "do not print the steps that ran"),
        Argument("--summary", "write the steps that ran to this new file, not to stdout", "PATH", completes="file"),
        Argument(
            "--summary-mode",
            "raw (default): the steps as written; resolve: with inputs, output, aliases and defaults",
            "MODE",
            choices=("raw", "resolve"),
            default="raw",
        ),
        Argument(
            "--profile",
            "write to this folder when each stage was at work and, if something is computed, what JAX's profiler saw; "
            "Perfetto opens both",
            "DIR",
            completes="file",
        ),
    )

    def run(self, args: Namespace) -> int:
        from ...api import compile_plan, finished, join, run
        from ...hosts.sharing import together
        from ...session.passes import output_paths, texts_of
        from ..failures import warn
        from ..progress import shown

        options = options_of(args)
        with join(options, note) as peers:
            plan = self.plan(args)
            if (there := finished(plan, options, peers)) is not None:
                return _tell_there(there, plan, args, peers)
            texts = [*texts_of(options), *([] if args.summary is None else [args.summary])]
            left = _leftovers([*output_paths(plan), *texts], peers, options, mend=True)
            compiled = compile_plan(plan, options, peers=peers)
            if args.locked is not None:
                from ...reports.locked import check_locked

                together(peers, lambda: check_locked(plan, compiled, args.locked) if peers.rank == 0 else True)
            together(peers, lambda: _check_summary(plan, compiled, args, is_writer=peers.rank == 0))
            if peers.rank == 0:
                warn(compiled.symbolic.warnings)
            left += _leftovers(output_paths(plan, compiled.outputs), peers, options, mend=False)
            with shown(args.quiet or peers.rank > 0) as display:
                report = run(plan, options, progress=display, compiled=compiled, peers=peers)
            if peers.rank:
                return 0
        name_leftovers(report.leftovers if options.resume else ())
        left = report.leftovers if options.resume else left
        report = dataclasses.replace(report, summary=_summary(plan, compiled, args), leftovers=left)
        if args.json:
            emit(json_text(report.as_json()))
            return 0
        for text in filter(None, (report.printed, report.summary)):
            emit(text)
        flush()
        if not args.quiet and report.accounting:
            note(account(report))
        return 0


def _tell_there(report: Report, plan: Plan, args: Namespace, peers: Peers) -> int:
    """Say that an earlier run had come to its end, and write the summary that it owed; gives the exit code."""
    from ...api import compile_plan
    from ...core.errors import StorageError, SurgeryError

    if peers.rank == 0 and args.summary is not None and not Path(args.summary).exists():
        try:
            compiled = compile_plan(plan, dataclasses.replace(options_of(args), overwrite=True))
        except SurgeryError:
            raise StorageError(
                "cannot write the summary: the inputs are no longer what they were",
                where=args.summary,
                hint="the output of the plan is there; only the summary of its steps is missing",
            ) from None
        _summary(plan, compiled, args)
    if peers.rank == 0 and args.json:
        emit(json_text(report.as_json()))
    elif peers.rank == 0:
        name_leftovers(report.leftovers)
    return 0


def _check_summary(plan: Plan, compiled: Compiled, args: Namespace, *, is_writer: bool) -> bool:
    """Whether `--summary` can be written once all is done; True.

    Raises:
        StorageError: it cannot, or it would replace what the plan reads or writes.
    """
    from ...core.errors import StorageError
    from ...storage.files import check_new_file
    from ..summary import is_dry

    if args.summary is None or args.no_summary or not is_writer or is_dry(list(compiled.symbolic.executed)):
        return True
    written = [Path(output.path) / file.name for output, layout in compiled.outputs for file in layout.files]
    taken = {os.path.realpath(path) for path in [*map(str, written), *(entry.path for entry in plan.inputs)]}
    if os.path.realpath(args.summary) in taken:
        raise StorageError("the summary would replace a file of the plan", where=args.summary, hint="name another file")
    if Path(args.summary).parent.exists():
        check_new_file(args.summary, args.overwrite)
    return True


def _leftovers(paths: Iterable[str], peers: Peers, options: Options, mend: bool) -> tuple[str, ...]:
    """Name what runs that did not come to their end have left: the output of the plan is looked at before its inputs,
    which it may be, and all outputs once they are known. One that goes on names what it leaves when it has looked."""
    from ...session.passes import leftovers

    found = leftovers(paths, mend=mend) if peers.rank == 0 else ()
    if options.resume:
        return ()
    name_leftovers(found)
    return found


def _summary(plan: Plan, compiled: Compiled, args: Namespace) -> str:
    """The summary for stdout; with `--summary` it goes to that file instead."""
    from ..summary import is_dry, summarize

    if args.no_summary:
        return ""
    executed = list(compiled.symbolic.executed)
    text = summarize(plan, executed, args.summary_mode)
    if args.summary is None:
        return text
    if not is_dry(executed):  # a dry run writes nothing
        from ...core.errors import StorageError
        from ...storage.files import storage_error, write_whole

        try:
            Path(args.summary).parent.mkdir(parents=True, exist_ok=True)
            write_whole(args.summary, text)
        except (OSError, StorageError) as error:
            failed = error if isinstance(error, StorageError) else storage_error(error, args.summary, "write it")
            failed.hint = "the output of the plan is there; only the summary of its steps is missing"
            raise failed from None
    return ""


def tell_report(report: Report, args: Namespace) -> None:
    """Tell what a command did that prints nothing of a plan."""
    if args.json:
        emit(json_text(report.as_json()))
    else:
        name_leftovers(report.leftovers)
        if not args.quiet and report.accounting:
            note(account(report))


def account(report: Report) -> str:
    """A line on what was done, and one on what nothing used, if there is any."""
    from ...core.errors import listing
    from ...core.specs import format_bytes

    through = report.bytes_moved + report.bytes_read
    parts = [
        f"wrote {some(report.outputs)}: {count(report.num_tensors, 'tensor')}{_kinds(report)}"
        if report.outputs
        else "nothing to write",
        f"{format_bytes(report.bytes_moved)} moved",
        f"{format_bytes(report.bytes_read)} read and {format_bytes(report.bytes_computed)} computed",
        f"in {seconds(report.wall_s)}, {format_bytes(through / max(report.wall_s, 1e-9))}/s",
    ]
    resumed = f"; {format_bytes(report.bytes_resumed)} were there already" if report.bytes_resumed else ""
    lines = ["; ".join(parts[:3]) + " " + parts[3] + resumed]
    lines += map(visible, report.reused)
    untouched = report.accounting.get("untouched", ())
    if untouched:
        names = [name if not name.endswith("::") else f"all of {name[:-2]}" for name in untouched]
        lines.append(f"of the inputs nothing used {visible(listing(names))}")
    return "\n".join(lines)


def _kinds(report: Report) -> str:
    """What became of the tensors of inputs and outputs, in brackets."""
    kinds = ("moved", "computed", "created", "dropped")
    told = [f"{report.accounting[kind]} {kind}" for kind in kinds if report.accounting.get(kind)]
    return f" ({', '.join(told)})" if told else ""
