"""Small files in which processes tell each other something, in a folder that all of them see: each appears whole, and
of several that want to be the first one is.

On a file system whoever made a file first has it locked, as far as there are locks, and renews it by its time of
change. At an object store, which writes under conditions, it is renewed by other bytes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .places.base import PlaceError
from .places.found import is_local, place_of

__all__ = ["Board", "Own", "Posted", "board_of", "put", "put_first"]

_ATTEMPTS = 10
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EMLINK}


class Posted(NamedTuple):
    """What a small file says. `seen` changes whenever it is renewed, which was so many seconds ago, if that is known;
    `is_unlocked`: no process that this machine knows of has made it first and still has it."""

    data: bytes
    seen: tuple[int | str, ...]
    age_s: float | None
    is_unlocked: bool


class Own:
    """A small file that this process has made first."""

    def renew(self, data: bytes) -> None:
        """Show that this process lives.

        Raises:
            OSError: it cannot be renewed, or is another one now.
        """
        raise NotImplementedError

    def is_there(self) -> bool:
        """Whether the file is still the one that was made.

        Raises:
            OSError: that cannot be told.
        """
        raise NotImplementedError

    def close(self) -> None:
        """It is nobody's any more."""


class Board:
    """The small files of a folder of a file system. Every method raises OSError if the system refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str, most: int) -> Posted | None:
        """A file, or as much of it; None if there is none."""
        try:  # opening asks the server of a network file system, which looking at a name may not
            descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            status = os.fstat(descriptor)
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                data = stream.read(min(most, status.st_size + 1))
            age = max(0.0, time.time() - status.st_mtime)
            return Posted(data, (status.st_mtime_ns, status.st_ino), age, _is_unlocked(descriptor))
        finally:
            os.close(descriptor)

    def put(self, name: str, data: bytes, *, sync: bool) -> None:
        """Let a file appear; one that is there is replaced."""
        put(self.folder / name, data, sync=sync)

    def put_first(self, name: str, data: bytes) -> Own | None:
        """Let a file appear if there is none; None if there is one."""
        descriptor = put_first(self.folder / name, data)
        return None if descriptor is None else _OwnFile(self.folder / name, descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, which may be gone."""
        (self.folder / name).unlink(missing_ok=True)


class _OwnFile(Own):
    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def renew(self, data: bytes) -> None:
        os.utime(self._descriptor)

    def is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)


class _StoreBoard(Board):
    """The small objects below a path of an object store."""

    def make(self) -> None:
        """Ask once, so that what is wrong with the place is told before any work: a folder comes with what is in it."""
        self.read("shares", 0)

    def read(self, name: str, most: int) -> Posted | None:
        found = place_of(str(self.folder)).glance(f"{self.folder}/{name}", most)
        return None if found is None else Posted(found[1], (found[0],), None, False)

    def put(self, name: str, data: bytes, *, sync: bool) -> None:
        place, path = place_of(str(self.folder)), f"{self.folder}/{name}"
        for _ in range(_ATTEMPTS):
            there = place.glance(path, 0)
            if place.put_if(path, data, None if there is None else there[0]) is not None:
                return
        raise PlaceError(errno.EBUSY, "others write it again and again")

    def put_first(self, name: str, data: bytes) -> Own | None:
        path = f"{self.folder}/{name}"
        version = place_of(path).put_if(path, data, None)
        return None if version is None else _OwnObject(path, version)

    def remove(self, name: str) -> None:
        place_of(str(self.folder)).remove(f"{self.folder}/{name}")


class _OwnObject(Own):
    def __init__(self, path: str, version: str) -> None:
        self._path, self._version = path, version

    def renew(self, data: bytes) -> None:
        version = place_of(self._path).put_if(self._path, data, self._version)
        if version is None:
            raise PlaceError(errno.ESTALE, "it is another one now")
        self._version = version

    def is_there(self) -> bool:
        found = place_of(self._path).glance(self._path, 0)
        return found is not None and found[0] == self._version


def board_of(folder: Path) -> Board:
    """The small files of a folder, wherever it is."""
    return Board(folder) if is_local(folder) else _StoreBoard(folder)


def _is_unlocked(descriptor: int) -> bool:
    """Whether a file is locked by nobody; a file system without locks does not know, so it may be."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def put(path: Path, data: bytes, *, sync: bool) -> None:
    """Let a file appear with these bytes; one that is there is replaced. `sync`: once they are on the disk.

    Raises:
        OSError: the operating system refuses.
    """
    part, descriptor = _part(path, data)
    try:
        if sync:
            os.fsync(descriptor)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def put_first(path: Path, data: bytes) -> int | None:
    """Let a file appear with these bytes if there is none: its descriptor, which is locked as long as it is open, where
    there are locks; None if there is one.

    A link is made at once or not at all, also over a network. Where there are no links the file is empty at first.

    Raises:
        OSError: the operating system refuses.
    """
    part, descriptor = _part(path, data)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.link(part, path)
        kept, descriptor = descriptor, -1
        return kept
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _created(path, data)
    finally:
        part.unlink(missing_ok=True)
        if descriptor >= 0:
            os.close(descriptor)


def _part(path: Path, data: bytes) -> tuple[Path, int]:
    """A new file beside a path, open, with these bytes."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write(descriptor, data)
    except BaseException:
        os.close(descriptor)
        part.unlink(missing_ok=True)
        raise
    return part, descriptor


def _created(path: Path, data: bytes) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return None
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write(descriptor, data)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
