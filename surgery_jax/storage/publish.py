"""Making a whole output appear at once, or not at all.

An output is built in a hidden directory beside its final place, then renamed. Renames are remembered, so that a commit
that fails half way, or whose neighbour fails, can be taken back.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.errors import StorageError, listing
from ..core.specs import format_bytes
from .base import Layout
from .files import storage_error
from .formats import OutputPlan, formats
from .writing import write_at

__all__ = ["Staging", "check_space", "check_target", "commit_all", "storage_error"]


_SYNCING = 16  # files that are brought to the disk at the same time


# ----------------------------------------------------------------------------------------------------------- checks


def check_target(plan: OutputPlan, overwrite: bool) -> None:
    """Whether an output may and can be written to its place, before any work is done.

    Raises:
        StorageError: something is in the way, or the place cannot be written.
    """
    final = _final(plan)
    try:
        mode = final.stat().st_mode if final.exists() else None
        if mode is not None and stat.S_ISDIR(mode):
            _check_directory(plan, final, overwrite)
        elif mode is not None:
            _check_file(plan, final, stat.S_ISREG(mode), overwrite)
        above = next(parent for parent in final.parents if parent.exists())
        if not above.is_dir():
            raise StorageError("a file is where a directory is needed", where=plan.path, found=f"the file {above}")
        place = above if os.access(above, os.W_OK | os.X_OK) or not final.is_dir() else final
        if not os.access(place, os.W_OK | os.X_OK):
            raise StorageError("the directory cannot be written", where=plan.path, found=f"no permission for {place}")
    except OSError as error:
        raise storage_error(error, plan.path, "write there") from None


def _check_directory(plan: OutputPlan, final: Path, overwrite: bool) -> None:
    if not plan.is_directory:
        raise StorageError(
            "a directory is where the file would be",
            where=plan.path,
            hint="give the name of a file in it, or a 'shard' size to write a directory",
        )
    for format in formats().values():
        # Beside the new checkpoint, these would be read instead of it or make it unclear. They are not ours to delete.
        own = set(plan.format.stale(final)) if plan.format.owns_directories else set()
        is_other = format.name != plan.format.name and format.probe_directory(final)
        if is_other and not own.issuperset(format.stale(final)):
            raise StorageError(
                f"the directory holds a {format.name} checkpoint",
                where=plan.path,
                found=listing(str(path.relative_to(final)) for path in format.stale(final)),
                hint="choose another directory, or remove these files",
            )
    stale = plan.format.stale(final)
    if stale and not overwrite:
        raise StorageError(
            "the directory holds a checkpoint already",
            where=plan.path,
            found=listing(str(path.relative_to(final)) for path in stale),
            hint="add --overwrite to replace it; other files in the directory stay",
        )


def _check_file(plan: OutputPlan, final: Path, is_regular: bool, overwrite: bool) -> None:
    if plan.is_directory:
        raise StorageError("a file is where the directory would be", where=plan.path)
    if not is_regular:
        raise StorageError("this is neither a file nor a directory", where=plan.path, expected="a file to write")
    if not overwrite:
        raise StorageError("the file exists already", where=plan.path, hint="add --overwrite to replace it")


def check_space(outputs: Iterable[tuple[OutputPlan, Layout]]) -> None:
    """Whether the disks have room for all outputs beside what is there now.

    Raises:
        StorageError: a disk has not.
    """
    need: dict[int, int] = {}
    place: dict[int, tuple[str, Path]] = {}
    for plan, layout in outputs:
        final = _final(plan)
        above = next(parent for parent in final.parents if parent.is_dir())
        disk = above.stat().st_dev
        need[disk] = need.get(disk, 0) + sum(file.size for file in layout.files)
        place[disk] = plan.path, above
    for disk, count in need.items():
        path, above = place[disk]
        status = os.statvfs(above)
        free = status.f_bavail * status.f_frsize
        if count > free:
            raise StorageError(
                "not enough room on the disk",
                where=path,
                expected=f"needs {format_bytes(count)}",
                found=f"has {format_bytes(free)}",
                hint="free some space, or write to another disk",
            )


def _final(plan: OutputPlan) -> Path:
    """The real place: links are followed, so that the link stays and the renames stay on one disk."""
    try:
        return Path(os.path.realpath(plan.path))
    except ValueError as error:  # a NUL byte in the name
        raise StorageError(f"not a path: {error}", where=repr(plan.path)) from None


# ---------------------------------------------------------------------------------------------------------- staging


class Staging:
    """One output while it is being written. Others write to the files `place(index)`; then `commit_all`, and `abort` in
    any case."""

    is_on_disk = True

    def __init__(self, plan: OutputPlan, layout: Layout, told: Mapping[str, Any] | None = None) -> None:
        """Make the hidden directory and all files in their full length; or open those that another process has made,
        by what its `tell` told. That other process publishes; this one only helps to write.

        Raises:
            StorageError: the operating system refuses; nothing is left behind.
        """
        self.plan = plan
        self.layout = layout
        self._final = _final(plan)
        self._parents: list[Path] = []
        self._renames = _Renames()
        self._stage: Path | None = None
        self._finished = self._synced = False
        self._stale: list[Path] = []
        if told is not None:
            self._join(told)
            return
        try:
            # Now, and not when publishing: until then, other outputs of the same run may appear in the directory.
            self._stale = plan.format.stale(self._final) if self._final.is_dir() else []
            # The place itself may not be renamed if it is a mount point, the user's working directory, or in
            # a directory that we may not write: then its files are exchanged one by one.
            self._in_place = self._final.is_dir() and (
                self._final.is_mount() or self._final == Path.cwd() or not os.access(self._final.parent, os.W_OK)
            )
            self._make()
        except OSError as error:
            self.abort()
            raise storage_error(error, plan.path, "write there") from None
        except BaseException:
            self.abort()
            raise

    def _make(self) -> None:
        above = self._final if self._in_place else self._final.parent
        missing = [parent for parent in (above, *above.parents) if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir()
            self._parents.append(parent)
        prefix = f".{self._final.name[:40]}.surgery-"  # file names have at most 255 bytes
        self._stage = Path(tempfile.mkdtemp(prefix=prefix, dir=above))
        self._built = self._stage / "new"
        if self.layout.is_directory:
            self._built.mkdir()
            if self._final.is_dir():
                self._built.chmod(stat.S_IMODE(self._final.stat().st_mode))
        for index, file in enumerate(self.layout.files):
            path = Path(self.place(index))
            if "/" in file.name:
                path.parent.mkdir(parents=True, exist_ok=True)
            # The mode 0666 is narrowed by the umask, as for any program; the hidden directory itself is private.
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
            try:
                os.ftruncate(descriptor, file.size)
                for offset, data in file.fixed:
                    write_at(descriptor, data, offset)
            finally:
                os.close(descriptor)

    def tell(self) -> dict[str, Any]:
        """What another process must know to write here too."""
        return {"stage": str(self._stage), "parents": [str(parent) for parent in self._parents]}

    def _join(self, told: Mapping[str, Any]) -> None:
        self._stage = Path(told["stage"])
        self._built = self._stage / "new"
        self._parents = [Path(parent) for parent in told["parents"]]
        try:
            for index, file in enumerate(self.layout.files):
                path = Path(self.place(index))
                os.close(_open_made(path, file.size))
        except OSError as error:
            raise StorageError(
                "the directory that process 0 writes to is not the same here",
                where=self.plan.path,
                expected=f"{path}, of {format_bytes(file.size)}",
                found=error.strerror,
                hint="the outputs of several processes need a file system that all of them share",
            ) from None

    def release(self) -> None:
        """Leave everything to the process that publishes: `abort` removes nothing any more."""
        self._stage = None
        self._parents.clear()

    def place(self, index: int) -> str:
        """Where `layout.files[index]` is until it is published."""
        name = self.layout.files[index].name
        return str(self._built / name if name else self._built)

    def add(self, name: str, text: str) -> None:
        """Put one more file beside those of the layout of a directory.

        Raises:
            StorageError: the operating system refuses.
        """
        try:
            (self._built / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise storage_error(error, self.plan.path, f"write {name}") from None

    def finish(self, sync: bool = False) -> None:
        """All bytes are in place: let the format complete its files, and bring them to the disk if `sync`.

        Raises:
            StorageError: that failed.
        """
        if not self._finished:
            try:
                if self.layout.finish is not None:
                    self.layout.finish(self._built)
            except OSError as error:
                raise storage_error(error, self.plan.path, "complete it") from None
            self._finished = True
        if sync and not self._synced:
            try:
                _sync_all([*self._built.rglob("*"), self._built])
            except OSError as error:
                raise storage_error(error, self.plan.path, "bring it to the disk") from None
            self._synced = True

    def finished_files(self) -> dict[str, Path]:
        """The files of a finished output: where they will be, as the plan spells it, and where they are until then."""
        if not self._built.is_dir():
            return {self.plan.path: self._built}
        found = sorted(path for path in self._built.rglob("*") if path.is_file())
        return {str(Path(self.plan.path) / path.relative_to(self._built)): path for path in found}

    def _publish(self, sync: bool, fresh: Set[Path]) -> None:
        """Rename all into its place; `fresh` are the places of this run's outputs, which are not old."""
        assert self._stage is not None
        try:
            self._stale = [path for path in self._stale if path not in fresh and path.exists()]
            if not self._final.is_dir():
                self._renames.replace(self._built, self._final, self._stage / "old")
            elif self._in_place:
                self._exchange_files()
            else:
                self._exchange_directory()
            if sync:
                _sync(self._final.parent)
                if self._final.is_dir():
                    _sync(self._final)
                for parent in self._parents:
                    _sync(parent.parent)
        except OSError as error:
            raise storage_error(error, self.plan.path, "publish it") from None

    def _exchange_directory(self) -> None:
        """The old directory goes away as a whole; what is not of the old checkpoint moves into the new one."""
        assert self._stage is not None
        old = self._stage / "old"
        self._renames.move(self._final, old)
        self._put_away(old / path.relative_to(self._final) for path in self._stale)
        for entry in sorted(old.iterdir()):
            self._renames.move(entry, self._built / entry.name)
        self._renames.move(self._built, self._final)

    def _exchange_files(self) -> None:
        """The directory stays, its files change one by one; a reader may see a mixture for a moment."""
        self._put_away(self._stale)
        for entry in sorted(self._built.iterdir()):
            self._renames.move(entry, self._final / entry.name)

    def _put_away(self, paths: Iterable[Path]) -> None:
        assert self._stage is not None
        (self._stage / "stale").mkdir()
        for number, path in enumerate(paths):
            self._renames.move(path, self._stage / "stale" / str(number))

    def _clean(self) -> None:
        """After success: nothing of the old can be wanted back."""
        self._renames.forget()
        self._parents.clear()
        if self._stage is not None:
            shutil.rmtree(self._stage, ignore_errors=True)
            self._stage = None

    def abort(self) -> None:
        """Take everything back that is not committed; does nothing the second time.

        Of several outputs abort the last one first: an earlier one may have made the directory of a later one.

        Raises:
            StorageError: what was there before could not be put back; says where it is.
        """
        stage, self._stage = self._stage, None
        try:
            self._renames.undo()
        except OSError as error:
            problem = storage_error(error, self.plan.path, "put back what was there before")
            problem.hint = f"it is kept in {stage}"
            raise problem from None
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        while self._parents:
            with suppress(OSError):  # somebody else may have put something there
                self._parents.pop().rmdir()


def commit_all(stagings: Sequence[Staging], sync: bool = True) -> None:
    """Publish several outputs: all are complete before the first appears; if one fails, all are taken back.

    Raises:
        StorageError: an output could not be completed or published.
    """
    try:
        for staging in stagings:
            staging.finish(sync)
        fresh = {staging._final for staging in stagings}
        for staging in stagings:
            staging._publish(sync, fresh)
    except BaseException:
        for staging in reversed(stagings):
            staging.abort()
        raise
    for staging in stagings:
        staging._clean()


# ---------------------------------------------------------------------------------------------------------- details


class _Renames:
    """Renames that can be taken back."""

    def __init__(self) -> None:
        self._done: list[tuple[Path, Path]] = []

    def move(self, source: Path, target: Path) -> None:
        """Rename; refuses to replace, because that could not be taken back."""
        if target.exists() or target.is_symlink():
            raise FileExistsError(17, f"{target.name} is in the way", str(target))
        self._done.append((source, target))  # before it is done: an interrupt in between must not lose it
        source.rename(target)

    def replace(self, source: Path, target: Path, backup: Path) -> None:
        """Rename over a file in one step, so that at every moment there is one; the old file stays as `backup`."""
        if not target.exists():
            self.move(source, target)
            return
        self._done.append((target, backup))
        try:
            backup.hardlink_to(target)
        except OSError:  # a file system without hard links
            target.rename(backup)
        source.replace(target)

    def undo(self) -> None:
        while self._done:
            source, target = self._done[-1]
            if target.exists() or target.is_symlink():
                target.replace(source)
            self._done.pop()

    def forget(self) -> None:
        self._done.clear()


def _open_made(path: Path, size: int) -> int:
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


def _sync_all(paths: Sequence[Path]) -> None:
    """Several at once, so that the file system brings them to the disk together: each takes as long as a few."""
    if len(paths) <= 4:
        for path in paths:
            _sync(path)
        return
    with ThreadPoolExecutor(_SYNCING) as pool:
        for _ in pool.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
