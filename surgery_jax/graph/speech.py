"""What is told to the user while a plan runs symbolically."""

from __future__ import annotations

from collections.abc import Callable

from ..core.errors import Mark, Notice
from ..kit.state import Found
from .frame import Frame
from .roots import Print

__all__ = ["GraphSpeech"]


class GraphSpeech:
    """See `kit.state.Speech` for the promises of the methods."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def say(self, line: str) -> None:
        self.frame.demands.prints.append(Print(self.frame.demands.step, lambda found: line))

    def say_later(self, render: Callable[[Found], str]) -> None:
        self.frame.demands.prints.append(Print(self.frame.demands.step, render))

    def tell(self, line: str) -> None:
        if self.frame.space.flags["verbose"]:
            self.say(("dry-run " if self.frame.space.flags["dry-run"] else "") + line)

    def warn(self, problem: str, *, where: Mark | None = None, hint: str | None = None) -> None:
        notice = Notice(problem, where=where or self.frame.mark, hint=hint)
        self.frame.demands.warnings.setdefault(str(notice), notice)
