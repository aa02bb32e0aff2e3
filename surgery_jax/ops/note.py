"""`note`: tell the user something."""

from __future__ import annotations

from dataclasses import dataclass

from ..kit.base import Directive, text
from ..kit.state import State


@dataclass(frozen=True)
class Remark(Directive):
    """Tell the user, on stderr and once, of something that is no error; with `when` beside it, only where it is so."""

    word = "note"
    takes = "text"
    examples = ("note: 'router=zeros with granularity above 1 computes what the dense model did only by chance'",)

    text: str = text("what to tell")

    def build(self, state: State) -> None:
        state.speech.warn(self.text)
