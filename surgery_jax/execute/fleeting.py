"""Files of outputs that have too many of them to be kept open."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..compile.program import Move
from ..core.errors import StorageError
from .buffers import O_DIRECT, Files
from .outputs import OutputFile
from .pace import Pace

__all__ = ["MANY", "FleetingFile"]

MANY = 256  # files of an output from which on each is open only while it is written to


class FleetingFile(OutputFile):
    """An output file that is opened for every piece of work; several workers at once share the descriptors.

    `place` is where it is until it is published.
    """

    def __init__(self, path: str, place: str, pace: Pace) -> None:
        super().__init__(path, -1, None, pace)
        self._place = place
        self._users = 0

    @contextmanager
    def _opened(self) -> Iterator[None]:
        try:
            with self._turn:
                if self._users == 0:
                    self.fd = os.open(self._place, os.O_RDWR | os.O_CLOEXEC)
                    self.direct = self._open_direct()
                self._users += 1
        except OSError as error:
            raise StorageError(f"cannot write: {error.strerror}", where=self.path) from None
        try:
            yield
        finally:
            with self._turn:
                self._users -= 1
                if self._users == 0:
                    os.close(self.fd)
                    if self._direct_fd is not None:
                        os.close(self._direct_fd)

    def _open_direct(self) -> int | None:
        try:
            self._direct_fd = os.open(self._place, os.O_WRONLY | os.O_CLOEXEC | O_DIRECT) if O_DIRECT else None
        except OSError:  # a file system without direct writes
            self._direct_fd = None
        return self._direct_fd

    def write(self, offset: int, source: np.ndarray, bounce: np.ndarray) -> None:
        """Write all bytes of a buffer."""
        with self._opened():
            super().write(offset, source, bounce)

    def move(self, files: Files, moves: Sequence[Move], bounce: np.ndarray, scratch: np.ndarray) -> None:
        """Copy bytes of input files."""
        with self._opened():
            super().move(files, moves, bounce, scratch)

    def sync(self) -> None:
        """Bring to the disk what was written."""
        with self._opened():
            super().sync()
