"""Ctrl-C and termination: the work is broken off like by an exception, so that everything temporary is removed."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..core.interrupts import NUMBERS, Interrupted, Watch, watched

__all__ = ["interruptible"]

PATIENCE_S = 2.0  # a signal that repeats sooner is the same wish, and must not disturb the cleaning up


@contextmanager
def interruptible() -> Iterator[Watch]:
    """Signals that end a process raise `Interrupted` in here, and are noted in case something swallows that;
    afterwards they do what they did before.

    A signal that the caller ignores (as `nohup` does) stays ignored; outside the main thread nothing changes.
    """
    with watched() as watch:
        if threading.current_thread() is not threading.main_thread():
            yield watch
            return
        last = -PATIENCE_S

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal last
            watch.asked = number
            before, last = last, time.monotonic()
            if last - before >= PATIENCE_S:
                raise Interrupted(number)

        before = {number: signal.getsignal(number) for number in NUMBERS}
        changed = [number for number in NUMBERS if before[number] not in (signal.SIG_IGN, None)]
        try:
            for number in changed:
                signal.signal(number, handle)
            with _swallowed_in_silence():
                yield watch
        finally:
            for number in changed:
                signal.signal(number, before[number])


@contextmanager
def _swallowed_in_silence() -> Iterator[None]:
    """Python prints the traceback of an exception that it has to swallow, as one from a callback of the collector. That
    of an interrupt is no news: it has been noted, and is heard a moment later."""
    hook = sys.unraisablehook

    def tell(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):
            hook(unraisable)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = hook
