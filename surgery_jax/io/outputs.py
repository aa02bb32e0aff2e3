"""Output files: bytes written or copied to their place, past the page cache where that is faster.

Outputs that are brought to the disk before they are published gain nothing from the page cache: there every byte would
be copied once more and touch fresh memory. So whole pages of them are written directly, from aligned memory; the rest
of a range goes through the cache. Outputs that are more than the cache takes are written so too; others that are not
synchronised go the way that proves to be the faster one: which it is depends on the disk, and on how much fresh memory
the system has at hand.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..compile.program import ByteMove
from ..core.errors import StorageError
from ..storage.files import storage_error
from ..storage.places.base import Writer
from ..storage.places.found import place_of
from .buffers import OpenFiles
from .needs import PAGE
from .pace import MIN_DIRECT, Pace

__all__ = ["Hear", "Origin", "OutputFile", "Written"]

UNSUPPORTED = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY)
FICLONERANGE = 0x4020940D  # of linux/fs.h


Origin = tuple[str, int]


class Written(NamedTuple):
    """A range of bytes of an output that is in its place.

    path: of the file, as the plan has it. place: where the file is until it is published. data: the bytes, valid
    during the call that tells of them; None if the kernel copied them, so that they never came here. origin: the file
    and the offset there that they are copied from, if they are neighbours there too.
    """

    path: str
    place: str
    offset: int
    nbytes: int
    data: memoryview | bytes | None
    origin: Origin | None = None


Hear = Callable[[Written], object]


class OutputFile:
    """One file of an output that is being written; until it is published it is at `place`.

    Its writer is its own, so that it lasts as long as somebody writes, whatever becomes of the output meanwhile. Where
    files have descriptors there is `direct` too, which bypasses the page cache, if there is such a way; `pace` decides
    which of them to use. `hear` is told every range that was written.
    """

    def __init__(
        self, path: str, place: str, pace: Pace, *, may_go_direct: bool = True, hear: Hear | None = None
    ) -> None:
        self.path = path
        self.place = place
        self.pace = pace
        self.writer: Writer | None = None
        self.direct: int | None = None
        self._hear = hear
        self._may_go_direct = may_go_direct
        self._shares = sys.platform == "linux"
        # The kernel lets one writer at a time into the cached pages of a file; the others would spin in the meantime.
        self._turn = threading.Lock()

    def open(self) -> None:
        """Make it ready for writing.

        Raises:
            StorageError: the operating system refuses.
        """
        try:
            self.writer = place_of(self.place).target(self.place)
        except OSError as error:
            raise storage_error(error, self.path, "write") from None
        if self._may_go_direct:
            self.direct = self.writer.direct()

    def close(self) -> None:
        """Nobody writes any more."""
        if self.writer is not None:
            self.writer.close()
        if self.direct is not None:
            os.close(self.direct)
        self.writer = self.direct = None

    @property
    def _goes_direct(self) -> bool:
        return self.direct is not None and self._may_go_direct and self.pace.is_direct()

    def write(self, offset: int, source: np.ndarray, bounce: np.ndarray, *, origin: Origin | None = None) -> None:
        """Write all bytes of a buffer; `bounce` is a buffer of whole pages to write from. `origin` is where they were
        read, if they are a copy.

        Raises:
            StorageError: the operating system refuses.
        """
        is_direct = self._goes_direct
        first, last = self._pages(offset, source.nbytes) if is_direct else (offset, offset)
        if first == last:
            self._write(offset, source)
        else:
            self._write_pages(offset, source, first, last, bounce)
        if source.nbytes >= MIN_DIRECT:
            self.pace.note(is_direct, source.nbytes)
        self._told(offset, source.nbytes, source, origin)

    def _told(self, offset: int, nbytes: int, source: np.ndarray | None, origin: Origin | None) -> None:
        if self._hear is not None:
            data = None if source is None else source.data
            self._hear(Written(self.path, self.place, offset, nbytes, data, origin))

    def _write_pages(self, offset: int, source: np.ndarray, first: int, last: int, bounce: np.ndarray) -> None:
        """Write directly what lies in [first, last) of the file, and the rest through the cache."""
        self._write(offset, source[: first - offset])
        self._write(last, source[last - offset :])
        middle = source[first - offset : last - offset]
        if middle.ctypes.data % PAGE == 0:
            self._write_direct(first, middle)
            return
        for start in range(0, middle.nbytes, bounce.nbytes):
            part = middle[start : start + bounce.nbytes]
            bounce[: part.nbytes] = part
            self._write_direct(first + start, bounce[: part.nbytes])

    def sync(self) -> None:
        """Bring to the disk what was written.

        Raises:
            StorageError: the operating system refuses.
        """
        assert self.writer is not None
        try:
            self.writer.sync()
        except OSError as error:
            raise storage_error(error, self.path, "bring it to the disk") from None

    def move(self, files: OpenFiles, moves: Sequence[ByteMove], bounce: np.ndarray, scratch: np.ndarray) -> None:
        """Copy bytes of input files; several ranges are neighbours here, and short. `bounce` and `scratch` are buffers
        of whole pages to copy through.

        Raises:
            StorageError: the operating system refuses.
        """
        if len(moves) == 1:
            self._copy(files, moves[0], bounce, scratch)
            return
        offset, last = moves[0].offset, moves[-1]
        gathered = bounce[offset % PAGE :][: last.offset + last.nbytes - offset]
        wanted: dict[str, list[tuple[int, np.ndarray]]] = {}
        for path, source, _, place, nbytes in moves:
            wanted.setdefault(path, []).append((source, gathered[place - offset : place - offset + nbytes]))
        for path, parts in wanted.items():
            files.read_several(path, parts)
        self.write(offset, gathered, bounce)

    def _copy(self, files: OpenFiles, move: ByteMove, bounce: np.ndarray, scratch: np.ndarray) -> None:
        path, source, file, offset, nbytes = move
        skip = -offset % PAGE
        shared = self._share(files, path, source + skip, offset + skip, (nbytes - skip) // PAGE * PAGE)
        if shared:
            self._copy_range(files, ByteMove(path, source, file, offset, skip), bounce, scratch)
            source, offset, nbytes = source + skip + shared, offset + skip + shared, nbytes - skip - shared
        self._copy_range(files, ByteMove(path, source, file, offset, nbytes), bounce, scratch)

    def _share(self, files: OpenFiles, path: str, source: int, offset: int, nbytes: int) -> int:
        """Let the file system take whole pages of an input file for ours too, until one of them is changed (XFS, Btrfs
        and others); gives how many bytes that is."""
        if not self._shares or nbytes < MIN_DIRECT or (source - offset) % PAGE:
            return 0
        origin, own = self._descriptors(files, path)
        if origin is None or own is None:
            return 0
        try:
            fcntl.ioctl(own, FICLONERANGE, struct.pack("=qQQQ", origin, source, nbytes, offset))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise storage_error(error, self.path, "copy") from None
            self._shares = False
            return 0
        files.count(nbytes)
        self._told(offset, nbytes, None, (path, source))
        return nbytes

    def _descriptors(self, files: OpenFiles, path: str) -> tuple[int | None, int | None]:
        """Those of an input file and of this one, as far as there are any."""
        assert self.writer is not None
        return files.fd(path), self.writer.descriptor

    def _copy_range(self, files: OpenFiles, move: ByteMove, bounce: np.ndarray, scratch: np.ndarray) -> None:
        path, source, _, offset, nbytes = move
        if not self._goes_direct:
            done = self._copy_in_kernel(files, path, source, offset, nbytes)
            if done:
                self.pace.note(False, done)
                files.count(done)
                self._told(offset, done, None, (path, source))
            source, offset, nbytes = source + done, offset + done, nbytes - done
        while nbytes:
            # end pieces at a multiple of the page, so that all but the first and the last are whole pages
            count = min(nbytes, bounce.nbytes - offset % PAGE)
            # the memory is as far from a page as the file, so that the whole pages of both coincide
            part = bounce[offset % PAGE : offset % PAGE + count]
            files.read(path, source, part, scratch)
            self.write(offset, part, bounce, origin=(path, source))
            source, offset, nbytes = source + count, offset + count, nbytes - count

    def _pages(self, offset: int, nbytes: int) -> tuple[int, int]:
        """The range of whole pages worth writing directly; empty if there is none."""
        first, last = -(-offset // PAGE) * PAGE, (offset + nbytes) // PAGE * PAGE
        return (first, last) if last - first >= MIN_DIRECT else (offset, offset)

    def _write(self, offset: int, source: np.ndarray) -> None:
        assert self.writer is not None
        try:
            self.writer.write(offset, source.data)
        except OSError as error:
            raise storage_error(error, self.path, "write") from None

    def _write_direct(self, offset: int, source: np.ndarray) -> None:
        """Write whole pages past the cache; what the system does not take that way goes through it."""
        done = 0
        if self._may_go_direct:
            assert self.direct is not None
            try:
                done = os.pwrite(self.direct, source.data, offset) // PAGE * PAGE
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise storage_error(error, self.path, "write") from None
                self._may_go_direct = False  # a file system that promises direct writes and refuses them
        self._write(offset + done, source[done:])

    def _copy_in_kernel(self, files: OpenFiles, path: str, source: int, offset: int, nbytes: int) -> int:
        """Copy without bringing the bytes here, or without copying at all; gives how many bytes were done."""
        origin, own = self._descriptors(files, path)
        done = 0
        while done < nbytes and origin is not None and own is not None:
            try:
                with self._turn:
                    count = os.copy_file_range(origin, own, nbytes - done, source + done, offset + done)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise storage_error(error, self.path, "copy") from None
                return done
            if count == 0:
                raise StorageError("the file became shorter while it was copied", where=path)
            done += count
        return done
