"""Small files in which processes tell each other something, on a file system that all of them see: each appears whole,
and of several that want to be the first one is."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["put", "put_first"]

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EMLINK}


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
