"""The observers that the options of a session ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import PlanError
from ..execute.observers import Observer
from ..execute.options import Options
from ..execute.report import Progress
from ..hosts.peers import Peers
from .passes import Show

if TYPE_CHECKING:
    from ..io.outputs import Written
    from ..proof.keeping import Receipts

__all__ = ["receipts", "showing", "traces"]


def traces(options: Options, peers: Peers) -> list[Observer]:
    """What writes the profile that the options ask for."""
    if options.profile is None:
        return []
    from ..execute.timeline import Trace

    folder = Path(options.profile)
    return [Trace(folder / f"process-{peers.rank}" if peers.size > 1 else folder)]


def receipts(options: Options, peers: Peers, tell: Callable[[Written], object]) -> list[Receipts]:
    """What writes receipts; `tell` is told of them."""
    if options.sign is not None and not options.receipt:
        raise PlanError("what is signed has a receipt", hint="leave out --no-receipt, or --sign")
    if options.reuse is not None and (options.digest == "none" or not (options.receipt or options.receipt_path)):
        given = "--digest none" if options.digest == "none" else "--no-receipt"
        raise PlanError("what is taken over is proven by its digests", hint=f"leave out {given}, or --reuse")
    if not (options.receipt or options.receipt_path is not None):
        return []
    from ..proof.keeping import Receipts

    return [Receipts(options, peers, tell)]


def showing(progress: Show | None, observers: Iterable[Observer] = ()) -> list[Observer]:
    """Observers, and one that shows progress if it is wanted."""
    return [*([] if progress is None else [Progress(progress)]), *observers]
