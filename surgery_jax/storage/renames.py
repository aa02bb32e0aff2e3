"""Renames that replace nothing by accident, that exchange two things in one step, and that can be taken back."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

__all__ = ["Renames", "exchange", "put_back", "rename_new"]

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


def exchange(one: Path, other: Path) -> None:
    """Let two things change places, in one step.

    Raises:
        OSError: they cannot, or the system has no such thing.
    """
    if not _rename(one, other, _EXCHANGE):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one), None, str(other))


def put_back(target: Path, old: Path, new: Path, names: Iterable[str]) -> None:
    """In a directory whose files were changed one by one, take back the new ones, and bring back the old ones."""
    for name in names:
        if not os.path.lexists(new / name) or _are_one(target / name, new / name):
            _move(target / name, new / name)
    for path in sorted(old.rglob("*")):
        place = target / path.relative_to(old)
        if not (path.is_dir() and place.is_dir()):
            _move(path, place)


def _are_one(one: Path, other: Path) -> bool:
    """Whether a file has both names, because a rename in two steps was broken off."""
    return os.path.lexists(one) and os.path.lexists(other) and os.path.samestat(one.lstat(), other.lstat())


def _move(source: Path, target: Path) -> None:
    if _are_one(source, target):
        source.unlink()
    elif os.path.lexists(source):
        rename_new(source, target)


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
