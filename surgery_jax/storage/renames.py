"""Renames that replace nothing by accident, that exchange two things in one step, and that can be taken back."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

__all__ = ["Renames", "rename_new"]

_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2  # of linux/fcntl.h and linux/fs.h
_MISSING = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)  # what a system or a file system says that has no such rename
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)
Identity = tuple[int, int]


@cache
def _renameat2() -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return found


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Rename with a flag of Linux; False where there is no such thing.

    Raises:
        OSError: it cannot be renamed.
    """
    call = _renameat2()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _MISSING:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


def rename_new(source: Path, target: Path) -> None:
    """Rename to a name that does not exist.

    Raises:
        FileExistsError: it does.
        OSError: it cannot be renamed.
    """
    if _rename(source, target, _NOREPLACE):
        return
    if not source.is_dir() and link(source, target):
        try:
            source.unlink()
        except OSError:
            target.unlink()
            raise
        return
    if os.path.lexists(target):  # a system without any way to do both in one step
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source), None, str(target))
    source.rename(target)


def link(source: Path, target: Path) -> bool:
    """Give a file, or a link, one more name; False where the file system has no such thing.

    Raises:
        OSError: it cannot be done.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def _identity(path: Path) -> Identity | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


class Renames:
    """Renames that can be taken back. What counts is what lies where: whoever comes between is left alone."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def move(self, source: Path, target: Path) -> None:
        """Rename to a name that does not exist.

        Raises:
            OSError: it does, or it cannot be renamed.
        """
        moved = _identity(source)

        def undo() -> None:
            if _identity(target) == moved:
                rename_new(target, source)

        self._undo.append(undo)
        rename_new(source, target)

    def swap(self, new: Path, place: Path, backup: Path) -> Path:
        """Put something new in the place of an old file or directory; gives where the old one is now.

        At every moment there is one of the two. Where the system cannot exchange them, that is true of files only: a
        directory is at `backup` for a moment, and at its place is nothing.

        Raises:
            OSError: it cannot be renamed.
        """
        moved = _identity(new)
        self._undo.append(lambda: _identity(place) == moved and _rename(new, place, _EXCHANGE))
        if _rename(new, place, _EXCHANGE):
            return new
        self._undo.pop()
        if new.is_dir() or not link(place, backup):
            self.move(place, backup)
            self.move(new, place)
        else:
            self._undo.append(lambda: _identity(place) == moved and backup.replace(place))
            new.replace(place)
        return backup

    def undo(self) -> None:
        """Take all back, the last one first.

        Raises:
            OSError: that cannot be done; what is left may be tried again.
        """
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def forget(self) -> None:
        """Nothing is to be taken back any more."""
        self._undo.clear()
