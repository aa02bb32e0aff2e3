"""A wish to stop, kept as a flag: it is still there where an exception that a signal raised got lost on its way."""

from __future__ import annotations

import signal

__all__ = ["Interrupted", "check", "request", "requested"]


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


_number = 0


def request(number: int) -> None:
    """Remember that this signal asked to stop; 0 forgets the wish."""
    global _number
    _number = number


def requested() -> int:
    """The signal that asked to stop, 0 if none did."""
    return _number


def check() -> None:
    """Whether to go on.

    Raises:
        Interrupted: no; something asked to stop.
    """
    if _number:
        raise Interrupted(_number)
