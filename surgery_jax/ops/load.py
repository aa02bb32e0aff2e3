"""`load`: a checkpoint or one tensor from a file."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..kit.base import Directive, choice, reference, text
from ..kit.state import State
from ..language.document import Node

FORMATS = ("auto", "torch", "safetensors", "numpy")


@dataclass(frozen=True)
class Load(Directive):
    """Make a checkpoint available under a new alias, or load the only tensor of a file under a new name.

    A path that an earlier save of the plan writes gives what was saved there.
    """

    word = "load"
    takes = "path"
    examples = ("load: { path: other.safetensors, alias: donor }", "load: { path: bias.npy, to: head.bias }")

    path: str = text("file or directory")
    alias: str | None = text("alias of the whole checkpoint", None)
    to: Node | None = reference("literal name of the one tensor", None)
    format: str = choice("of a file with one tensor", FORMATS, "auto")

    def build(self, state: State) -> None:
        if self.to is None:
            if self.format != "auto":
                raise PlanError(
                    "load.format needs load.to",
                    expected="no format, or auto, for a whole checkpoint",
                    hint=f"write the format before the path: {self.format}:{self.path}",
                )
            alias = self._target(state)
            state.files.add_alias(alias, self.path)
            state.speech.tell(f"load: {self.path} -> {alias}")
            return
        dest = state.names.reference(self.to, key="to", slices=False, literal=True, default=self.alias, new_alias=True)
        if self.alias is not None and dest.alias != self.alias:
            raise PlanError("load.alias and the alias in load.to differ", found=f"{self.alias} and {dest.alias}")
        if dest.alias in state.names.aliases():
            state.names.expect_new(dest.alias, [str(dest.expr)])
        else:
            state.files.add_alias(dest.alias)
        state.versions.create(dest.alias, str(dest.expr), state.files.read_one(self.path, self.format))
        state.speech.tell(f"load: {self.path} -> {dest.expr}")

    def _target(self, state: State) -> str:
        return self.alias or state.default_alias or "model"

    def contributes(self, state: State) -> str | None:
        if self.to is None:
            return self._target(state)
        return state.names.reference(
            self.to, key="to", slices=False, literal=True, default=self.alias, new_alias=True
        ).alias
