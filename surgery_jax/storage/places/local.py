"""The file system of this machine, and what only descriptors can do: direct I/O, shared pages, copies in the kernel."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..writing import write_at
from .base import Identity, Place, Reader, Status, Writer

__all__ = ["LocalPlace"]

_O_DIRECT = getattr(os, "O_DIRECT", 0)


class _Reader(Reader):
    descriptor: int

    def __init__(self, path: str, flags: int) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        try:
            super().__init__(_identity(os.fstat(self.descriptor)))
        except BaseException:
            os.close(self.descriptor)
            raise

    def read_into(self, offset: int, target: memoryview) -> int:
        return os.preadv(self.descriptor, [target], offset)

    def close(self) -> None:
        os.close(self.descriptor)


class _LocalWriter(Writer):
    descriptor: int

    def __init__(self, path: str) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        write_at(self.descriptor, data, offset)

    def read_into(self, offset: int, target: memoryview) -> int:
        return os.preadv(self.descriptor, [target], offset)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.descriptor, size)

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def direct(self) -> int | None:
        if _O_DIRECT:
            with suppress(OSError):  # a file system without direct writes
                return os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | _O_DIRECT)
        return None

    def close(self) -> None:
        os.close(self.descriptor)


class LocalPlace(Place):
    """Paths without a scheme."""

    scheme = ""
    tells_first = True

    def list(self, path: str) -> Iterable[str]:
        return os.listdir(path)  # noqa: PTH208

    def stat(self, path: str) -> Status | None:
        try:
            status = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Status(stat.S_ISDIR(status.st_mode), status.st_size)

    def open(self, path: str) -> Reader:
        return _Reader(path, 0)

    def open_direct(self, path: str) -> Reader | None:
        if _O_DIRECT:
            with suppress(OSError):  # a file system without direct reads
                return _Reader(path, _O_DIRECT)
        return None

    def identity(self, path: str) -> Identity:
        return _identity(Path(path).stat())

    def create(self, path: str, size: int) -> None:
        """The mode 0666 is narrowed by the umask, as for any program."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def target(self, path: str) -> Writer:
        return _LocalWriter(path)

    def publish(self, created: str, path: str) -> None:
        """On the disk as well."""
        Path(created).replace(path)
        directory = os.open(Path(path).parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def remove(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)


def _identity(status: os.stat_result) -> Identity:
    return Identity((status.st_dev, status.st_ino), status.st_size, (status.st_mtime_ns, status.st_ctime_ns))
