"""What belongs to a checkpoint for its users and is not of it, and stays when it is replaced; and bringing files to the
disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from .renames import link
from .stages import is_stage

__all__ = ["State", "give_to_owner", "link_others", "state_of", "strangers", "sync", "sync_all"]

_SYNCING = 16  # files that are brought to the disk at the same time
State = tuple[int, int, int]  # node, size and time of change: what tells a file from any other


def state_of(path: Path) -> State:
    """The state of a file, or of a link itself.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    status = path.lstat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def link_others(old: Path, new: Path, without: Set[Path]) -> dict[str, State]:
    """Give all files below a directory but some a second name in another one; where the file system has no such thing
    they are copied. Gives what they were.

    Raises:
        OSError: that cannot be done, or a name is taken.
    """
    done = {}
    for entry in sorted(old.iterdir()):
        if entry in without or is_stage(entry.name):
            continue
        target = new / entry.name
        done[entry.name] = state_of(entry)
        if entry.is_dir() and not entry.is_symlink():
            target.mkdir(exist_ok=True)
            link_others(entry, target, without)
            give_to_owner(entry, target)
            shutil.copystat(entry, target)
        elif os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, f"{entry.name} is in the way", str(target))
        elif not link(entry, target):
            shutil.copy2(entry, target, follow_symlinks=False)
            if not entry.is_symlink():
                sync(target)
    return done


def give_to_owner(old: Path, new: Path) -> None:
    """Let a directory belong to whom another one belongs to, if we may."""
    status = old.stat()
    with suppress(PermissionError):  # only root may give away
        os.chown(new, status.st_uid, status.st_gid)


def sync_all(paths: Sequence[Path]) -> None:
    """Several at once, so that the file system brings them to the disk together: each takes as long as a few."""
    if len(paths) <= 4:
        for path in paths:
            sync(path)
        return
    with ThreadPoolExecutor(_SYNCING) as pool:
        for _ in pool.map(sync, paths):
            pass


def sync(path: Path) -> None:
    """Bring a file or a directory to the disk.

    Raises:
        OSError: the operating system refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def strangers(directory: Path, built: Path, own: Collection[str]) -> Iterator[tuple[str, Path]]:
    """All that lies below a directory and is neither of the old checkpoint, whose names are its `own`, nor replaced by
    what is built, by name.

    Raises:
        OSError: it cannot be read.
    """
    for entry in sorted(directory.rglob("*")):
        name = entry.relative_to(directory)
        is_ours = any(str(part) in own for part in (name, *name.parents)) or (built / name).exists()
        if not is_ours and not is_stage(name.parts[0]):
            yield name.as_posix(), entry
