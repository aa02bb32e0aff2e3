"""Words and numbers for people, and JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["count", "json_text", "listed", "seconds", "some", "table", "visible"]


def count(number: int, word: str, plural: str = "") -> str:
    """A number and what it counts.

    >>> count(1, "tensor"), count(1200, "tensor")
    ('1 tensor', '1200 tensors')
    """
    return f"{number} {word if number == 1 else plural or word + 's'}"


def seconds(duration: float) -> str:
    """A duration with a sensible precision.

    >>> seconds(0.1234), seconds(75), seconds(3725)
    ('0.12 s', '1:15', '1:02:05')
    """
    if duration < 60:
        return f"{duration:.3g} s" if duration >= 1 else f"{duration:.2f} s"
    whole = round(duration)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def some(words: Sequence[str], most: int = 4) -> str:
    """The first few of many words."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines with aligned columns; columns whose number is in `right` end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if at in right else c.ljust(w) for at, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def visible(text: str) -> str:
    """The text with what could steer a terminal escaped; line breaks stay.

    >>> visible("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def listed(lines: Iterable[str]) -> str:
    """Lines that are visible and stay one each, so that no name in one of them can pass for another line.

    >>> listed(["a\\nb", "c"])
    'a\\\\nb\\nc'
    """
    return "\n".join(visible(line).replace("\n", "\\n") for line in lines)


def json_text(value: Any) -> str:
    """JSON on one line; numbers that JSON lacks become the texts nan, inf and -inf."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
