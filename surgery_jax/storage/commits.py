"""Letting outputs appear, all at once or none, and what is done with them otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..core.errors import BudgetError, Problems, StorageError, told
from ..core.interrupts import check_interrupted, held, note_published
from .identity import Changed
from .publish import Staging

__all__ = ["commit_all", "may_go_on", "unwinding"]


def commit_all(stagings: Sequence[Staging], sync: bool = True, appeared: Callable[[], object] | None = None) -> None:
    """Publish several outputs: all are complete before the first appears; if one fails, all are taken back.

    Who asks to stop before the first appears is heard; after that, only when all are there and `appeared` was called.
    If that fails the outputs stay, and what a run needs to make up for it.

    Raises:
        StorageError: an output could not be completed or published.
    """
    # A directory before what lies within it, which comes into the new one.
    order = sorted(stagings, key=lambda staging: len(staging._final.parts))
    fresh = {staging._final for staging in stagings}
    try:
        for staging in stagings:
            staging.finish(sync)
        for staging in order:
            staging._prepare(sync, fresh)
        check_interrupted()
        with held():
            _publish_all(order, sync, fresh)
            note_published(staging.plan.path for staging in stagings)
            for staging in stagings:
                staging._settle()
            if appeared is not None:
                appeared()  # what tells a run that goes on what is there stays until this is done, too
            for staging in stagings:
                staging._clean()
    except BaseException as error:
        for staging in reversed(stagings):
            staging.abort(keep=may_go_on(error))
        raise


def _publish_all(order: Sequence[Staging], sync: bool, fresh: Set[Path]) -> None:
    stages = [staging._stage for staging in order if staging._stage is not None]
    try:
        for stage in stages:
            stage.begin(len(stages) > 1, sync=sync)
        for staging in order:
            staging._publish(sync, fresh)
    except BaseException as error:
        lost = [problem for staging in reversed(order) if (problem := staging._take_back())]
        if lost and isinstance(error, Exception):
            raise Problems([told(error), *lost]) from None
        raise
    for stage in stages:
        stage.end()


@contextmanager
def unwinding() -> Iterator[ExitStack]:
    """A stack of what must be done at the end, whatever happens: a signal that comes meanwhile waits."""
    stack = ExitStack()
    try:
        yield stack
    except BaseException as error:
        with held():
            stack.__exit__(type(error), error, error.__traceback__)
        raise
    with held():
        stack.close()


def may_go_on(error: BaseException | None) -> bool:
    """Whether what was finished before an error may serve the next run: somebody stopped this one, or a disk or another
    process failed it. A plan that is wrong, and an assertion, fail again; changed inputs give something else."""
    if isinstance(error, Exception):
        return not isinstance(error, Changed) and told(error).exit_code in (
            StorageError.exit_code,
            BudgetError.exit_code,
        )
    return error is not None
