"""Files of outputs that have too many of them to be kept open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..compile.program import ByteMove
from .buffers import OpenFiles
from .outputs import Hear, Origin, OutputFile
from .pace import Pace

__all__ = ["MANY", "FleetingFile"]

MANY = 256  # files of an output from which on each is open only while it is written to


class FleetingFile(OutputFile):
    """An output file that is opened for every piece of work; several workers at once share the descriptors."""

    def __init__(
        self, path: str, place: str, pace: Pace, *, may_go_direct: bool = True, hear: Hear | None = None
    ) -> None:
        super().__init__(path, place, pace, may_go_direct=may_go_direct, hear=hear)
        self._users = 0

    def open(self) -> None:
        """Nothing: it is open while somebody writes."""

    def close(self) -> None:
        """Nothing: whoever wrote last has closed it."""

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with self._turn:
            if self._users == 0:
                super().open()
            self._users += 1
        try:
            yield
        finally:
            with self._turn:
                self._users -= 1
                if self._users == 0:
                    super().close()

    def write(self, offset: int, source: np.ndarray, bounce: np.ndarray, *, origin: Origin | None = None) -> None:
        """Write all bytes of a buffer."""
        with self._opened():
            super().write(offset, source, bounce, origin=origin)

    def move(self, files: OpenFiles, moves: Sequence[ByteMove], bounce: np.ndarray, scratch: np.ndarray) -> None:
        """Copy bytes of input files."""
        with self._opened():
            super().move(files, moves, bounce, scratch)

    def sync(self) -> None:
        """Bring to the disk what was written."""
        with self._opened():
            super().sync()
