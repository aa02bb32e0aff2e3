"""`set`: flags."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit import base
from ..kit.base import Directive, Field
from ..kit.state import State
from ..language.document import Node, Scalar


def _parse_flag(value: Node) -> bool:
    raw = value.value if isinstance(value, Scalar) else None
    word = str(raw).lower() if isinstance(raw, bool | str) else ""
    if word not in ("t", "true", "f", "false"):
        raise PlanError("not a flag", where=value.mark, expected="true or false", found=f"{raw!r}")
    return word in ("t", "true")


def _flag(doc: str, key: str) -> bool | None:
    declared: bool | None = base.declare(Field("boolean", doc, _parse_flag, None, key=key))
    return declared


@dataclass(frozen=True)
class Set(Directive):
    """Turn dry-run, preview and verbose on or off; without keys print them.

    With dry-run nothing is written; turning it off forgets what the steps did meanwhile. Preview prints before each
    step what it touches, and together with dry-run skips it.
    """

    word = "set"
    examples = ("set: { dry-run: true, verbose: true }",)

    dry_run: bool | None = _flag("check and compute, write nothing", "dry-run")
    preview: bool | None = _flag("print what each step touches", "preview")
    verbose: bool | None = _flag("print a line per touched tensor", "verbose")

    def build(self, state: State) -> None:
        given = {"dry-run": self.dry_run, "preview": self.preview, "verbose": self.verbose}
        for name, value in given.items():
            if value is not None:
                state.control.set_flag(name, value)
        if all(value is None for value in given.values()):
            state.speech.say(
                "\n".join(["flags:", *(f"  {name}: {str(state.control.flag(name)).lower()}" for name in given)])
            )
