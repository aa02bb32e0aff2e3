"""The verbs of the package: what the command line does, for Python.

Importing this module imports neither JAX nor NumPy; they come when something is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import Mark, Notice, PlanError, Problems, SurgeryError
from .core.regexes import check_time, compile_regex
from .execute.observers import Observer
from .execute.options import Options
from .hosts.cluster import join
from .hosts.peers import ALONE, Peers
from .language import document
from .language.document import node_of, noting_files, plain
from .language.parts import load_document, settings, settings_file
from .language.plan import Origin, Plan
from .session.compiled import Compiled
from .session.listening import showing
from .session.passes import Show, check_targets, output_paths
from .session.reading import Headers
from .session.run import Session, Transaction
from .storage import formats
from .storage.base import Checkpoint

if TYPE_CHECKING:
    from .compile.functions import Functions
    from .execute.report import Report
    from .mergekit.options import MergeOptions
    from .reports.compare import Difference
    from .reports.explain import Explanation
    from .reports.spectrum import Spectrum
    from .reports.survey import CheckpointInfo

__all__ = [
    "Compiled",
    "Options",
    "check",
    "compile_plan",
    "convert",
    "diff",
    "explain",
    "finished",
    "inspect",
    "join",
    "load_plan",
    "merge",
    "merge_plan",
    "plan_of",
    "run",
    "spectrum",
]


def load_plan(*arguments: str | Path, params: Mapping[str, Any] | str | Path | None = None) -> Plan:
    """A plan from plan files and `key=value` overrides, left to right.

    `params` are values of its parameters, or a YAML file with them; what `arguments` say comes after.

    Raises:
        PlanError: a file that cannot be read, is no YAML, or is no plan, or what is wrong with its parameters, its
            expressions and its loops.
        StorageError: an input that they ask for cannot be read.
    """
    words = [str(argument) for argument in arguments]
    with noting_files() as files:
        if isinstance(params, str | Path):
            more = settings_file(str(params))
        else:
            more = settings(params or {})
        values: dict[str, Any] = {}
        plan = Plan.of(load_document(words, more, Headers(), values))
    given = {part.name: plain(part.root.entries[part.name]) for part in more}
    return replace(plan, origin=Origin(files, tuple(word for word in words if word not in files), given | values))


def plan_of(content: Mapping[str, Any], name: str = "plan") -> Plan:
    """A plan from ordinary Python values. Errors name the place of a value as `transforms[5].scale_.target`.

    Raises:
        PlanError: not a plan.
    """
    root = node_of(content, Mark(name, 0, 0))
    if not isinstance(root, document.Mapping):
        raise PlanError(
            "a plan is a mapping", where=name, expected="inputs, transforms, output", found=f"{content!r:.80}"
        )
    return Plan.of(root)


def compile_plan(
    plan: Plan,
    options: Options | None = None,
    *,
    inputs: Mapping[str, Checkpoint] | None = None,
    peers: Peers = ALONE,
) -> Compiled:
    """Everything about a plan that can be known without reading a tensor.

    `inputs` are checkpoints by alias, such as `from_flax` gives; they stand in for the plan's inputs of these aliases.
    `peers` are the processes that share the work, which all compile the same plan.

    Raises:
        Problems: all that is wrong with it.
        SurgeryError: another process has another plan or other files, or something is wrong there.
    """
    return Session(options, peers=peers).compile(plan, inputs)


def check(plan: Plan, options: Options | None = None, *, inputs: Mapping[str, Checkpoint] | None = None) -> Compiled:
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
    from .reports.explain import explain

    compiled = plan if isinstance(plan, Compiled) else compile_plan(plan, options)
    return explain(compiled.last((options or Options()).limits))


def run(
    plan: Plan,
    options: Options | None = None,
    *,
    inputs: Mapping[str, Checkpoint] | None = None,
    progress: Show | None = None,
    observers: Sequence[Observer] = (),
    compiled: Compiled | None = None,
    peers: Peers = ALONE,
    functions: Functions | None = None,
) -> Report:
    """Run a plan: compute, check and write everything, then let the outputs appear.

    `inputs` are those of `compile_plan`. `peers` are the processes that share the work, from `join(options)`; each of
    them calls this with the same plan, and each gets the report of all, but what is printed only process 0. `progress`
    is called with bytes done and bytes in all, and `observers` are told what happens. Runs with the same `functions`
    compile what they have in common once.

    What runs that did not come to their end have left beside the outputs is named in the report, and left alone; with
    `options.resume` the run goes on with it, if it is the same plan on the same inputs.

    Raises:
        SurgeryError: what went wrong; nothing appears under an output's name. What was finished is kept for a run that
            goes on where somebody stopped this one, or files or another process failed it; else nothing is left.
    """
    session = Session(options, peers=peers, observers=showing(progress, observers), functions=functions)
    session.sweep(output_paths(plan))
    if (there := session.look_back(plan)) is not None:
        return there
    compiled = compiled or session.compile(plan, inputs)
    if (there := session.look_back(plan, compiled.outputs)) is not None:
        return there
    (outcome,) = session.run([Transaction(compiled, reuse=session.options.reuse)])
    return session.report(outcome)


def finished(plan: Plan, options: Options, peers: Peers = ALONE) -> Report | None:
    """The report of a run that was killed when all outputs of the plan were there, if `options.resume` asks to go on
    with such runs. Whoever compiles a plan before `run` calls this before that, since an input may be put back.

    Raises:
        StorageError: it cannot be put back.
    """
    session = Session(options, peers=peers)
    session.sweep(output_paths(plan))
    return session.look_back(plan)


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
    from .reports.survey import survey

    regex = _filter(filter)
    checkpoint = _opened(path)
    return survey(checkpoint, _wanted(regex, checkpoint), options, stats=stats, progress=progress)


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
    from .reports.compare import compare

    if eps is not None and not eps >= 0:
        raise PlanError("not a tolerance", expected="a number that is not negative", found=f"{eps}")
    regex = _filter(filter)
    sides = [_opened(path) for path in (left, right)]
    return compare(sides[0], sides[1], _wanted(regex, *sides), eps, options, progress=progress)


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
    from .reports.spectrum import measure

    regex = _filter(filter)
    base = _opened(checkpoint)
    if tuned is None:
        return measure(None, base, _wanted(regex, base), options, progress=progress)
    other = _opened(tuned)
    return measure(base, other, _wanted(regex, base, other), options, progress=progress)


def convert(
    source: str | Path,
    target: str | Path,
    options: Options | None = None,
    *,
    format: str | None = None,
    shard: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Show | None = None,
    observers: Sequence[Observer] = (),
) -> Report:
    """Write a checkpoint in another format or cut otherwise; format and shard mean what they mean in a plan's output,
    and `settings` are its options of the format. `progress` and `observers` are those of `run`.

    Raises:
        SurgeryError: it cannot be read, or not be written so.
    """
    asked = {"path": str(target), "format": format, "shard": shard, "options": dict(settings or {}) or None}
    output = {key: value for key, value in asked.items() if value is not None}
    plan = plan_of({"inputs": [f"model::{source}"], "output": output}, _NO_PLAN)
    try:
        return run(plan, options, progress=progress, observers=observers)
    except SurgeryError as error:
        problems = error.errors if isinstance(error, Problems) else (error,)
        for problem in problems:
            if isinstance(problem.where, Mark) and problem.where.file == _NO_PLAN:
                problem.where = None  # nobody wrote that plan
        raise (problems[0] if len(problems) == 1 else error) from None


def merge_plan(
    config: str | Path, out: str | Path, merge_options: MergeOptions | None = None
) -> tuple[Plan, list[Notice]]:
    """The plan that a configuration of mergekit becomes, which writes the directory `out`, and what of the
    configuration is ignored.

    Raises:
        SurgeryError: what is wrong with the configuration, or a model that it names cannot be read.
    """
    from .mergekit.options import MergeOptions
    from .mergekit.plans import plan_of_file

    return plan_of_file(config, out, merge_options or MergeOptions())


def merge(
    config: str | Path,
    out: str | Path,
    options: Options | None = None,
    *,
    merge_options: MergeOptions | None = None,
    progress: Show | None = None,
    observers: Sequence[Observer] = (),
    functions: Functions | None = None,
) -> Report:
    """Merge models as a configuration of mergekit says, into the directory `out`. `progress`, `observers` and
    `functions` are those of `run`.

    Raises:
        SurgeryError: what is wrong with the configuration, the models or the run; then nothing appears.
    """
    from .mergekit.plans import each_once

    plan, _ = merge_plan(config, out, merge_options)
    with each_once():
        return run(plan, options, progress=progress, observers=observers, functions=functions)


_NO_PLAN = "<convert>"


def _opened(path: str | Path | Checkpoint) -> Checkpoint:
    return path if isinstance(path, Checkpoint) else formats.open_checkpoint(str(path))


def _filter(filter: str) -> re.Pattern[str]:
    try:
        return compile_regex(filter, None)
    except PlanError as error:
        raise PlanError(f"not a regular expression: {filter[:80]!r}", found=error.problem, hint=error.hint) from None


def _wanted(regex: re.Pattern[str], *checkpoints: Checkpoint) -> Callable[[str], object]:
    """The filter, which is known to end in time on all names."""
    for checkpoint in checkpoints:
        check_time(regex, checkpoint.entries, None)
    return regex.search
