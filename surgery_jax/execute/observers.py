"""What can be learned of a run while it is at work: one method for every kind of event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..graph.roots import Assertion, Symbolic
    from ..io.outputs import Written
    from ..storage.publish import Staging
    from .report import Account
    from .schedule import Schedule
    from .tasks import Task
    from .verdicts import Findings

__all__ = ["Appearing", "Observer", "Observers", "Pass"]


class Pass(NamedTuple):
    """A pass over the data.

    schedule: of the work of all processes; its `key` names a task in the same way in all of them, and whenever the plan
    is run again. left: the tasks of all processes that no earlier run has finished. tasks: those of this process, and
    the bytes that it has to get through. is_last: whether it is the one that writes; those before it find what the plan
    asks of the data. findings: what comes of the checks and sinks of this process, as it comes.
    """

    schedule: Schedule
    left: Sequence[Task]
    tasks: Sequence[Task]
    nbytes: int
    is_last: bool
    findings: Findings


@dataclass(frozen=True, eq=False)
class Appearing:
    """The outputs of one plan, complete in their hidden places, none if it writes none. `printed` is what the plan
    prints, and `tag` what the session was given with the plan."""

    symbolic: Symbolic
    stagings: Sequence[Staging]
    printed: str
    tag: Any

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the outputs."""
        return tuple(staging.plan.path for staging in self.stagings)

    def files(self) -> dict[str, dict[str, Path]]:
        """Before they appear, by the path of each output its files: where each will be, and where it is until then."""
        return {staging.plan.path: staging.finished_files() for staging in self.stagings}


class Observer:
    """Is told what happens in a run. Each method does nothing until it is overridden, and then costs one call.

    Of several processes each tells its own observers what is staged and what it does itself; what is settled and what
    appears, process 0 tells. What an observer raises ends the run as any other error does. Those methods whose
    description says so are called by the threads that do the work, several at once, and keep them from it.
    """

    def staged(self, plan: Appearing) -> None:
        """The outputs of a plan have their hidden places, and nothing is written yet; nothing is printed yet either."""

    def pass_begins(self, work: Pass) -> None:
        """The first of its tasks is about to be taken."""

    def tick(self) -> None:
        """A pass is under way; called several times a second, by the thread that waits for it."""

    def advanced(self, nbytes: int) -> None:
        """So many more of the bytes of the pass are through. Called by the threads that do the work."""

    def stage(self, name: str, start: float, end: float) -> None:
        """This thread has read, computed, written, ... from `start` to `end`, in seconds of `time.perf_counter`. Called
        by the threads that do the work."""

    def task_done(self, task: Task) -> None:
        """All that a task computes is where it belongs. Called by the threads that do the work."""

    def written(self, what: Written) -> None:
        """A range of bytes of an output is in its place, each of them once. Called by the threads that do the work.

        Not told is what a format completes when all is there, such as checksums, and what nobody writes, such as zeros
        between tensors: a file is what it will be when its output is `appearing`.
        """

    def encoding(self, what: Written) -> None:
        """The bytes of tensors that make up a file are all there, and are encoded now; `written` tells what becomes of
        them. Called by the threads that do the work."""

    def pass_ends(self, account: Account | None) -> None:
        """The account of a pass, of all processes; None if it failed."""

    def settled(self, assertion: Assertion, holds: bool, why: str) -> None:
        """Values have decided an assertion."""

    def completed(self, plan: Appearing) -> None:
        """The outputs of a plan are complete, but not on the disk yet: files can still be put beside them. Of several
        plans called by several threads; if this raises, the outputs of this plan do not appear."""

    def appearing(self, plans: Sequence[Appearing]) -> None:
        """Outputs are complete and will appear at once, those of each plan together; if this raises, none of them."""

    def appeared(self, plan: Appearing) -> None:
        """The outputs of a plan are there, and nothing takes them back. Signals wait until this returns."""


EVENTS = tuple(name for name, member in vars(Observer).items() if callable(member) and not name.startswith("_"))


class Observers(Observer):
    """Tells each of several observers, in their order. `wants_ranges` says whether any of them wants to know what is
    written."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        told = list(observers)
        for name in EVENTS:
            heard = [getattr(one, name) for one in told if getattr(type(one), name) is not getattr(Observer, name)]
            if heard:
                setattr(self, name, heard[0] if len(heard) == 1 else _each(heard))
        self.wants_ranges = "written" in vars(self) or "encoding" in vars(self)


def _each(heard: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*what: Any) -> None:
        for one in heard:
            one(*what)

    return tell
