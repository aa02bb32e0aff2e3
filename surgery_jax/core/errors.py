"""Errors in four parts: where, what is wrong (expected and found), and what to try.

Every error that a user can cause is a `SurgeryError`; its class decides the exit code.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "MOST_NAMES",
    "AssertionFailed",
    "BudgetError",
    "Bug",
    "Mark",
    "Notice",
    "PlanError",
    "Problems",
    "StorageError",
    "SurgeryError",
    "listing",
    "nearest",
    "told",
]


MOST_NAMES = 12  # in one message
MOST_CHARACTERS = 1200  # of one part of a message


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a text: file name as the user gave it, 1-based line and column.

    In a plan of Python values there are no lines: line and column are 0, and `path` leads to the value, such as
    `transforms[5].scale_.target`. `turn` says for which values of loops it was reached, such as `layer = 3, e = 0`.
    """

    file: str
    line: int
    column: int
    path: str = ""
    turn: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.path or self.file
        return f"{place} ({self.turn})" if self.turn else place

    def within(self, key: str | int) -> Mark:
        """The place of a value inside that of a container: another one only where places are paths."""
        if self.line:
            return self
        step = f"[{key}]" if isinstance(key, int) else f".{key}" if self.path else key
        return Mark(self.file, 0, 0, self.path + step)


class SurgeryError(Exception):
    """What a user must be told. `where` is a plan position or a path; the other parts are sentences."""

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        where: Mark | str | None = None,
        expected: str | None = None,
        found: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint

    def located(self, where: Mark | str | None) -> SurgeryError:
        """This error with a position, if it has none of its own yet."""
        if self.where is None:
            self.where = where
        return self

    @property
    def single(self) -> tuple[SurgeryError, ...]:
        """The errors that this one stands for: itself, unless it is several."""
        return (self,)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        place: dict[str, Any] = {"where": None if self.where is None else str(self.where)}
        if isinstance(self.where, Mark):
            place |= {"file": self.where.file, "line": self.where.line, "column": self.where.column}
            place |= {"path": self.where.path} if self.where.path else {}
            place |= {"turn": self.where.turn} if self.where.turn else {}
        parts = {"expected": _cut(self.expected), "found": _cut(self.found), "hint": _cut(self.hint)}
        return {"kind": type(self).__name__, "problem": _cut(self.problem), **place, **parts}

    def __str__(self) -> str:
        head = f"{self.where}: {_cut(self.problem)}" if self.where is not None else _cut(self.problem)
        parts = [("expected", self.expected), ("found", self.found), ("try", self.hint)]
        return "\n".join([str(head), *(f"    {word}: {_cut(text)}" for word, text in parts if text)])


def _cut(text: str | None) -> str | None:
    """A part of a message without the middle of what is too long to be read: a text of a plan may have any length."""
    if text is None or len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[: MOST_CHARACTERS // 2]} ... {text[-MOST_CHARACTERS // 4 :]}"


class PlanError(SurgeryError):
    """The plan or the command line is wrong, including all that headers can tell."""


class AssertionFailed(SurgeryError):
    """An assertion of the plan does not hold."""

    exit_code = 1


class StorageError(SurgeryError):
    """A checkpoint cannot be read or written."""

    exit_code = 3


class BudgetError(SurgeryError):
    """The work does not fit the memory budgets."""

    exit_code = 4


class Notice(SurgeryError):
    """What a user should look at although nothing is wrong: it is told and never raised."""

    exit_code = 0


class Bug(SurgeryError):
    """An exception that no code of ours expects."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h


class Problems(SurgeryError):
    """Several errors found together, in the order of the plan; the first decides the exit code."""

    def __init__(self, errors: Iterable[SurgeryError]) -> None:
        self.errors = tuple(errors)
        super().__init__(f"{len(self.errors)} problems")
        self.exit_code = self.errors[0].exit_code

    @property
    def single(self) -> tuple[SurgeryError, ...]:
        return tuple(single for error in self.errors for single in error.single)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def told(error: Exception) -> SurgeryError:
    """What a user must be told of an exception, whatever it is."""
    if isinstance(error, SurgeryError):
        return error
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return BudgetError("out of memory", found=_first_line(error), hint="a smaller --memory, or fewer --workers")
    if isinstance(error, OSError):
        where = error.filename or error.filename2
        return StorageError(error.strerror or str(error), where=None if where is None else os.fsdecode(where))
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return BudgetError(
            "the system allows no more threads", hint="fewer --workers, or raise the limit: ulimit -u, -v"
        )
    hint = "this is a bug; run with SURGERY_JAX_TRACEBACK=1 and report it"
    return Bug(f"{type(error).__name__}: {_first_line(error) or 'no message'}", hint=hint)


def _first_line(error: Exception) -> str | None:
    return (str(error).strip().splitlines() or [""])[0][:300] or None


def nearest(word: str, candidates: Iterable[str], count: int = 3, *, likeness: float = 0.5) -> list[str]:
    """The candidates most like `word`, best first; at most `count`, none that is unlike it (`likeness` 0 to 1).

    Long candidate lists are narrowed first, because the exact comparison is quadratic.
    """
    pool = list(dict.fromkeys(candidates))
    if len(pool) > 2000:
        pieces = set(word.replace("\\", "").split("."))
        pool = sorted(pool, key=lambda name: -len(pieces & set(name.split("."))))[:2000]
    return difflib.get_close_matches(word, pool, n=count, cutoff=likeness)


def listing(words: Iterable[str], count: int = 5) -> str:
    """A short list for a message: at most `count` words and how many more there are."""
    pool = list(words)
    shown = ", ".join(pool[:count])
    return shown + (f" and {len(pool) - count} more" if len(pool) > count else "") if pool else "none"
