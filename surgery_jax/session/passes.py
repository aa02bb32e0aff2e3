"""What happens around the passes over the data: outputs are tried, staged and annotated, questions answered, assertions
settled."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.errors import AssertionFailed, PlanError, Problems, SurgeryError
from ..execute.fits import check_fits
from ..execute.options import Options
from ..graph.node import Node
from ..graph.roots import Symbolic
from ..hosts.peers import ALONE, Peers
from .compiled import Compiled, Outputs, asking

if TYPE_CHECKING:
    from ..compile.functions import Functions
    from ..language.plan import Plan
    from ..storage.base import Layout
    from ..storage.formats import OutputPlan
    from ..storage.publish import Staging
    from .perform import Performed

__all__ = ["Show", "check_targets", "leftovers", "settle", "settle_questions", "stage", "write_notes"]

Show = Callable[[int, int], None]  # progress: bytes done, bytes in all
MAX_PASSES = 16  # over the data, before the last one: far more than steps build upon each other
AMPLE = 64 << 20  # bytes in which any elementwise work fits, since it is cut into tiles


def check_targets(compiled: Compiled, options: Options, outputs: Outputs) -> None:
    """Whether these outputs of a plan can be written, and its work fits the budget.

    Raises:
        SurgeryError: they cannot, or it does not.
    """
    from ..storage.publish import check_space, check_target

    tests = [partial(check_target, output, options.overwrite) for output, _ in outputs]
    if not compiled.symbolic.questions:  # with them, sizes are only bounds
        tests.append(partial(check_space, outputs))
    # what is only tiled and moved fits an ample budget: then nothing need be compiled for it
    is_small = min(options.memory_bytes, options.limits.device) < AMPLE
    is_encoded = any(file.encode is not None for _, layout in outputs for file in layout.files)
    if compiled.symbolic.needs_whole or is_small or is_encoded:
        # of several passes the sizes of the last are only bounds
        tests.append(partial(check_fits, compiled.passes[0], options.limits))
    errors: list[SurgeryError] = []
    for test in tests:
        try:
            test()
        except SurgeryError as error:
            if str(error) not in map(str, errors):  # several of them may stumble over one thing
                errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else Problems(errors)


def leftovers(plan: Plan, outputs: Outputs = (), *, remove: bool = False) -> tuple[str, ...]:
    """What runs that were killed have left beside the output of a plan, and beside all `outputs` once these are known,
    a sentence each; `remove` what nobody can miss. Before anything is read: it may be the input that is put back.

    Raises:
        StorageError: an output is no path.
    """
    from ..storage.stages import clear
    from ..storage.targets import final_place

    paths = [output.path for output, _ in outputs] or ([plan.output.path] if plan.output is not None else [])
    places = dict.fromkeys(final_place(path) for path in paths)
    return tuple(told for place in places for told in clear(place, remove=remove))


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
    from ..execute.devices import check_fits_here
    from .perform import perform

    settled = list(parts)
    answers: dict[Node, Any] = {}
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


def write_notes(compiled: Compiled, stagings: Sequence[Staging], findings: Any) -> None:
    """Write the texts that belong beside outputs.

    Raises:
        StorageError: the operating system refuses.
    """
    for save, staging in zip(compiled.symbolic.saves, stagings, strict=True):
        if staging.plan.format.takes_notes:
            for name, render in save.notes.items():
                staging.add(name, render(findings))


def stage(outputs: Outputs, stack: ExitStack, overwrite: bool, peers: Peers = ALONE) -> list[Staging]:
    """Outputs in their hidden places, made by the first of the processes and opened by the others; what is not
    committed when the stack closes is removed. What lies at their places now may be replaced, if `overwrite`.

    Raises:
        StorageError: the operating system refuses, or this process does not see what the first one made.
    """
    from ..core.interrupts import held
    from ..storage.uploads import open_staging

    stagings: list[Staging] = []

    def add(output: OutputPlan, layout: Layout, told: dict[str, Any] | None = None) -> None:
        with held():  # from the moment when there is something, it is known that it must be removed
            staging = open_staging(output, layout, told, overwrite=overwrite)
            stagings.append(staging)
            stack.callback(staging.abort)
            peers.rescue(staging.abort)

    if peers.rank == 0:
        for output, layout in outputs:
            add(output, layout)
    told = json.loads(peers.share(json.dumps([staging.tell() for staging in stagings]).encode()))
    if peers.rank:
        for (output, layout), place in zip(outputs, told, strict=True):
            add(output, layout, place)
    return stagings


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
