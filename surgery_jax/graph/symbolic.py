"""A plan at one step, put together of its parts: implements what `kit.state.State` promises, over versions."""

from __future__ import annotations

from ..core.errors import Mark
from ..kit.state import Control
from .checks import GraphChecks
from .files import GraphFiles
from .frame import Frame
from .names import GraphNames
from .speech import GraphSpeech
from .versions import GraphVersions

__all__ = ["SymbolicState"]


class SymbolicState:
    """The parts, on one frame."""

    def __init__(self, frame: Frame, control: Control) -> None:
        self.frame = frame
        self.control = control
        self.speech = GraphSpeech(frame)
        self.files = GraphFiles(frame)
        self.names = GraphNames(frame, self.files, self.speech)
        self.versions = GraphVersions(frame, self.files, self.names)
        self.checks = GraphChecks(frame, self.versions)

    @property
    def word(self) -> str:
        return self.frame.word

    @property
    def mark(self) -> Mark:
        return self.frame.mark

    @property
    def default_alias(self) -> str | None:
        return self.frame.default_alias
