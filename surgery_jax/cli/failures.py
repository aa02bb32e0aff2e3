"""What went wrong, for people or as JSON, and the exit code that says so."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any

from ..core.errors import BudgetError, Mark, Problems, StorageError, SurgeryError
from .signals import Interrupted
from .text import json_text, visible

__all__ = ["report"]

BUG = 70  # EX_SOFTWARE of sysexits.h


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
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT), []
    if isinstance(error, SurgeryError):
        return error.exit_code, list(_flat(error))
    known: SurgeryError
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        known = BudgetError("out of memory", found=_first_line(error), hint="a smaller --memory, or fewer --workers")
    elif isinstance(error, OSError):
        where = error.filename or error.filename2
        known = StorageError(error.strerror or str(error), where=None if where is None else os.fsdecode(where))
    else:
        hint = "this is a bug; run with SURGERY_JAX_TRACEBACK=1 and report it"
        return BUG, [SurgeryError(f"{type(error).__name__}: {_first_line(error) or 'no message'}", hint=hint)]
    return known.exit_code, [known]


def _flat(error: SurgeryError) -> list[SurgeryError]:
    if isinstance(error, Problems):
        return [problem for part in error.errors for problem in _flat(part)]
    return [error]


def _first_line(error: BaseException) -> str | None:
    return (str(error).strip().splitlines() or [""])[0][:300] or None


def _as_json(code: int, problems: list[SurgeryError], printed: str) -> dict[str, Any]:
    text = "\n".join(map(str, problems)) or "interrupted"
    return {"error": text, "exit_code": code, "problems": [_problem(p) for p in problems], "printed": printed}


def _problem(problem: SurgeryError) -> dict[str, Any]:
    where = problem.where
    place: dict[str, Any] = {"where": None if where is None else str(where)}
    if isinstance(where, Mark):
        place |= {"file": where.file, "line": where.line, "column": where.column}
    parts = {"expected": problem.expected, "found": problem.found, "hint": problem.hint}
    return {"kind": type(problem).__name__, "problem": problem.problem, **place, **parts}


def _silence_stdout() -> None:
    """Let nothing complain at exit about what could not be written."""
    with suppress(OSError, ValueError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
