"""What happens around the passes over the data: outputs are tried and annotated, assertions settled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.errors import AssertionFailed, Problems, SurgeryError
from ..execute.fits import check_fits
from ..execute.observers import Observers
from ..execute.options import Options
from ..graph.roots import Symbolic
from ..proof.receipt import table_path
from ..storage.places.found import locate
from .compiled import Compiled, Outputs

if TYPE_CHECKING:
    from ..language.plan import Plan
    from ..storage.publish import Staging

__all__ = ["Show", "check_targets", "leftovers", "output_paths", "settle", "tell_laid", "texts_of", "write_notes"]

Show = Callable[[int, int], None]  # progress: bytes done, bytes in all
AMPLE = 64 << 20  # bytes in which any elementwise work fits, since it is cut into tiles


def check_targets(compiled: Compiled, options: Options, outputs: Outputs) -> None:
    """Whether these outputs of a plan can be written, and its work fits the budget; tells what stays of old models.

    Raises:
        SurgeryError: they cannot, or it does not.
    """
    from ..storage.publish import check_space, check_target
    from ..storage.targets import tell_kept

    tests = [partial(check_target, output, options.overwrite, layout.documents) for output, layout in outputs]
    if not compiled.symbolic.questions:  # with them, sizes are only bounds
        tests.append(partial(check_space, outputs))
    # what is only tiled and moved fits an ample budget: then nothing need be compiled for it
    is_small = min(options.memory_bytes, options.limits.device) < AMPLE
    is_encoded = any(file.encode is not None for _, layout in outputs for file in layout.files)
    if compiled.symbolic.needs_whole or is_small or is_encoded:
        # of several passes the sizes of the last are only bounds
        tests.append(partial(check_fits, compiled.first(options.limits)))
    errors: list[SurgeryError] = []
    for test in tests:
        try:
            test()
        except SurgeryError as error:
            if str(error) not in map(str, errors):  # several of them may stumble over one thing
                errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else Problems(errors)
    for output, layout in outputs:
        tell_kept(output, layout.documents)


def output_paths(plan: Plan, outputs: Outputs = ()) -> list[str]:
    """Where a plan writes: all `outputs` once these are known, until then its output."""
    return [output.path for output, _ in outputs] or ([plan.output.path] if plan.output is not None else [])


def texts_of(options: Options) -> list[str]:
    """Where a run writes texts of its own beside its outputs: a receipt and its table."""
    path = options.receipt_path
    return [] if path is None else [path, str(table_path(locate(path)))]


def leftovers(paths: Iterable[str], *, mend: bool = False) -> tuple[str, ...]:
    """What runs that did not come to their end have left beside outputs, a sentence each; with `mend` what they were
    replacing is put back. To be done before anything is read: it may be an input.

    Raises:
        StorageError: an output is no path.
    """
    from ..storage.clearing import clear
    from ..storage.targets import final_place

    places = dict.fromkeys(final_place(path) for path in paths)
    return tuple(told for place in places for told in clear(place, remove=False, mend=mend))


def write_notes(symbolic: Symbolic, stagings: Sequence[Staging], findings: Any, observer: Observers) -> None:
    """Write the texts that belong beside outputs.

    Raises:
        StorageError: the operating system refuses.
    """
    from ..io.outputs import Written

    for save, staging in zip(symbolic.saves, stagings, strict=False):  # there is no place beside an output in memory
        if staging.plan.format.takes_notes:
            for name, render in save.notes.items():
                text = render(findings)
                place, data = staging.add(name, text), text.encode()
                if observer.wants_ranges:
                    observer.written(Written(str(locate(staging.plan.path) / name), place, 0, len(data), data))


def tell_laid(observer: Observers, staging: Staging) -> None:
    """Tell of the bytes that are in an output from the beginning: headers and documents."""
    if observer.wants_ranges:
        from ..io.outputs import Written

        for index, file in enumerate(staging.layout.files):
            path = str(locate(staging.plan.path) / file.name)
            if file.source is not None:
                observer.written(Written(path, staging.place(index), 0, file.size, None))
            for offset, data in file.fixed:
                observer.written(Written(path, staging.place(index), offset, len(data), data))


class _Failed(Problems):
    """Assertions that values decided, and what the plan printed before the first of them."""

    def __init__(self, errors: Sequence[SurgeryError], printed: str) -> None:
        super().__init__(errors)
        self.printed = printed


def settle(symbolic: Symbolic, findings: Any, observer: Observers) -> str:
    """Settle the assertions and render what the plan prints.

    Raises:
        Problems: assertions that do not hold.
    """
    failed: list[SurgeryError] = []
    first = None
    for assertion in symbolic.assertions:
        holds, why = assertion.outcome.settle(findings)
        observer.settled(assertion, holds, why)
        if not holds:
            failed.append(AssertionFailed(f"assertion failed: {why}", where=assertion.mark))
            first = assertion.step if first is None else first
    printed = "\n".join(entry.render(findings) for entry in symbolic.prints if first is None or entry.step <= first)
    if failed:
        raise _Failed(failed, printed)
    return printed
