"""The pieces of a string: text, and what stands between `${` and its closing brace."""

from __future__ import annotations

import re

from ..core.errors import Mark, PlanError

__all__ = ["split"]

_MARK = re.compile(r"""['"{}]""")
_QUOTED = {quote: re.compile(rf"{quote}(?:\\.|[^{quote}\\])*{quote}", re.DOTALL) for quote in "'\""}


def split(text: str, mark: Mark) -> list[tuple[bool, str]]:
    """The pieces of a string: (is it a reference, its text). Backslashes count only just before `${`, in pairs."""
    parts: list[tuple[bool, str]] = []
    literal: list[str] = []
    unclosed: set[str] = set()
    at = 0
    while (start := text.find("${", at)) >= 0:
        head = text[at:start]
        kept = head.rstrip("\\")
        slashes = len(head) - len(kept)
        literal += [kept, "\\" * (slashes // 2)]
        at = start + 2
        if slashes % 2:
            literal.append("${")
            continue
        end = _closing(text, at, mark, unclosed)
        parts += [(False, "".join(literal)), (True, text[at:end])]
        literal = []
        at = end + 1
    parts.append((False, "".join(literal) + text[at:]))
    return [part for part in parts if part[0] or part[1]]


def _closing(text: str, at: int, mark: Mark, unclosed: set[str]) -> int:
    """Where the brace is that closes a reference. What stands in quotes counts for nothing.

    `unclosed` are quotes of which no more is closed: so the rest of the text is looked through only once."""
    depth, place = 1, at
    while (found := _MARK.search(text, place)) is not None:
        place = found.end()
        word = found[0]
        if word in _QUOTED:
            quoted = None if word in unclosed else _QUOTED[word].match(text, found.start())
            if quoted is None:
                unclosed.add(word)
            else:
                place = quoted.end()
            continue
        depth += 1 if word == "{" else -1
        if depth == 0:
            return found.start()
    raise PlanError(
        f"a reference without its closing brace in {text[:80]!r}", where=mark, hint=r"a literal ${ is written \${"
    )
