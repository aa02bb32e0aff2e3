"""Errors in four parts: where, what is wrong (expected and found), and what to try.

Every error that a user can cause is a `SurgeryError`; its class decides the exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "AssertionFailed",
    "BudgetError",
    "Mark",
    "PlanError",
    "Problems",
    "StorageError",
    "SurgeryError",
    "listing",
    "nearest",
]


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in a text: file name as the user gave it, 1-based line and column."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


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

    def __str__(self) -> str:
        head = f"{self.where}: {self.problem}" if self.where is not None else self.problem
        parts = [("expected", self.expected), ("found", self.found), ("try", self.hint)]
        return "\n".join([head, *(f"    {word}: {text}" for word, text in parts if text)])


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


class Problems(SurgeryError):
    """Several errors found together, in the order of the plan; the first decides the exit code."""

    def __init__(self, errors: Iterable[SurgeryError]) -> None:
        self.errors = tuple(errors)
        super().__init__(f"{len(self.errors)} problems")
        self.exit_code = self.errors[0].exit_code

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


def nearest(word: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """The candidates most like `word`, best first; at most `count`, none that is unlike it.

    Long candidate lists are narrowed first, because the exact comparison is quadratic.
    """
    pool = list(dict.fromkeys(candidates))
    if len(pool) > 2000:
        pieces = set(word.replace("\\", "").split("."))
        pool = sorted(pool, key=lambda name: -len(pieces & set(name.split("."))))[:2000]
    return difflib.get_close_matches(word, pool, n=count, cutoff=0.5)


def listing(words: Iterable[str], count: int = 5) -> str:
    """A short list for a message: at most `count` words and how many more there are."""
    pool = list(words)
    shown = ", ".join(pool[:count])
    return shown + (f" and {len(pool) - count} more" if len(pool) > count else "") if pool else "none"
