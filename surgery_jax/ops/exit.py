"""`exit`: stop here."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit.base import Directive
from ..kit.state import State


@dataclass(frozen=True)
class Exit(Directive):
    """End the plan here, successfully: the remaining steps are skipped, the output is written."""

    word = "exit"
    examples = ("exit: null",)

    def build(self, state: State) -> None:
        state.control.stop()
