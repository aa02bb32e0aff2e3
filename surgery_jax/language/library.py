"""The plans that come with the package."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["comment", "library_file", "library_names", "summary"]

_PACKAGE = Path(__file__).parent.parent
_FORM = re.compile(r"plans/([\w-]+\.ya?ml)")
_SENTENCE = re.compile(r"(.*?\.)(?:\s|$)", re.DOTALL)


def _folder() -> Path:
    """Where they are: in the package, or beside it where that is a checkout."""
    inside = _PACKAGE / "plans"
    return inside if inside.is_dir() else _PACKAGE.parent / "plans"


def library_names() -> list[str]:
    """Their names, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def library_file(word: str) -> Path | None:
    """The file of a plan by its name, or as `plans/NAME.yaml`; None if there is no such plan."""
    found = _FORM.fullmatch(word)
    path = _folder() / (found[1] if found else f"{word}.yaml")
    return path if (found or word in library_names()) and path.is_file() else None


def comment(text: str) -> str:
    """The comment with which a plan begins."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" ").rstrip())
    return "\n".join(lines)


def summary(text: str) -> str:
    """The first sentence of that comment."""
    words = " ".join(comment(text).split())
    found = _SENTENCE.match(words)
    return (found[1] if found else words).rstrip(".:")
