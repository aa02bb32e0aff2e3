"""What went wrong, for people or as JSON, and the exit code that says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from ..core.errors import Notice, SurgeryError, listing, told
from ..core.interrupts import Interrupted
from .streams import MOST_NAMES, Untold, emit, flush, note
from .text import json_text, visible

__all__ = ["report", "tell_kept", "warn"]


def warn(warnings: Iterable[Notice], prefix: str = "") -> None:
    """Tell the user of what is no error, on stderr."""
    for warning in warnings:
        note(f"warning: {prefix}{visible(str(warning))}")


def report(
    error: BaseException,
    *,
    as_json: bool,
    outputs: Sequence[str] = (),
    kept: Sequence[str] = (),
    is_whole: bool = True,
) -> int:
    """Tell the user; gives the exit code.

    outputs: those that are there nevertheless. kept: those of which is kept what was finished. is_whole: whether the
    outputs are all that the command would have written, as they are unless it runs many jobs.
    """
    if os.environ.get("SURGERY_JAX_TRACEBACK"):
        import traceback

        note("".join(traceback.format_exception(error)), end="")
    if isinstance(error.__cause__, BrokenPipeError) and not outputs:
        return 128 + signal.SIGPIPE
    code, problems = _understood(error)
    if outputs and is_whole:
        code = Untold.exit_code
    printed = getattr(error, "printed", "")
    there = f"the outputs are there: {listing(outputs, MOST_NAMES)}" if outputs else ""
    with suppress(Untold):  # stderr still says what happened
        if as_json:
            emit(json_text(_as_json(code, problems, printed, outputs, kept)))
        elif printed:
            emit(printed)
        flush()
    for problem in problems:
        note(f"error: {visible(str(problem))}")
    if len(problems) > 1:
        note(f"error: {len(problems)} problems")
    if not problems:
        note("interrupted")
    if there:
        note(visible(there))
    tell_kept(kept)
    return code


def tell_kept(kept: Sequence[str]) -> None:
    """Say of which outputs what is finished is kept."""
    if kept:
        names = listing(kept, MOST_NAMES)
        note(visible(f"what is finished of {names} is kept: --resume goes on, surgery-jax clean removes it"))


def _understood(error: BaseException) -> tuple[int, list[SurgeryError]]:
    """The exit code of an error, and what to say; nothing for an interrupt."""
    if isinstance(error, Exception):
        known = told(error)
        return known.exit_code, list(known.single)
    return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT), []


def _as_json(
    code: int, problems: list[SurgeryError], printed: str, outputs: Sequence[str], kept: Sequence[str]
) -> dict[str, Any]:
    text = "\n".join(map(str, problems)) or "interrupted"
    found = {"error": text, "exit_code": code, "problems": [p.as_json() for p in problems], "printed": printed}
    return found | ({"outputs": list(outputs)} if outputs else {}) | ({"kept": list(kept)} if kept else {})
