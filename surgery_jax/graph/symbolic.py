"""A plan at one step, put together of its parts: implements what `kit.state.State` promises, over versions."""

from __future__ import annotations

from typing import Any

from ..core.errors import Mark
from ..kit.state import Control
from .checks import Checks
from .files import Files
from .frame import Frame
from .names import Names
from .speech import Speech
from .versions import Versions

__all__ = ["SymbolicState"]


class SymbolicState:
    """The parts, on one frame."""

    def __init__(self, frame: Frame, control: Control) -> None:
        self.frame = frame
        self.control = control
        self.speech = Speech(frame)
        self.files = Files(frame)
        self.names = Names(frame, self.files, self.speech)
        self.versions = Versions(frame, self.files, self.names)
        self.checks = Checks(frame, self.versions)

    def __getattr__(self, name: str) -> Any:
        """A method of one of the parts, by its name alone."""
        for part in ("names", "versions", "checks", "files", "speech", "control"):
            found = getattr(self.__dict__.get(part), name, None)
            if found is not None:
                return found
        raise AttributeError(name)

    @property
    def word(self) -> str:
        return self.frame.word

    @property
    def mark(self) -> Mark:
        return self.frame.mark

    @property
    def default_alias(self) -> str | None:
        return self.frame.default_alias
