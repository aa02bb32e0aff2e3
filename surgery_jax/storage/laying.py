"""Files of an output before its first tensor byte: in their full length, with all bytes that are known."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .base import LaidFile
from .files import File
from .places.base import Writer
from .places.found import locate, place_of

__all__ = ["lay", "lay_again", "open_made", "remove_others", "write_known"]

_PART = 4 << 20  # bytes of a document that are copied at once


def lay(path: str, file: LaidFile, final: str | None = None, *, is_revised: bool = False) -> None:
    """Create a file in its full length, with the bytes that are known; it will be published as `final`, and is
    `is_revised` if its format reads and writes it again when all is there.

    Raises:
        OSError: its place refuses.
        StorageError: what it is a copy of cannot be read.
    """
    if final is None:
        place_of(path).create(path, file.size)
    else:
        place_of(path).stage(path, final, file.size, is_revised=is_revised)
    write_known(path, file)


def lay_again(path: str, file: LaidFile, size: int) -> bool:
    """Make a file that another run has laid what it is at the beginning, but for the bytes of tensors that are there;
    gives whether they still are: a file that is gone, or not `size` bytes long, is laid anew.

    Raises:
        OSError: its place refuses.
        StorageError: what it is a copy of cannot be read.
    """
    with suppress(FileNotFoundError):
        status = Path(path).lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size == size:
            write_known(path, file)
            return True
        Path(path).unlink()
    lay(path, file)
    return False


def remove_others(root: Path, files: Sequence[LaidFile]) -> None:
    """Remove what lies in a directory that is built beside the files of its layout: what another run has added and
    linked when it was about to publish.

    Raises:
        OSError: the operating system refuses.
    """
    own = {str(root / file.name) for file in files}
    own |= {str(parent) for path in list(own) for parent in Path(path).parents}
    for above, directories, names in os.walk(root, topdown=False):
        for name in (*directories, *names):
            path = Path(above, name)
            if str(path) not in own and path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif str(path) not in own:
                path.unlink()


def open_made(path: Path, size: int) -> int:
    """Open a file that another process has made; a network file system may show it a little later.

    Raises:
        OSError: it is not there, or not of that size.
    """
    for _ in range(30):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(descriptor).st_size == size:
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:
            pass
        time.sleep(0.1)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def write_known(path: str, file: LaidFile) -> None:
    """Write the bytes of a file that are known before its first tensor byte.

    Raises:
        OSError: its place refuses.
        StorageError: what it is a copy of cannot be read.
    """
    if file.fixed or file.source is not None:
        writer = place_of(path).target(path)
        try:
            for offset, data in file.fixed:
                writer.write(offset, data)
            if file.source is not None:
                _copy(file.source, writer, file.size)
        finally:
            writer.close()


def _copy(source: str, writer: Writer, size: int) -> None:
    with File(locate(source)) as file:
        for offset in range(0, size, _PART):
            writer.write(offset, file.at(offset, min(_PART, size - offset)))
