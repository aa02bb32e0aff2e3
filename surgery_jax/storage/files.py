"""Reading what others wrote without trusting it: regular files only, strict JSON, errors that name the file."""

from __future__ import annotations

import errno
import gc
import io
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..core.errors import StorageError, nearest
from ..core.strict_json import read_json
from .identity import notice, remembered
from .places.base import PlaceError, fill
from .places.found import check_writable, is_local, locate, place_of
from .places.looking import looking
from .stages import Stage

__all__ = [
    "File",
    "check_exists",
    "check_new_file",
    "check_regular",
    "first_bytes",
    "parse_json",
    "paused_gc",
    "read_text",
    "storage_error",
    "write_whole",
]

_HINTS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "your quota is used up: free some space, or write to another disk",
    errno.EFBIG: "no file may be that long here: see ulimit -f and the file system, or write shards",
    errno.EACCES: "check the permissions of the path and of its directories",
    errno.EPERM: "check the permissions of the path and of its directories",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.EBUSY: "the path may be a mount point: choose a directory inside of it",
}


def storage_error(error: OSError, path: Path | str, action: str) -> StorageError:
    """The error of an operating system as one of ours: `action` completes the words "cannot ..."."""
    reason = error.strerror or str(error)
    hint = error.hint if isinstance(error, PlaceError) else _HINTS.get(error.errno or 0)
    return StorageError(f"cannot {action}: {reason}", where=str(path), hint=hint)


def check_regular(path: Path) -> os.stat_result:
    """The status of a path that must be a regular file.

    Raises:
        StorageError: it does not exist, or is something else (opening a pipe would wait for ever).
    """
    status = check_exists(path)
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "neither a file nor a directory"
        raise StorageError("not a regular file", where=str(path), expected="a file", found=kind)
    return status


def check_exists(path: Path) -> os.stat_result:
    """The status of a path.

    Raises:
        StorageError: there is none; names the most similar neighbours.
    """
    try:
        return path.stat()
    except FileNotFoundError:
        raise StorageError("does not exist", where=str(path), hint=_neighbours(path)) from None
    except OSError as error:
        raise storage_error(error, path, "read it") from None
    except ValueError as error:  # a NUL byte in the name
        raise StorageError(f"not a path: {error}", where=repr(str(path))) from None


def _neighbours(path: Path) -> str | None:
    parent = path.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        is_gone = is_local(parent) and not parent.exists()
        return f"the directory {parent} does not exist either" if is_gone else None
    found = nearest(path.name, names)
    return f"did you mean {' or '.join(str(parent / name) for name in found)}?" if found else None


class File:
    """A regular file of any place, open for reading at positions; every failure is a StorageError."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            StorageError: there is no such file, or it is not the one that is remembered.
        """
        self.path = path
        try:
            place, known = place_of(str(path)), remembered(str(path))
            if known is not None and not is_local(path):  # every range is held against what is known
                self._reader = place.reopen(str(path), known)
            else:
                with looking():
                    check_regular(path)
                    self._reader = place.open(str(path))
        except OSError as error:
            raise storage_error(error, path, "open it") from None
        self.size = self._reader.identity.size
        try:
            notice(str(path), self._reader.identity)
        except StorageError:
            self._reader.close()
            raise

    def __enter__(self) -> File:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """It is not read any more."""
        self._reader.close()

    @contextmanager
    def mapped(self) -> Iterator[mmap.mmap]:
        """The whole file as if it were in memory."""
        with self.view() as data:
            yield data

    def view(self) -> mmap.mmap:
        """The whole file as memory that can be read, for as long as anything looks at it; it has at least one byte.

        Where the system cannot map it, all of it is read now.
        """
        descriptor = self._reader.descriptor
        try:
            if descriptor is not None:
                return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
            memory = mmap.mmap(-1, self.size)
            fill(self._reader, 0, memoryview(memory))
            return memory
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise StorageError(f"cannot read it: {error}", where=str(self.path)) from None

    def stream(self) -> IO[bytes]:
        """The file from its beginning, for those who want to read it as a stream; closing it does not close this."""
        if self._reader.descriptor is None:
            return io.BytesIO(self.at(0, self.size))
        stream = os.fdopen(os.dup(self._reader.descriptor), "rb")
        stream.seek(0)
        return stream

    def check_range(self, offset: int, count: int) -> None:
        """Whether the file has these bytes.

        Raises:
            StorageError: it has not.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise StorageError(
                "the file is cut off",
                where=str(self.path),
                expected=f"at least {offset + count} bytes",
                found=f"{self.size} bytes",
            )

    def at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes at `offset`."""
        parts = []
        while count:
            try:
                part = self._part(offset, min(count, 1 << 30))
            except OSError as error:
                raise storage_error(error, self.path, "read it") from None
            if not part:
                raise StorageError("the file is too short", where=str(self.path), found=f"{self.size} bytes")
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)

    def blocks(self, offset: int, count: int) -> Iterator[memoryview]:
        """These bytes in blocks, each valid until the next.

        Raises:
            StorageError: they cannot be read.
        """
        self.check_range(offset, count)
        buffer = memoryview(bytearray(min(count, _BLOCK if self._reader.descriptor is not None else _FAR_BLOCK)))
        while count:
            part = buffer[:count]
            try:
                fill(self._reader, offset, part)
            except OSError as error:
                raise storage_error(error, self.path, "read it") from None
            yield part
            offset, count = offset + part.nbytes, count - part.nbytes

    def _part(self, offset: int, count: int) -> bytes:
        """At most so many bytes."""
        if self._reader.descriptor is not None:
            return os.pread(self._reader.descriptor, count, offset)
        target = bytearray(min(count, max(self.size - offset, 0)))
        return bytes(target[: self._reader.read_into(offset, memoryview(target))])


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file, at most `count`; the file is not remembered.

    Raises:
        OSError: it cannot be read.
    """
    reader = place_of(str(path)).open(str(path))
    try:
        target = bytearray(min(count, reader.identity.size))
        fill(reader, 0, memoryview(target))
        return bytes(target)
    finally:
        reader.close()


_BLOCK = 1 << 20  # bytes that are read at once
_FAR_BLOCK = 8 << 20  # where each time is a request
_MAX_TEXT = 1 << 24  # bytes


def read_text(path: Path, what: str, most: int = _MAX_TEXT) -> str:
    """A whole text file: UTF-8, and no longer than anybody writes one, `most` bytes.

    Raises:
        StorageError: it is not that, or cannot be read.
    """
    with File(path) as file:
        if file.size > most:
            raise StorageError(f"{what} is too long", where=str(path), found=f"{file.size} bytes")
        raw = file.at(0, file.size)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise StorageError(f"{what} is not text", where=str(path)) from None


@contextmanager
def paused_gc() -> Iterator[None]:
    """No search for cycles while very many small values are made: that would take most of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def parse_json(raw: bytes, path: Path, what: str) -> object:
    """The value of a JSON text: UTF-8, no key twice in one object, no NaN, not nested without end.

    Raises:
        StorageError: it is not that.
    """
    try:
        return read_json(raw.decode("utf-8"), constants=False)
    except ValueError as error:
        raise StorageError(f"{what} is not valid JSON", where=str(path), found=str(error)) from None


def check_new_file(path: str, overwrite: bool) -> None:
    """Whether a text file can be written, before any work is done.

    Raises:
        StorageError: it is there, or its directory is not.
    """
    check_writable(path)
    target = locate(path)
    try:
        if target.is_dir() or (target.exists() and not target.is_file()):
            raise StorageError("not a file that could be written", where=path, expected="the name of a file")
        if target.exists() and not overwrite:
            raise StorageError("the file exists already", where=path, hint="add --overwrite to replace it")
        if not is_local(target):
            return
        if not target.parent.is_dir():
            raise StorageError(f"the directory {target.parent} does not exist", where=path)
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise StorageError("the directory cannot be written", where=path)
    except OSError as error:
        raise storage_error(error, path, "write it") from None
    except ValueError as error:  # a NUL byte in the name
        raise StorageError(f"not a path: {error}", where=repr(path)) from None


def write_whole(path: str, text: str) -> None:
    """Write a text file that appears when it is complete and on the disk; a link at its place is replaced.

    Raises:
        StorageError: the operating system refuses; what was there stays.
    """
    place, data, target = place_of(path), text.encode("utf-8"), locate(path)
    try:
        with _unfinished(target) as part:
            place.stage(part, str(target), len(data))
            writer = place.target(part)
            try:
                writer.write(0, data)
                writer.sync()
            finally:
                writer.close()
            place.publish(part, str(target))
    except OSError as error:
        raise storage_error(error, path, "write it") from None


@contextmanager
def _unfinished(target: Path) -> Iterator[str]:
    """Where a file is until it appears: what is left there at the end goes, after a kill with the next run."""
    if is_local(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Stage.make(target, target.parent)
        try:
            yield str(stage.new)
        finally:
            stage.remove()
        return
    part = str(target.with_name(f".{target.name[:40]}.surgery-{os.getpid()}-{os.urandom(4).hex()}"))
    try:
        yield part
    except BaseException:
        place_of(part).remove(part)
        raise
