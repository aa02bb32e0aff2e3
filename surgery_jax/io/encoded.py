"""Output files whose bytes are encoded once all are there, such as chunks that are compressed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from ..compile.program import ByteMove
from ..storage.base import LaidFile
from ..storage.files import storage_error
from ..storage.places.base import fill
from .buffers import OpenFiles
from .fleeting import FleetingFile
from .outputs import Hear, Origin, Written
from .pace import Pace

__all__ = ["EncodedFile"]


class EncodedFile(FleetingFile):
    """A file that is filled like any other, and tells by `full` when its last byte is there; then `seal` it. What it is
    encoded to is what `hear` is told; `hear_raw` is told what it is encoded of.

    Until then its bytes are in the page cache: nothing of them need reach the disk. One that `is_sealed` already, by
    another run, stays as it is whatever is written to it.
    """

    def __init__(
        self,
        path: str,
        place: str,
        laid: LaidFile,
        full: deque[EncodedFile],
        hear: Hear | None = None,
        hear_raw: Hear | None = None,
        *,
        is_sealed: bool = False,
    ) -> None:
        super().__init__(path, place, Pace(only_direct=False), may_go_direct=False, hear=hear)
        assert laid.encode is not None
        self.size, self.workspace = laid.size, laid.workspace
        self._encode = laid.encode
        self._hear_raw = hear_raw
        self._full = full
        self._missing = laid.size
        self._is_sealed = is_sealed

    def write(self, offset: int, source: np.ndarray, bounce: np.ndarray, *, origin: Origin | None = None) -> None:
        """Write all bytes of a buffer."""
        if self._is_sealed:
            return
        with self._opened():
            self._write(offset, source)
        self._arrived(source.nbytes)

    def move(self, files: OpenFiles, moves: Sequence[ByteMove], bounce: np.ndarray, scratch: np.ndarray) -> None:
        """Copy bytes of input files."""
        if self._is_sealed:
            return
        with self._opened():
            for path, source, _, offset, nbytes in moves:
                done = self._copy_in_kernel(files, path, source, offset, nbytes)
                files.count(done)
                for start in range(done, nbytes, bounce.nbytes):
                    part = bounce[: min(bounce.nbytes, nbytes - start)]
                    files.read(path, source + start, part, scratch)
                    self._write(offset + start, part)
        self._arrived(sum(move.nbytes for move in moves))

    def _arrived(self, nbytes: int) -> None:
        with self._turn:
            self._missing -= nbytes
            is_full = self._missing == 0
        if is_full:
            self._full.append(self)

    def seal(self, raw: np.ndarray) -> None:
        """Replace all bytes by what they are encoded to; `raw` is a buffer for them.

        Raises:
            StorageError: the operating system refuses.
        """
        with self._opened():
            assert self.writer is not None
            try:
                fill(self.writer, 0, raw[: self.size].data)
                if self._hear_raw is not None:
                    self._hear_raw(Written(self.path, self.place, 0, self.size, raw[: self.size].data))
                data = self._encode(raw[: self.size])
                self.writer.truncate(len(data))
            except OSError as error:
                raise storage_error(error, self.path, "write") from None
            whole = np.frombuffer(data, np.uint8)
            self._write(0, whole)
        self._told(0, whole.nbytes, whole, None)
