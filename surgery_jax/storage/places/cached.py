"""Ranges of remote objects, kept in a directory of this machine for those who read them again: `--cache`.

An object is kept in blocks of one length, each a file whose name is a digest of the path, the version and the place of
the block. The version is asked for by whoever opens an object, never taken from here: so an object that has changed has
other names here, and what is kept of the old one is not found any more. Blocks appear whole and begin with a checksum,
so processes may share a directory, and one that was damaged is fetched again. Those that were used least recently go
when there are more bytes than allowed. Whatever the disk refuses is read from the store.
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from .base import PlaceError
from .found import is_local
from .looking import StoredObject

__all__ = ["BLOCK", "RangeCache", "cache", "keep_ranges"]

BLOCK = 1 << 20  # bytes of an object that are kept together
_CHECK = 4  # bytes of a checksum
_LOW = 0.9  # of the limit, that is left when blocks have to go
_STEPS = 32  # parts of the limit after which it is looked at again what other processes have added

Read = Callable[[int, Sequence[memoryview]], None]  # fill buffers with what the store has from an offset on


class RangeCache:
    """A directory of blocks, of at most `limit` bytes and what is added between two looks at it."""

    def __init__(self, directory: Path, limit: int) -> None:
        """Make the directory.

        Raises:
            OSError: it cannot be made, or not be written.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # what is kept may be secret to others
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "it cannot be written")
        self.directory, self.limit = directory, limit
        self._added = limit  # look at once what is there
        self._lock = threading.Lock()

    def read(self, path: str, found: StoredObject, offset: int, targets: Sequence[memoryview], read: Read) -> None:
        """Fill buffers with the bytes of an object from an offset on: with what is kept, or else by `read`, in as few
        calls as there are gaps.

        Raises:
            OSError: what `read` raises.
        """
        wanted = _Wanted(offset, targets)
        missing: list[int] = []
        for number in range(offset // BLOCK, -(-wanted.end // BLOCK)):
            kept = self._get(path, found, number)
            if kept is None:
                missing.append(number)
                continue
            self._fetch(path, found, wanted, missing, read)
            begin = max(offset, number * BLOCK)
            for target in wanted.buffers(begin, min(wanted.end, (number + 1) * BLOCK)):
                target[:] = kept[begin - number * BLOCK :][: target.nbytes]
                begin += target.nbytes
        self._fetch(path, found, wanted, missing, read)

    def _fetch(self, path: str, found: StoredObject, wanted: _Wanted, missing: list[int], read: Read) -> None:
        """Read these blocks, which follow one another, and keep them; none are missing then."""
        if not missing:
            return
        begin, end = missing[0] * BLOCK, min((missing[-1] + 1) * BLOCK, found.size)
        before = memoryview(bytearray(max(0, wanted.begin - begin)))
        after = memoryview(bytearray(max(0, end - wanted.end)))
        middle = wanted.buffers(max(begin, wanted.begin), min(end, wanted.end))
        whole = [buffer for buffer in (before, *middle, after) if buffer.nbytes]
        read(begin, whole)
        blocks = _Wanted(begin, whole)
        for number in missing:
            self._put(path, found, number, blocks.buffers(number * BLOCK, min((number + 1) * BLOCK, end)))
        missing.clear()

    def _file(self, path: str, found: StoredObject, number: int) -> Path:
        name = sha256("\0".join([path, found.version, str(found.size), str(number)]).encode()).hexdigest()
        return self.directory / name[:2] / f"{name[2:]}.block"

    def _get(self, path: str, found: StoredObject, number: int) -> memoryview | None:
        file = self._file(path, found, number)
        try:
            whole = memoryview(file.read_bytes())
            os.utime(file)
        except OSError:
            return None
        size = min(BLOCK, found.size - number * BLOCK)
        is_sound = (
            whole.nbytes == _CHECK + size and zlib.crc32(whole[_CHECK:]).to_bytes(_CHECK, "little") == whole[:_CHECK]
        )
        return whole[_CHECK:] if is_sound else None

    def _put(self, path: str, found: StoredObject, number: int, pieces: Sequence[memoryview]) -> None:
        file = self._file(path, found, number)
        part = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}")
        check = 0
        for piece in pieces:
            check = zlib.crc32(piece, check)
        try:
            file.parent.mkdir(exist_ok=True, mode=0o700)
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                stream.writelines([check.to_bytes(_CHECK, "little"), *pieces])
            part.replace(file)
        except OSError:  # the disk is full, or the directory is gone
            with suppress(OSError):
                part.unlink(missing_ok=True)
            return
        with self._lock:
            self._added += _CHECK + sum(piece.nbytes for piece in pieces)
            if self._added < self.limit // _STEPS:
                return
            self._added = 0
        self._shrink()

    def _shrink(self) -> None:
        """Remove those blocks that were used least recently, if there is too much."""
        rows = []
        for file in self.directory.glob("??/*"):
            with suppress(OSError):  # another process has removed it
                status = file.stat()
                rows.append((status.st_mtime_ns, status.st_size, file))
        total = sum(size for _, size, _ in rows)
        if total <= self.limit:
            return
        for _, size, file in sorted(rows):
            if total <= self.limit * _LOW:
                return
            with suppress(OSError):
                file.unlink()
            total -= size


class _Wanted:
    """Buffers for what comes from `begin` on, without a gap."""

    def __init__(self, begin: int, targets: Sequence[memoryview]) -> None:
        self.begin = begin
        self._targets = targets
        self.end = begin + sum(target.nbytes for target in targets)

    def buffers(self, begin: int, end: int) -> list[memoryview]:
        """Those for the bytes from `begin` to `end`."""
        found, at = [], self.begin
        for target in self._targets:
            part = target[max(0, begin - at) : max(0, end - at)]
            if part.nbytes:
                found.append(part)
            at += target.nbytes
        return found


_kept: RangeCache | None = None


def keep_ranges(directory: str | None, limit: int) -> None:
    """From now on this process keeps ranges of remote objects in a directory; or, with None, nowhere.

    Raises:
        OSError: there cannot be such a directory.
    """
    global _kept
    if directory is not None and not is_local(directory):
        raise PlaceError(errno.EINVAL, "it is not on this machine", "name a directory of a disk of it")
    _kept = None if directory is None else RangeCache(Path(directory), limit)


def cache() -> RangeCache | None:
    """Where ranges are kept, if they are."""
    return _kept
