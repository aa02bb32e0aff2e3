"""`surgery-jax explain`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ..command import BUDGETS, CONFIG_CHECK, JSON, PLAN, SHARD_SIZE, SIMULATE, PlanCommand, options_of
from ..streams import emit
from ..text import count, json_text, listed, seconds, some, table

if TYPE_CHECKING:
    from ...reports.explain import Explanation, GroupAccount
    from ...reports.simulate import SimulatedPass, Simulation

__all__ = ["forecast_lines"]

ROWS = 20  # of moves; more say nothing that the totals do not


class Explain(PlanCommand):
    """Show what a plan compiles to: groups, moves, bytes, memory; or how a run on other machines would go.

    A group is one compiled function and all the tensors it is applied to. A move copies bytes and computes nothing.
    """

    name = "explain"
    arguments = (
        *PLAN,
        *BUDGETS,
        SHARD_SIZE,
        CONFIG_CHECK,
        JSON,
        SIMULATE,
    )

    def run(self, args: Namespace) -> int:
        from ...api import compile_plan, explain
        from ...reports.simulate import parse_machines, simulate
        from ..failures import warn

        options = options_of(args)
        machines = None if args.simulate is None else parse_machines(args.simulate)
        compiled = compile_plan(self.plan(args), options)
        warn(compiled.symbolic.warnings)
        if machines is not None:
            forecast = simulate(compiled.passes, options, machines)
            emit(json_text(forecast.as_json()) if args.json else "\n".join(forecast_lines(forecast)))
            return 0
        account = explain(compiled, options)
        emit(json_text(account.as_json()) if args.json else listed(_lines(account)))
        return 0


def _lines(account: Explanation) -> Iterator[str]:
    from ...core.specs import format_bytes

    if account.moves:
        yield "moved as bytes"
        rows = [
            (
                f"  {move.source}" + (f" -> {move.target}" if move.target != move.source else ""),
                f"{move.num_pieces} x" if move.num_pieces > 1 else "",
                format_bytes(move.nbytes),
                some(move.lines),
            )
            for move in account.moves[:ROWS]
        ]
        yield from table(rows, right=(1, 2))
        if len(account.moves) > ROWS:
            yield f"  and {len(account.moves) - ROWS} more patterns"
        yield ""
    for number, group in enumerate(account.groups, 1):
        yield from _group(number, group)
        yield ""
    size = format_bytes
    totals = [
        ("bytes moved", size(account.bytes_moved), "copied, never in an array"),
        (
            "bytes read",
            size(account.bytes_read),
            f"for computing; {count(account.num_tensors_read, 'tensor')} touched in all",
        ),
        ("bytes computed", size(account.bytes_computed), "results that are written"),
        ("bytes written", size(account.bytes_written), "moved and computed"),
        ("peak of buffers", size(account.peak_buffer_bytes), f"at most, with {count(account.num_workers, 'worker')}"),
        ("peak of memory", size(account.peak_memory_bytes), "with what the process takes by itself"),
        ("compilations", str(account.num_compilations), f"of {count(len(account.groups), 'group')}"),
    ]
    if account.num_questions:
        asked = count(account.num_questions, "question")
        totals.append(("asked first", asked, "of the data, by a pass of its own: what is above are upper bounds"))
    yield "totals"
    yield from table([("  " + name, value, note) for name, value, note in totals], right=(1,))


def forecast_lines(simulation: Simulation) -> Iterator[str]:
    """A prediction for people."""
    passes = simulation.passes
    yield f"predicted: {seconds(simulation.wall_s)} on {count(simulation.machines.hosts, 'host')}"
    if len(passes) == 1:
        yield from _pass(passes[0])
        return
    yield f"first pass, which finds what the plan asks of the data: {seconds(passes[0].wall_s)}"
    yield from _pass(passes[0])
    yield f"last pass, which writes: at most {seconds(passes[-1].wall_s)}, since the answers decide what is left to do"
    yield from _pass(passes[-1])
    yield "  not predicted: passes between these, over tensors whose beginnings the first one finds equal"


def _pass(one: SimulatedPass) -> Iterator[str]:
    from ...core.specs import format_bytes

    hosts = one.hosts

    def size(number: float) -> str:
        return format_bytes(int(number))

    rows = [
        (name, shown(min(values)), shown(sum(values) / len(values)), shown(max(values)))
        for name, shown, values in (
            ("bytes read", size, [float(host.bytes_read) for host in hosts]),
            ("bytes written", size, [float(host.bytes_written) for host in hosts]),
            ("tasks", lambda n: str(round(n)), [float(host.num_tasks) for host in hosts]),
            ("peak of buffers", size, [float(host.peak_buffer_bytes) for host in hosts]),
            ("link at work", seconds, [host.link_s for host in hosts]),
            ("busiest device", seconds, [host.device_s for host in hosts]),
            ("finished after", seconds, [host.wall_s for host in hosts]),
        )
    ]
    yield from table(
        [("  of a host", "least", "mean", "most"), *(("  " + row[0], *row[1:]) for row in rows)], right=(1, 2, 3)
    )
    yield f"  balance: the busiest host has {one.balance:.3f} x the mean of the bytes"


def _group(number: int, group: GroupAccount) -> Iterator[str]:
    from ...core.specs import format_bytes

    yield f"group {number}: {group.kind}" + (f"  {some(group.lines)}" if group.lines else "")
    operations = [
        f"{op.name}({_counted(op.inputs, ', ')})" + (f" -> {', '.join(op.outputs)}" if op.outputs else "")
        for op in group.operations
    ]
    pieces = f"{count(group.num_components, 'component')} in {count(group.num_tasks, 'task')}"
    checks = f", {count(group.num_checks, 'check')}" if group.num_checks else ""
    amounts = f"{format_bytes(group.bytes_in)} in, {format_bytes(group.bytes_out)} out"
    rows = [
        ("computes", _counted(operations, "; ")),
        ("reads", some(group.reads)),
        ("writes", some(group.writes)),
        ("shapes", some(group.shapes)),
        ("varies", "; ".join(group.varies)),
        ("amount", f"{pieces}{checks}; {amounts}; {format_bytes(group.task_bytes)} of buffers a task"),
    ]
    yield from (f"  {name:8}  {value}" for name, value in rows if value)


def _counted(words: Sequence[str], separator: str) -> str:
    """The words in a row, equal neighbours once with their number: the layers of a stack are many."""
    runs = [(word, len(list(run))) for word, run in groupby(words)]
    return separator.join(
        f"{number} x {word}" if number > 2 else separator.join([word] * number) for word, number in runs
    )
