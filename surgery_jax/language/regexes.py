"""Regular expressions over tensor names: compiling, and the literal text that every match must begin with."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import Mark, PlanError

__all__ = ["compile_regex", "literal_prefix", "without_warnings"]

_LITERALS = re.compile(r"(?:[^\\.^$*+?{}\[\]|()]|\\[^a-zA-Z0-9])*", re.DOTALL)
_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?#(?:\\.|[^)\\])*\)|[()|]", re.DOTALL)
_VERBOSE = re.compile(r"\(\?[a-zA-Z-]*x")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence about odd but valid patterns, such as `[[a]`: they mean the same as before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compile_regex(expr: str, mark: Mark, context: str = "") -> re.Pattern[str]:
    """The compiled pattern; `context` is put behind the pattern in the message.

    Raises:
        PlanError: not a valid pattern.
    """
    try:
        with without_warnings():
            return re.compile(expr)
    except (re.error, OverflowError, RecursionError) as error:
        reason = str(error) if not isinstance(error, RecursionError) else "too deeply nested"
        raise PlanError(
            f"invalid regex {expr!r}{context}: {reason}",
            where=mark,
            hint="put a backslash before a literal ( [ . * + ?",
        ) from None


def literal_prefix(expr: str) -> tuple[str, bool]:
    """The text with which every full match of a VALID pattern begins, and whether that is the whole pattern."""
    end = _LITERALS.match(expr)
    raw = end[0] if end else ""
    if len(raw) == len(expr):
        return _unescaped(raw), True
    if expr[len(raw)] in "*+?{":  # the quantifier may drop the last literal
        raw = _without_last(raw)
    if _has_alternatives(expr):
        return "", False
    return _unescaped(raw), False


def _without_last(raw: str) -> str:
    pieces = re.findall(r"\\.|.", raw, re.DOTALL)
    return "".join(pieces[:-1])


def _unescaped(raw: str) -> str:
    return re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL)


def _has_alternatives(expr: str) -> bool:
    """Whether `|` may stand outside all groups; yes, if in doubt."""
    if "|" not in expr:
        return False
    if _VERBOSE.search(expr):  # its comments may hold lone brackets
        return True
    depth = 0
    for token in _TOKENS.findall(expr):
        if token == "|" and depth == 0:
            return True
        depth += {"(": 1, ")": -1}.get(token, 0)
    return False
