"""`prefixes`: manage aliases."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import Directive, choice, text
from ..kit.state import State

KEYS = {"list": (), "add": ("alias",), "remove": ("alias",), "rename": ("from", "to")}


@dataclass(frozen=True)
class Prefixes(Directive):
    """List, add, remove or rename aliases (the checkpoints a plan speaks of)."""

    word = "prefixes"
    examples = ("prefixes: { mode: add, alias: small }", "prefixes: { mode: rename, from: tmp, to: final }")

    mode: str = choice("what to do", tuple(KEYS), "list")
    alias: str | None = text("the alias to add or remove", None)
    from_: str | None = text("the alias to rename", None)
    to: str | None = text("its new name", None)

    def __post_init__(self) -> None:
        given = {
            key for key, value in (("alias", self.alias), ("from", self.from_), ("to", self.to)) if value is not None
        }
        if given != set(KEYS[self.mode]):
            raise PlanError(
                f"prefixes mode {self.mode} takes other keys",
                expected=" and ".join(KEYS[self.mode]) or "no other key",
                found=", ".join(sorted(given)) or "none",
            )
        if self.mode == "rename" and self.from_ == self.to:
            raise PlanError("prefixes.from and prefixes.to are the same", found=self.to)

    def build(self, state: State) -> None:
        if self.mode == "list":
            state.speech.say("\n".join(["aliases:", *(f"  {alias}" for alias in state.names.aliases())]))
        elif self.mode == "add":
            state.files.add_alias(str(self.alias))
        elif self.mode == "remove":
            state.files.remove_alias(str(self.alias))
        else:
            state.files.rename_alias(str(self.from_), str(self.to))

    def contributes(self, state: State) -> str | None:
        return {"add": self.alias, "rename": self.to}.get(self.mode)
