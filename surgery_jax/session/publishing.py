"""The end of what a session does: assertions settled, outputs completed, and let appear.

Each transaction succeeds or fails by itself; what several have in common is brought to the disk at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..execute.observers import Appearing, Observers
from ..hosts.peers import Peers
from .compiled import Compiled
from .passes import settle, write_notes

if TYPE_CHECKING:
    from ..storage.publish import Staging
    from .perform import OutputTarget

__all__ = ["Publisher", "TransactionOutcome", "Work"]


@dataclass(eq=False)
class TransactionOutcome:
    """What came of a transaction. `compiled` is its plan with what the data answered to its questions, `findings` has
    its checks and sinks, `targets` are what was written, and `error` says why nothing appeared."""

    compiled: Compiled
    findings: Mapping[Any, Any]
    targets: Sequence[OutputTarget]
    printed: str = ""
    error: Exception | None = None


@dataclass(eq=False)
class Work:
    """A transaction whose outputs are being written."""

    tag: Any
    stagings: Sequence[Staging]
    outcome: TransactionOutcome

    def appearing(self) -> Appearing:
        """For observers."""
        return Appearing(self.outcome.compiled.symbolic, self.stagings, self.outcome.printed, self.tag)


class Publisher:
    """Lets outputs appear, in the process that does so; the others wait for it."""

    def __init__(self, peers: Peers, observer: Observers, sync: bool) -> None:
        self._peers = peers
        self._observer = observer
        self._sync = sync

    def commit(self, works: Sequence[Work]) -> None:
        """Let the outputs of every transaction appear, if its assertions hold."""
        peers = self._peers
        if peers.rank == 0:
            _each(works, self._finish)
        peers.share()
        if peers.rank:  # only now, and whoever has not heard this keeps process 0 from going on
            peers.hand_over()
            for work in works:
                for staging in work.stagings:
                    staging.release()
        peers.gather()
        if peers.rank == 0:
            peers.disregard()
            self._publish(works)
        peers.share()

    def _finish(self, work: Work) -> None:
        """Settle the assertions, and write what belongs beside the outputs."""
        symbolic, findings = work.outcome.compiled.symbolic, work.outcome.findings
        work.outcome.printed = settle(symbolic, findings, self._observer)
        write_notes(symbolic, work.stagings, findings, self._observer)

    def _publish(self, works: Sequence[Work]) -> None:
        """Complete the outputs of all at once, since bringing many to the disk takes little longer than one; then let
        them appear, one transaction after the other."""
        from ..storage.commits import commit_all
        from ..storage.identity import check_all

        sync = self._sync

        def complete(work: Work) -> None:
            known = work.outcome.compiled.work.identities
            for staging in work.stagings:
                staging.finish()
            # at a store, a file of which something is read back now appears; inputs may lie where it does
            uploads = [staging for staging in work.stagings if not staging.is_on_disk]
            if uploads:
                check_all(known)
            self._observer.completed(work.appearing())
            for staging in work.stagings:
                staging.finish(sync)
            there = {path for staging in uploads for path in staging.finished_files()}
            check_all({path: identity for path, identity in known.items() if path not in there})

        def commit(work: Work) -> None:
            commit_all(work.stagings, sync, partial(self._observer.appeared, work.appearing()))

        if len(works) == 1:
            complete(works[0])
        else:
            with ThreadPoolExecutor(max(len(works), 1)) as pool:
                _each(works, complete, pool.map)
        whole = [work for work in works if work.outcome.error is None]
        try:
            self._observer.appearing([work.appearing() for work in whole])
        except Exception as error:
            if len(works) == 1:
                raise
            for work in whole:
                work.outcome.error = error
        _each(works, commit)


def _each(works: Sequence[Work], act: Callable[[Work], None], mapped: Callable[..., Iterable[None]] = map) -> None:
    """Do something for every transaction that has not failed. What it raises is noted, or, if there is only one, goes
    on."""

    def attempt(work: Work) -> None:
        try:
            act(work)
        except Exception as error:
            if len(works) == 1:
                raise
            work.outcome.error = error

    for _ in mapped(attempt, [work for work in works if work.outcome.error is None]):
        pass
