"""What went wrong, for people or as JSON, and the exit code that says so."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ..core.errors import Notice, SurgeryError, told
from .signals import Interrupted
from .text import json_text, visible

__all__ = ["report", "warn"]


def warn(warnings: Iterable[Notice], prefix: str = "") -> None:
    """Tell the user of what is no error, on stderr."""
    for warning in warnings:
        print(f"warning: {prefix}{visible(str(warning))}", file=sys.stderr)


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell the user; gives the exit code."""
    if os.environ.get("SURGERY_JAX_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return 128 + signal.SIGPIPE
    code, problems = _understood(error)
    printed = getattr(error, "printed", "")
    try:
        if as_json:
            print(json_text(_as_json(code, problems, printed)))
        elif printed:
            print(printed)
        sys.stdout.flush()
    except OSError:  # nobody reads it, or there is no room for it: stderr still says what happened
        _silence_stdout()
    for problem in problems:
        print(f"error: {visible(str(problem))}", file=sys.stderr)
    if len(problems) > 1:
        print(f"error: {len(problems)} problems", file=sys.stderr)
    if not problems:
        print("interrupted", file=sys.stderr)
    return code


def _understood(error: BaseException) -> tuple[int, list[SurgeryError]]:
    """The exit code of an error, and what to say; nothing for an interrupt."""
    if isinstance(error, Exception):
        known = told(error)
        return known.exit_code, list(known.single)
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT), []


def _as_json(code: int, problems: list[SurgeryError], printed: str) -> dict[str, Any]:
    text = "\n".join(map(str, problems)) or "interrupted"
    return {"error": text, "exit_code": code, "problems": [p.as_json() for p in problems], "printed": printed}


def _silence_stdout() -> None:
    """Let nothing complain at exit about what could not be written."""
    with suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
