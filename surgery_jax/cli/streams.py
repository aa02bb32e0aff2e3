"""The standard streams: results go to stdout and must arrive, what is said beside them goes to stderr and need not."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from ..core.errors import SurgeryError
from .text import visible

__all__ = ["MOST_NAMES", "Untold", "emit", "flush", "name_leftovers", "note", "open_closed"]

MOST_NAMES = 12  # of a kind, in what is said to people


class Untold(SurgeryError):
    """What a command has found or done could not be printed."""

    exit_code = 5


def open_closed() -> None:
    """Open the null device where a standard descriptor is closed, so that no file that is opened later becomes one:
    what is written to stderr, also by other libraries, would go into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            os.set_inheritable(number, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))


def emit(text: str, end: str = "\n") -> None:
    """Print a result.

    Raises:
        Untold: nobody reads it, or there is no room for it.
    """
    try:
        try:
            print(text, end=end)
        except UnicodeEncodeError:  # the encoding of the terminal lacks a character
            encoding = sys.stdout.encoding
            print(text.encode(encoding, "backslashreplace").decode(encoding), end=end)
    except OSError as error:
        raise _untold(error) from error


def flush() -> None:
    """Let what was printed arrive.

    Raises:
        Untold: nobody reads it, or there is no room for it.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        raise _untold(error) from error


def _untold(error: OSError) -> Untold:
    _silence(sys.stdout)
    return Untold(f"cannot print the result: {error.strerror or error}", hint="print it to another place")


def note(text: str, end: str = "\n", stream: TextIO | None = None) -> None:
    """Say something on stderr, or on a stream that stands for it; if that cannot be, it is not said."""
    stream = sys.stderr if stream is None else stream
    try:
        print(text, end=end, file=stream, flush=True)
    except (OSError, ValueError):
        _silence(stream)


def name_leftovers(sentences: Sequence[str]) -> None:
    """Say what runs that were killed have left."""
    for sentence in sentences[:MOST_NAMES]:
        note(f"note: {visible(sentence)}")
    if len(sentences) > MOST_NAMES:
        note(f"note: and {len(sentences) - MOST_NAMES} more like these")


def _silence(stream: TextIO) -> None:
    """Let nothing complain at exit about what could not be written."""
    with suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)
