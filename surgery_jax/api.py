"""The verbs of the package: what the command line does, for Python.

Importing this module imports neither JAX nor NumPy; they come when something is computed.
"""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as AbstractMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compile.program import Program, compile_program
from .core.errors import AssertionFailed, Mark, PlanError, Problems, SurgeryError
from .core.specs import Spec
from .execute.cluster import join
from .execute.options import Options
from .execute.peers import ALONE, Peers
from .execute.reservations import UNLIMITED, check_fits
from .graph.build import build
from .graph.node import Graph
from .graph.node import Node as GraphNode
from .graph.roots import Check, Request, Sink, Symbolic
from .language.document import Mapping, Node, load_document, node_of, parse_plan_file
from .language.plan import Input, Plan
from .storage import formats
from .storage.base import Checkpoint, Entry, Layout
from .storage.formats import OutputPlan

if TYPE_CHECKING:
    from .compile.lower import Functions
    from .execute.compare import Difference
    from .execute.explain import Explanation
    from .execute.perform import Performed
    from .execute.report import Report
    from .execute.spectrum import Spectrum
    from .execute.survey import CheckpointInfo
    from .storage.publish import Staging

__all__ = [
    "Compiled",
    "Options",
    "check",
    "compile_plan",
    "convert",
    "diff",
    "explain",
    "inspect",
    "join",
    "load_plan",
    "plan_of",
    "run",
    "spectrum",
]

Answers = AbstractMapping[GraphNode, Any]  # elements of versions, and whether masks are true everywhere
Outputs = tuple[tuple[OutputPlan, Layout], ...]
Show = Callable[[int, int], None]  # progress: bytes done, bytes in all


@dataclass(frozen=True, eq=False)
class Compiled:
    """A plan after everything that headers can tell: its roots, where every output byte belongs, and the work to do."""

    symbolic: Symbolic
    outputs: Outputs
    again: Callable[[Answers], Compiled] | None = None  # the same plan with answers of the data

    @cached_property
    def program(self) -> Program:
        """The work: moves, and groups of components. Found on first use, since many checks need nothing of it."""
        places, first = [], 0
        with _no_collection():
            for _, layout in self.outputs:
                rest = {
                    name: tuple((begin, first + file, at) for begin, file, at in parts)
                    for name, parts in layout.rest.items()
                }
                places.append(
                    {name: (first + file, at, rest.get(name, ())) for name, (file, at) in layout.places.items()}
                )
                first += len(layout.files)
            return compile_program(self.symbolic, places)

    @property
    def passes(self) -> tuple[Program, ...]:
        """The passes over the data that headers tell of: that which finds what the plan asks, if it asks anything, and
        the last one, which writes."""
        return (*([asking([self])] if self.symbolic.questions else []), self.program)


MAX_PASSES = 16  # over the data, before the last one: far more than steps build upon each other
Held = dict[str, Checkpoint]  # by the path that a plan names them with
AMPLE = 64 << 20  # bytes in which any elementwise work fits, since it is cut into tiles


class Outside:
    """The outside world as the graph may see it: headers, nested plans, and what output paths mean."""

    def __init__(self, options: Options, held: Held | None = None) -> None:
        self.options = options
        self.held = held or {}

    def open_checkpoint(self, path: str) -> Checkpoint:
        return self.held[path] if path in self.held else formats.open_checkpoint(path)

    def open_single(self, path: str, format: str) -> tuple[str | None, Entry]:
        return formats.open_single(path, format)

    def open_plan(self, path: str) -> Node:
        return parse_plan_file(path, interpolate=False)

    def check_request(self, request: Request) -> None:
        self.resolve(request)

    def resolve(self, request: Request) -> OutputPlan:
        """How a save is written."""
        try:
            if request.kind == "tensor":
                return formats.resolve_save_tensor(request.path, request.format, request.options)
            if request.kind == "alias":
                return formats.resolve_save(request.path, request.format, request.shard, request.options)
            return formats.resolve_output(
                request.path, request.format, request.shard, self.options.shard_size, request.options
            )
        except SurgeryError as error:
            raise error.located(request.mark) from None


def load_plan(*arguments: str | Path) -> Plan:
    """A plan from plan files and `key=value` overrides, left to right.

    Raises:
        PlanError: a file that cannot be read, is no YAML, or is no plan.
    """
    return Plan.of(load_document([str(argument) for argument in arguments]))


def plan_of(content: dict[str, Any], name: str = "plan") -> Plan:
    """A plan from ordinary Python values.

    Raises:
        PlanError: not a plan.
    """
    root = node_of(content, Mark(name, 1, 1))
    assert isinstance(root, Mapping)
    return Plan.of(root)


def compile_plan(
    plan: Plan, options: Options | None = None, *, inputs: AbstractMapping[str, Checkpoint] | None = None
) -> Compiled:
    """Everything about a plan that can be known without reading a tensor.

    `inputs` are checkpoints by alias, such as `from_flax` gives; they stand in for the plan's inputs of these aliases.

    Raises:
        Problems: all that is wrong with it.
    """
    plan, held = with_inputs(plan, inputs or {})
    return compile_with(plan, Outside(options or Options(), held))


def with_inputs(plan: Plan, inputs: AbstractMapping[str, Checkpoint]) -> tuple[Plan, Held]:
    """A plan with checkpoints in the place of inputs, or as further ones, and these under the paths it now names."""
    held = {f"<{alias} in memory>": checkpoint for alias, checkpoint in inputs.items()}
    mark = plan.output.mark if plan.output is not None else Mark("plan", 1, 1)
    known = {entry.alias: entry for entry in plan.inputs}
    known.update({alias: Input(alias, f"<{alias} in memory>", mark) for alias in inputs})
    return replace(plan, inputs=tuple(known.values())), held


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the cycle collector: compiling makes millions of small objects that all stay, and it would look at them
    again and again. They are set aside from it until the next run has ended."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def compile_with(plan: Plan, outside: Outside, graph: Graph | None = None, answers: Answers | None = None) -> Compiled:
    """As `compile_plan`, with the headers that `outside` gives, in the graph of other plans, and with what the data
    answers to the plan's questions.

    Raises:
        Problems: all that is wrong with the plan.
    """
    graph = graph or Graph()
    with _no_collection():
        symbolic = build(plan, outside, graph, answers)
        errors: list[SurgeryError] = []
        outputs = []
        for save in symbolic.saves:
            resolved = outside.resolve(save.request)
            specs: list[tuple[str, Spec]] = [(name, node.spec) for name, node in save.tensors]
            try:
                outputs.append((resolved, resolved.layout(specs, save.metadata)))
            except SurgeryError as error:
                errors.append(error.located(save.request.mark))
        if errors:
            raise Problems(errors)
        return Compiled(symbolic, tuple(outputs), partial(compile_with, plan, outside, graph))


def joined(parts: Sequence[Compiled]) -> Compiled:
    """The work of several plans of one graph as that of one; what they print and assert stays with them."""
    plans = [part.symbolic for part in parts]
    symbolic = Symbolic(
        saves=[save for plan in plans for save in plan.saves],
        checks=[check for plan in plans for check in plan.checks],
        sinks=[sink for plan in plans for sink in plan.sinks],
        prints=(),
        assertions=(),
        executed=(),
        needs_whole=any(plan.needs_whole for plan in plans),
    )
    return Compiled(symbolic, tuple(output for part in parts for output in part.outputs))


def asking(parts: Sequence[Compiled]) -> Program:
    """The work that finds what plans of one graph ask of the data; it writes nothing."""
    questions = [question for part in parts for question in part.symbolic.questions]
    checks = [question for question in questions if isinstance(question, Check)]
    sinks = [question for question in questions if isinstance(question, Sink)]
    with _no_collection():
        return compile_program(replace(joined(parts).symbolic, saves=(), checks=checks, sinks=sinks), ())


def settle_questions(
    parts: Sequence[Compiled],
    options: Options,
    progress: Show | None = None,
    peers: Peers = ALONE,
    functions: Functions | None = None,
) -> tuple[list[Compiled], list[Performed]]:
    """Plans of one graph compiled again with what they ask of the data, and the account of the passes that found it.

    Such a pass reads what the questions are about and writes nothing. Plans without questions stay as they are.
    `functions` are those of `perform`.

    Raises:
        SurgeryError: what went wrong.
    """
    from .execute.devices import check_fits_here
    from .execute.perform import perform

    settled = list(parts)
    answers: dict[GraphNode, Any] = {}
    passes: list[Performed] = []
    while questions := [question for part in settled for question in part.symbolic.questions]:
        if len(passes) == MAX_PASSES:
            raise PlanError(
                "what the plan asks of the data changes from pass to pass",
                found=f"{len(questions)} questions after {len(passes)} passes",
                hint="give random tensors a seed",
            )
        program = asking(settled)
        check_fits_here(program, options.limits)
        passes.append(perform(program, (), options, progress, peers, functions))
        found, asked = passes[-1].findings, program.symbolic
        answers |= {sink.node: found[sink] for sink in asked.sinks}
        answers |= {check.node: found[check].holds for check in asked.checks}
        settled = [part.again(answers) if part.symbolic.questions and part.again else part for part in settled]
    return settled, passes


def check(
    plan: Plan, options: Options | None = None, *, inputs: AbstractMapping[str, Checkpoint] | None = None
) -> Compiled:
    """Check a plan: language, names, shapes, dtypes, assertions on them, and that its outputs can be written.

    `inputs` are those of `compile_plan`.

    Raises:
        Problems: all that is wrong.
    """
    compiled = compile_plan(plan, options, inputs=inputs)
    check_targets(compiled, options or Options(), compiled.outputs)
    return compiled


def explain(plan: Plan | Compiled, options: Options | None = None) -> Explanation:
    """What running a plan would do: its groups and moves, bytes, compilations and peak memory, from headers alone.

    Raises:
        Problems: all that is wrong with the plan.
    """
    from .execute.explain import explain

    compiled = plan if isinstance(plan, Compiled) else compile_plan(plan, options)
    return explain(compiled.program, options)


def check_targets(compiled: Compiled, options: Options, outputs: Outputs) -> None:
    """Whether these outputs of a plan can be written, and its work fits the budget.

    Raises:
        SurgeryError: they cannot, or it does not.
    """
    from .storage.publish import check_space, check_target

    tests = [partial(check_target, output, options.overwrite) for output, _ in outputs]
    if not compiled.symbolic.questions:  # with them, sizes are only bounds
        tests.append(partial(check_space, outputs))
    is_small = min(options.memory_bytes, options.limits.device) < AMPLE
    if not compiled.symbolic.questions and (compiled.symbolic.needs_whole or is_small):
        tests.append(partial(check_fits, compiled.program, options.limits))
    errors: list[SurgeryError] = []
    for test in tests:
        try:
            test()
        except SurgeryError as error:
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else Problems(errors)


def run(
    plan: Plan,
    options: Options | None = None,
    *,
    inputs: AbstractMapping[str, Checkpoint] | None = None,
    progress: Show | None = None,
    compiled: Compiled | None = None,
    peers: Peers = ALONE,
) -> Report:
    """Run a plan: compute, check and write everything, then let the outputs appear.

    `inputs` are those of `compile_plan`. `peers` are the processes that share the work, from `join(options)`; each of
    them calls this with the same plan, and each gets the report of all, but what is printed only process 0.

    Raises:
        SurgeryError: what went wrong; nothing appears under an output's name, and nothing temporary is left.
    """
    from .execute.devices import check_fits_here
    from .execute.hosts import agree, agreed_options
    from .execute.perform import figures, perform
    from .execute.report import Report, peak_rss_bytes
    from .storage.publish import commit_all

    began = time.perf_counter()
    options = agreed_options(peers, options or Options())
    compiled = compiled or compile_plan(plan, options, inputs=inputs)
    agree(peers, compiled.symbolic, compiled.outputs)
    if peers.rank == 0:
        check_targets(compiled, options, compiled.outputs)
    (compiled,), passes = settle_questions([compiled], options, progress, peers)
    if passes:
        agree(peers, compiled.symbolic, compiled.outputs)
        if peers.rank == 0:
            check_targets(compiled, options, compiled.outputs)
    if options.limits.device < UNLIMITED:
        check_fits_here(compiled.program, options.limits)
    with ExitStack() as stack:
        stack.callback(gc.unfreeze)
        stagings = stage(compiled.outputs, stack, peers)
        done = perform(compiled.program, stagings, options, progress, peers)
        printed = ""
        if peers.rank == 0:
            printed = settle(compiled.symbolic, done.findings)
            write_notes(compiled, stagings, done.findings)
        peers.share()
        if peers.rank:  # only now, and whoever has not heard this keeps process 0 from going on
            for staging in stagings:
                staging.release()
        peers.gather()
        if peers.rank == 0:
            peers.disregard()
            commit_all(stagings, options.sync)
        peers.share()
    return Report(
        **_amounts(compiled),
        **figures([*passes, done]),
        peak_rss_bytes=peak_rss_bytes(),
        wall_s=time.perf_counter() - began,
        printed=printed,
    )


def write_notes(compiled: Compiled, stagings: Sequence[Staging], findings: Any) -> None:
    """Write the texts that belong beside outputs.

    Raises:
        StorageError: the operating system refuses.
    """
    for save, staging in zip(compiled.symbolic.saves, stagings, strict=True):
        if staging.plan.format.takes_notes:
            for name, render in save.notes.items():
                staging.add(name, render(findings))


def stage(outputs: Outputs, stack: ExitStack, peers: Peers = ALONE) -> list[Staging]:
    """Outputs in their hidden places, made by the first of the processes and opened by the others; what is not
    committed when the stack closes is removed.

    Raises:
        StorageError: the operating system refuses, or this process does not see what the first one made.
    """
    from .storage.publish import Staging

    stagings: list[Staging] = []

    def add(staging: Staging) -> None:
        stagings.append(staging)
        stack.callback(staging.abort)
        peers.rescue(staging.abort)

    if peers.rank == 0:
        for output, layout in outputs:
            add(Staging(output, layout))
    told = json.loads(peers.share(json.dumps([staging.tell() for staging in stagings]).encode()))
    if peers.rank:
        for (output, layout), place in zip(outputs, told, strict=True):
            add(Staging(output, layout, place))
    return stagings


def _amounts(compiled: Compiled) -> dict[str, Any]:
    """What of a report is known before the run."""
    program = compiled.program
    return {
        "outputs": tuple(output.path for output, _ in compiled.outputs),
        "num_tensors": sum(len(save.tensors) for save in compiled.symbolic.saves),
        "num_groups": len(program.groups),
        "bytes_moved": program.bytes_moved,
        "bytes_read": program.bytes_read,
        "bytes_computed": program.bytes_computed,
    }


def inspect(
    path: str | Path | Checkpoint,
    options: Options | None = None,
    *,
    filter: str = "",
    stats: bool = False,
    progress: Show | None = None,
) -> CheckpointInfo:
    """What a checkpoint holds, from its headers.

    With `stats` also the range and the mean of every tensor, read in bounded memory. `filter` is a regular
    expression that part of a name must match.

    Raises:
        SurgeryError: it cannot be read, or the filter is no regular expression.
    """
    from .execute.survey import survey

    wanted = _wanted(filter)
    return survey(_opened(path), wanted, options, stats=stats, progress=progress)


def diff(
    left: str | Path | Checkpoint,
    right: str | Path | Checkpoint,
    options: Options | None = None,
    *,
    eps: float | None = None,
    filter: str = "",
    progress: Show | None = None,
) -> Difference:
    """What differs between two checkpoints: exactly, or within the absolute tolerance `eps`. NaN equals NaN here.

    `filter` is a regular expression that part of a name must match.

    Raises:
        SurgeryError: one of them cannot be read, or the filter is no regular expression.
    """
    from .execute.compare import compare

    if eps is not None and not eps >= 0:
        raise PlanError("not a tolerance", expected="a number that is not negative", found=f"{eps}")
    wanted = _wanted(filter)
    sides = [_opened(path) for path in (left, right)]
    return compare(sides[0], sides[1], wanted, eps, options, progress=progress)


def spectrum(
    checkpoint: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint | None = None,
    options: Options | None = None,
    *,
    filter: str = "",
    progress: Show | None = None,
) -> Spectrum:
    """The singular values of the matrices of a checkpoint, or, with a fine-tune of it, of what that changed.

    `filter` is a regular expression that part of a name must match.

    Raises:
        SurgeryError: one of them cannot be read, there is no matrix, or one holds NaN or infinity.
    """
    from .execute.spectrum import measure

    wanted = _wanted(filter)
    if tuned is None:
        return measure(None, _opened(checkpoint), wanted, options, progress=progress)
    return measure(_opened(checkpoint), _opened(tuned), wanted, options, progress=progress)


def convert(
    source: str | Path,
    target: str | Path,
    options: Options | None = None,
    *,
    format: str | None = None,
    shard: str | None = None,
    settings: dict[str, str] | None = None,
    progress: Show | None = None,
) -> Report:
    """Write a checkpoint in another format or cut otherwise; format and shard mean what they mean in a plan's output,
    and `settings` are its options of the format.

    Raises:
        SurgeryError: it cannot be read, or not be written so.
    """
    asked = {"path": str(target), "format": format, "shard": shard, "options": dict(settings or {}) or None}
    output = {key: value for key, value in asked.items() if value is not None}
    plan = plan_of({"inputs": [f"model::{source}"], "output": output}, _NO_PLAN)
    try:
        return run(plan, options, progress=progress)
    except SurgeryError as error:
        problems = error.errors if isinstance(error, Problems) else (error,)
        for problem in problems:
            if isinstance(problem.where, Mark) and problem.where.file == _NO_PLAN:
                problem.where = None  # nobody wrote that plan
        raise (problems[0] if len(problems) == 1 else error) from None


_NO_PLAN = "<convert>"


def _opened(path: str | Path | Checkpoint) -> Checkpoint:
    return path if isinstance(path, Checkpoint) else formats.open_checkpoint(str(path))


def _wanted(filter: str) -> Callable[[str], object]:
    try:
        return re.compile(filter).search
    except (re.error, RecursionError, OverflowError) as error:
        raise PlanError(f"not a regular expression: {filter!r}", found=str(error)) from None


class _Failed(Problems):
    """Assertions that values decided, and what the plan printed before the first of them."""

    def __init__(self, errors: Sequence[SurgeryError], printed: str) -> None:
        super().__init__(errors)
        self.printed = printed


def settle(symbolic: Symbolic, findings: Any) -> str:
    """Settle the assertions and render what the plan prints.

    Raises:
        Problems: assertions that do not hold.
    """
    failed: list[SurgeryError] = []
    first = None
    for assertion in symbolic.assertions:
        holds, why = assertion.outcome.settle(findings)
        if not holds:
            failed.append(AssertionFailed(f"assertion failed: {why}", where=assertion.mark))
            first = assertion.step if first is None else first
    printed = "\n".join(entry.render(findings) for entry in symbolic.prints if first is None or entry.step <= first)
    if failed:
        raise _Failed(failed, printed)
    return printed
