"""The parameters of a plan, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import SurgeryError

if TYPE_CHECKING:
    from ..language.parameters import Parameter

__all__ = ["described", "table"]


def described(word: str) -> str:
    """The parameters of the plan file that a word of the command line is; nothing if it is none, or has none."""
    from ..language.document import SUFFIXES
    from ..language.parameters import declarations
    from ..language.parts import read_part

    if word.startswith("-") or not word.lower().endswith(SUFFIXES):
        return ""
    try:
        part = read_part(word)
        parameters = declarations(part.root) if part.is_file else {}
    except SurgeryError as error:
        return str(error)
    return f"parameters of {word}:\n" + table(parameters) if parameters else ""


def table(parameters: dict[str, Parameter]) -> str:
    """A line for each parameter: its name, what may be given, and what it is for."""
    names = {name: f"{name}=" for name in parameters}
    facts = {name: parameter.facts for name, parameter in parameters.items()}
    widths = [max(map(len, words.values()), default=0) for words in (names, facts)]
    lines = (f"  {names[n]:{widths[0]}}  {facts[n]:{widths[1]}}  {p.help}" for n, p in parameters.items())
    return "\n".join(line.rstrip() for line in lines)
