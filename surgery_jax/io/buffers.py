"""Memory: reusable aligned buffers under one byte budget; and input files, read by position."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np

from ..core.errors import StorageError
from ..core.freed import give_back
from ..storage.files import storage_error
from ..storage.identity import notice, remembered
from ..storage.places.base import Reader
from ..storage.places.found import place_of
from .needs import PAGE, footprint, rounded, too_large
from .pace import MIN_DIRECT
from .pagecache import is_cached

__all__ = ["Budget", "OpenFiles", "aligned"]

HUGE = 4 << 20  # bytes from which on memory is asked for in huge pages, as NumPy does
KEPT = 64  # readers of input files that a thread keeps


class Budget:
    """Hands out buffers, never more than `limit` bytes at once; freed ones are used again, because touching fresh
    memory costs many times more than filling it.

    What others allocate stays with the C library when they free it (`execute.devices`), so the most that they had at
    once counts until it is given back to the system, which happens where there would be no room for buffers otherwise.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.peak = 0
        self._extra = 0  # bytes that others may have allocated now
        self._most_extra = 0  # at once, since what they had was given back
        self._kept: dict[int, list[np.ndarray]] = defaultdict(list)
        self._kept_bytes = 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()  # one for each that waits, in the order in which they came
        self._broken = False

    @contextmanager
    def reserve(self, sizes: list[int], extra: int = 0) -> Iterator[list[np.ndarray]]:
        """Buffers of at least these sizes, plus `extra` bytes that others will allocate; waits until they fit.

        Raises:
            BudgetError: they can never fit.
        """
        total = footprint((sizes, extra))
        if total > self.limit:
            raise too_large(total, self.limit)
        wanted = [rounded(size) for size in sizes]
        with self._changed:
            if total:
                self._wait_for(total)
            if self._broken:
                raise InterruptedError
            self.used += total
            self.peak = max(self.peak, self.used)
            self._extra += extra
            self._most_extra = max(self._most_extra, self._extra)
            buffers = [self._take(size) for size in wanted]
            self._trim()
        given: list[np.ndarray] = []
        try:
            given += [
                buffer if buffer is not None else aligned(size) for buffer, size in zip(buffers, wanted, strict=True)
            ]
            yield given
        finally:
            with self._changed:
                self.used -= total
                self._extra -= extra
                for buffer in given:
                    self._kept[buffer.nbytes].append(buffer)
                    self._kept_bytes += buffer.nbytes
                self._changed.notify_all()

    def _wait_for(self, total: int) -> None:
        """Wait until so many bytes fit, and those who came before have theirs: else what is large would wait until
        there is nothing else to do."""
        mine = object()
        self._waiting.append(mine)
        try:
            self._changed.wait_for(
                lambda: self._broken or (self._waiting[0] is mine and self.used + total <= self.limit)
            )
        finally:
            self._waiting.remove(mine)
            self._changed.notify_all()

    def _take(self, size: int) -> np.ndarray | None:
        if self._kept[size]:
            self._kept_bytes -= size
            return self._kept[size].pop()
        return None

    def _trim(self) -> None:
        """Forget kept buffers that would not fit beside what is in use, and then what others have freed."""
        room = self.limit - (self.used - self._extra) - self._most_extra
        for size in sorted(self._kept, reverse=True):
            while self._kept[size] and self._kept_bytes > room:
                self._kept[size].pop()
                self._kept_bytes -= size
        if room < 0:
            give_back()
            self._most_extra = self._extra

    def stop(self) -> None:
        """Wake and refuse everyone who waits: the run has failed."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()


def aligned(size: int) -> np.ndarray:
    """Fresh memory that begins at a page, and that the system has back as soon as nobody has the array any more."""
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


class OpenFiles:
    """Open input files by path. Every thread has its own readers, of the files it was at last: there may be more files
    than a process may have open, and none may be closed while another thread reads. A file that is opened must be the
    one that the thread remembers (`storage.identity`).

    What lies in the page cache is taken from there; the rest is read past it. Every byte is needed once: the cache
    would only have to find fresh memory for it, copy it once more, and forget what somebody else has use for.
    """

    def __init__(self) -> None:
        self.num_bytes = 0  # read or copied so far
        self._local = threading.local()
        self._opened: list[dict[tuple[str, bool], Reader]] = []  # by thread; True: past the page cache
        self._refused: set[str] = set()  # files that are not read past the page cache
        self._lock = threading.Lock()

    def fd(self, path: str) -> int | None:
        """A descriptor for reading, for this thread until it has opened many others; None where files have none.

        Raises:
            StorageError: the file cannot be opened, or is not what it was.
        """
        return self._reader(path).descriptor

    def _reader(self, path: str) -> Reader:
        place, known = place_of(path), remembered(path)
        try:
            opening = partial(place.open, path) if known is None else partial(place.reopen, path, known)
            return self._kept(path, False, opening)
        except OSError as error:
            raise storage_error(error, path, "read") from None

    def _kept(self, path: str, is_direct: bool, opening: Callable[[], Reader]) -> Reader:
        mine: dict[tuple[str, bool], Reader] | None = getattr(self._local, "opened", None)
        if mine is None:
            mine = self._local.opened = {}
            with self._lock:
                self._opened.append(mine)
        reader = mine.pop((path, is_direct), None)
        if reader is None:
            if len(mine) >= KEPT:
                mine.pop(next(iter(mine))).close()
            reader = opening()
            try:
                notice(path, reader.identity)
            except BaseException:
                reader.close()
                raise
        mine[path, is_direct] = reader  # the latest is the last
        return reader

    def count(self, nbytes: int) -> None:
        """Note that bytes were read, or copied or decoded without being seen here."""
        with self._lock:
            self.num_bytes += nbytes

    def read(self, path: str, offset: int, target: np.ndarray, scratch: np.ndarray | None = None) -> None:
        """Fill a buffer from a file; `scratch` is a buffer of whole pages to read through past the page cache.

        Raises:
            StorageError: the operating system refuses, or the file is too short.
        """
        self.count(target.nbytes)
        view = target.data
        fd = self.fd(path) if scratch is not None and view.nbytes >= MIN_DIRECT else None
        if scratch is not None and fd is not None and not is_cached(fd, offset, view.nbytes):
            done = self._read_direct(path, offset, view, scratch)
            offset, view = offset + done, view[done:]
        self._read_all(path, offset, view)

    def read_several(
        self, path: str, parts: Sequence[tuple[int, np.ndarray]], scratch: np.ndarray | None = None
    ) -> None:
        """Fill several buffers from a file, each from its offset on; where every read is a request, in few of them.

        Raises:
            StorageError: as `read`.
        """
        if self.fd(path) is not None:
            for offset, target in parts:
                self.read(path, offset, target, scratch)
            return
        self.count(sum(target.nbytes for _, target in parts))
        try:
            self._reader(path).read_ranges([(offset, target.data) for offset, target in parts])
        except OSError as error:
            raise storage_error(error, path, "read") from None

    def _read_all(self, path: str, offset: int, view: memoryview) -> None:
        reader = self._reader(path)
        while view.nbytes:
            try:
                count = reader.read_into(offset, view)
            except OSError as error:
                raise storage_error(error, path, "read") from None
            if count == 0:
                raise StorageError(
                    "the file became shorter while it was read", where=path, expected=f"bytes at {offset}"
                )
            offset, view = offset + count, view[count:]

    def _read_direct(self, path: str, offset: int, view: memoryview, scratch: np.ndarray) -> int:
        """Bytes read from the beginning past the page cache; fewer than all where that does not work."""
        reader = self._direct_reader(path)
        done = 0
        while reader is not None and done < view.nbytes:
            skip = (offset + done) % PAGE
            wanted = min(-(-(skip + view.nbytes - done) // PAGE) * PAGE, scratch.nbytes)
            try:
                count = reader.read_into(offset + done - skip, scratch.data[:wanted]) - skip
            except OSError:
                self._refused.add(path)
                break
            if count <= 0:
                break
            count = min(count, view.nbytes - done)
            view[done : done + count] = scratch.data[skip : skip + count]
            done += count
        return done

    def _direct_reader(self, path: str) -> Reader | None:
        if path in self._refused:
            return None
        try:
            return self._kept(path, True, partial(_opened_direct, path))
        except OSError:
            self._refused.add(path)
            return None

    def close(self) -> None:
        """Close all readers."""
        with self._lock:
            for opened in self._opened:
                while opened:
                    opened.popitem()[1].close()


def _opened_direct(path: str) -> Reader:
    """A file that is read past the page cache.

    Raises:
        OSError: its place has no such way.
    """
    reader = place_of(path).open_direct(path)
    if reader is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
    return reader
