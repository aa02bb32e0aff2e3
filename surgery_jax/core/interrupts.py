"""Signals that ask a process to stop: who waits asks whether one came, and what must not be disturbed holds them back.

A signal raises an exception wherever the main thread is, and not every place lets it through: one that a callback of
JAX raises is swallowed. So whoever waits for long also calls `check_interrupted`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["NUMBERS", "Interrupted", "Watch", "check_interrupted", "held", "note_kept", "note_published", "watched"]

# The one that Python itself turns into an exception is the last, so that it cannot disturb what is done for the others.
NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Watch:
    """What happens during one command: the signal that asked to stop, the outputs that have appeared, and those that
    have not, but of which is kept what was finished."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.outputs: list[str] = []
        self.kept: list[str] = []


_watches: list[Watch] = []


@contextmanager
def watched() -> Iterator[Watch]:
    """From here on it is noted what happens."""
    _watches.append(Watch())
    try:
        yield _watches[-1]
    finally:
        _watches.pop()


def check_interrupted() -> None:
    """Whether nobody asked to stop; only the main thread learns of it.

    Raises:
        Interrupted: somebody did.
    """
    asked = _watches[-1].asked if _watches else None
    if asked is not None and threading.current_thread() is threading.main_thread():
        raise Interrupted(asked)


def note_published(paths: Iterable[str]) -> None:
    """These outputs are there, and nothing takes them back any more."""
    if _watches:
        _watches[-1].outputs.extend(paths)


def note_kept(path: str) -> None:
    """What is finished of this output is kept, for a run that goes on."""
    if _watches:
        _watches[-1].kept.append(path)


@contextmanager
def held() -> Iterator[None]:
    """Signals that would end the process wait for the end of this block.

    They are then as if they had come there, except that within `watched` they do not hide an error that ends the
    block: then they are only noted. Signals that are ignored stay ignored, and outside of the main thread, where none
    arrive, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.getsignal(number) for number in NUMBERS}
    changed = [number for number in NUMBERS if before[number] not in (signal.SIG_IGN, None)]
    failed = True
    try:
        for number in changed:
            signal.signal(number, note)
        yield
        failed = False
    finally:
        for number in changed:
            signal.signal(number, before[number])
        for first in came[:1]:
            if failed and _watches:
                _watches[-1].asked = first
            else:
                signal.raise_signal(first)
