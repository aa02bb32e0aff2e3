"""The hidden directories in which outputs are built: made, locked as long as their process lives, and found again when
it has ended before the output was there.

A stage lies beside its output, or within it, and holds `new`, what is built; `old`, what was there before, while it is
being replaced; `lock`, a file that is locked by whoever works here and says for which output; `head`, what a run must
be to go on here; and the journals of the processes that work here. A stage whose locks can be had is dead. It stays
until a run goes on with it or somebody clears it away, which nobody does if something in it may be the only copy of
what was there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypedDict

from ..core.strict_json import read_json
from .journal import Finished, finished, framed, lock, rewrite, unframed
from .places.found import is_local
from .renames import exchange, put_back, rename_new

__all__ = [
    "LOCK",
    "NEW",
    "OLD",
    "Begun",
    "Stage",
    "StagingAddress",
    "all_left",
    "is_at_work",
    "is_stage",
    "kept_copy",
    "names_in",
    "open_lock",
    "parsed",
    "remove_stage",
    "stages_in",
    "stages_of",
    "take",
    "try_lock",
]

_NAME = re.compile(r"\..{0,40}\.surgery-[a-z0-9_]{8}", re.DOTALL)
LOCK, OLD, NEW, _HEAD, _JOURNAL = "lock", "old", "new", "head", "done-"
_MOST_HEAD = 64 << 20  # bytes of an untrusted head: inputs of 100 000 files take 10 MB
_ATTEMPTS = 10


def _prefix(target: Path) -> str:
    return f".{target.name[:40]}.surgery-"  # file names have at most 255 bytes


class StagingAddress(TypedDict):
    """What a process that writes to a staging of another one must know of it: where it is, the directories above it
    that were made for it, the sizes of files by name that a run before has encoded already, and of uploads to other
    places what they are known by, by the names of files, and whether another run may go on with them."""

    stage: str
    parents: list[str]
    sealed: dict[str, int]
    uploads: dict[str, str]
    may_go_on: bool


class Begun(NamedTuple):
    """A stage that a run takes over, which it has locked. `sealed` are the sizes of the files, by number, that another
    run has encoded already."""

    stage: Stage
    sealed: Mapping[int, int]


def is_stage(name: str) -> bool:
    """Whether a file name is one of a stage."""
    return _NAME.fullmatch(name) is not None


class Stage:
    """A hidden directory for an output at `target`, locked until it is closed."""

    def __init__(self, path: Path, lock: int = -1) -> None:
        """One that is there; `lock` is the open file if this process holds it."""
        self.path = path
        self._lock = lock
        self._length = 0

    @classmethod
    def make(cls, target: Path, above: Path) -> Stage:
        """A new one in the directory `above`.

        Raises:
            OSError: the operating system refuses.
        """
        said = json.dumps({"host": socket.gethostname(), "target": target.name}).encode() + b"\n"
        for _ in range(_ATTEMPTS):
            path = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=above))
            try:
                lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # somebody who clears away took it for a dead one
                continue
            except OSError:
                with suppress(OSError):
                    path.rmdir()
                raise
            stage = cls(path, lock)
            try:
                is_ours = try_lock(lock)
                if is_ours is None or (is_ours and (path / LOCK).exists()):
                    os.write(lock, said)
                    return stage
            except BaseException:
                stage.remove()
                raise
            stage.close()
        raise OSError(errno.EAGAIN, "others remove the hidden directory again and again", str(above))

    @property
    def new(self) -> Path:
        """Where the output is built."""
        return self.path / NEW

    @property
    def old(self) -> Path:
        """Where what was there before may be put."""
        return self.path / OLD

    # -- what is finished ---------------------------------------------------------------------------------------

    def write_head(self, head: Mapping[str, object]) -> None:
        """Say what a run must be to go on here, and which of the things that lie here or at the output's place is what
        is built: its number in the file system stays when it is renamed.

        Raises:
            OSError: the operating system refuses.
        """
        said = json.dumps({**head, "node": self.new.lstat().st_ino}).encode()
        place = self.path / _HEAD
        if not place.exists():
            place.write_bytes(framed(said))
            return
        with (self.path / f"{_HEAD}.new").open("wb") as stream:  # the old one must not be lost
            stream.write(framed(said))
            stream.flush()
            os.fsync(stream.fileno())
        Path(stream.name).replace(place)

    def read_head(self) -> dict[str, object]:
        """What `write_head` said; nothing if its process was killed before that."""
        with suppress(OSError), os.fdopen(_opened(self.path / _HEAD, os.O_RDONLY), "rb") as stream:
            for _, said in unframed(stream.read(_MOST_HEAD)):
                return parsed(said)
        return {}

    def journal(self, number: int) -> Path:
        """The journal of one process of a run."""
        return self.path / f"{_JOURNAL}{number}"

    @property
    def journals(self) -> list[Path]:
        """Those of all processes that have worked here."""
        return sorted(path for path in self.path.glob(f"{_JOURNAL}*") if path.is_file() and not path.is_symlink())

    @property
    def has_finished(self) -> bool:
        """Whether anything that was done here is noted."""
        with suppress(OSError):
            return any(path.lstat().st_size for path in self.journals) and (self.path / _HEAD).exists()
        return False

    @property
    def is_worth_keeping(self) -> bool:
        """Whether it holds what another run may go on with, or what somebody may miss."""
        return self.has_finished or os.path.lexists(self.old)

    def finished(self, sizes: Sequence[int]) -> list[Finished]:
        """What the journals say is done. `sizes` are those of the files as their tensors have them.

        Raises:
            OSError: they cannot be read.
        """
        return [done for path in self.journals for done in finished(path, sizes)]

    def rewrite(self, known: Iterable[Finished]) -> None:
        """Let the journals say this and nothing else.

        Raises:
            OSError: the operating system refuses.
        """
        first = self.journal(0)
        rewrite(first, [path for path in self.journals if path != first], known)

    @property
    def is_whole(self) -> bool:
        """Whether what is built is here, and not at its place."""
        with suppress(OSError):
            return self.new.lstat().st_ino == self.read_head().get("node")
        return False

    def has_appeared(self, target: Path) -> bool:
        """Whether what was built here is at its place."""
        with suppress(OSError):
            if self.path.parent == target:  # where files were exchanged one by one
                return self.new.is_dir() and not any(self.new.iterdir()) and bool(self.read_head())
            return target.lstat().st_ino == self.read_head().get("node")
        return False

    def take_back(self, target: Path) -> None:
        """Put what has appeared back here, and what it replaced back to its place. What came into its directory since
        goes with that.

        Raises:
            OSError: that cannot be done.
        """
        if self.path.parent == target:
            facts = parsed(os.pread(self._lock, 1 << 16, 0).partition(b"\n")[2])
            put_back(target, self.old, self.new, names_in(facts))
        elif os.path.lexists(self.new):
            exchange(target, self.new)
        else:
            rename_new(target, self.new)
            if os.path.lexists(self.old):
                rename_new(self.old, target)
        if self.new.is_dir() and target.is_dir() and self.path.parent != target:
            own = set(os.listdir(target))  # noqa: PTH208
            for entry in self.new.iterdir():
                if entry.name not in own and is_stage(entry.name):
                    rename_new(entry, target / entry.name)

    def begin(self, is_together: bool, *, sync: bool) -> None:
        """What is built is about to appear: note what whoever finds this directory dead must know to put things back,
        and with `sync` bring that to the disk.

        `is_together`: with other outputs. Until `end`, what was there before is then kept, since not all of them may
        be there.

        Raises:
            OSError: that cannot be noted.
        """
        self._length = os.fstat(self._lock).st_size
        names = sorted(entry.name for entry in self.new.iterdir()) if self.new.is_dir() else []
        facts = {"node": self.new.lstat().st_ino, "names": names, "together": is_together}
        os.write(self._lock, json.dumps(facts).encode())
        if sync:
            os.fsync(self._lock)
            for place in (*self.path.glob(_HEAD), self.path):
                descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def end(self) -> None:
        """All outputs are there."""
        with suppress(OSError):
            os.ftruncate(self._lock, self._length)

    def remove(self) -> None:
        """Remove all that is left here, and let go."""
        remove_stage(self.path)
        self.close()

    def close(self) -> None:
        """Let go, and leave what is here."""
        if self._lock >= 0:
            with suppress(OSError):
                os.close(self._lock)
            self._lock = -1


def open_lock(stage: Path) -> int:
    """The open lock of a stage.

    Raises:
        OSError: there is none.
    """
    return _opened(stage / LOCK, os.O_RDWR)


def _opened(path: Path, how: int) -> int:
    """A file that anybody may have put there, open; of a pipe nobody would know when it says something.

    Raises:
        OSError: there is none, or it is no file.
    """
    descriptor = os.open(path, how | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def try_lock(descriptor: int) -> bool | None:
    """Whether it is locked by us now; None if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_stage(stage: Path) -> None:
    """The lock goes last, and stays if something else does: others can then still tell that the stage is dead. Until
    then the head tells a run that goes on whether its output has appeared."""
    with suppress(OSError):
        for entry in sorted(stage.iterdir(), key=lambda entry: entry.name == _HEAD):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK:
                with suppress(OSError):
                    entry.unlink()
        if all(entry.name == LOCK for entry in stage.iterdir()):
            (stage / LOCK).unlink(missing_ok=True)
            stage.rmdir()


# ------------------------------------------------------------------------------------------------- what others left


def stages_of(target: Path) -> Iterator[Path]:
    """The stages of an output, which lie beside it or in it."""
    for place in (target.parent, target):
        yield from (stage for stage in stages_in(place) if stage.name.startswith(_prefix(target)))


def stages_in(directory: Path) -> Iterator[Path]:
    """The stages of whatever output that lie in a directory."""
    with suppress(OSError):
        names = sorted(entry.name for entry in directory.iterdir())
        yield from (directory / name for name in names if is_stage(name))


def take(stage: Path, target: Path) -> Stage | None:
    """A stage of an output, if nobody who lives works in it; it is ours from now on. On a file system without locks
    nobody can tell."""
    with suppress(OSError):
        descriptor = open_lock(stage)
        found = Stage(stage, descriptor)
        told = parsed(os.pread(descriptor, 1 << 16, 0).partition(b"\n")[0])
        if told.get("target", target.name) == target.name and try_lock(descriptor) and all_left(found):
            return found
        found.close()
    return None


def is_at_work(stage: Path) -> bool:
    """Whether somebody who lives works in a stage."""
    with suppress(OSError):
        descriptor = open_lock(stage)
        try:
            return try_lock(descriptor) is False or not all_left(Stage(stage))
        finally:
            os.close(descriptor)
    return False


def all_left(stage: Stage) -> bool:
    """Whether no process of a run writes to its journal any more."""
    for path in stage.journals:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not lock(descriptor):
                return False
        finally:
            os.close(descriptor)
    return True


def names_in(facts: Mapping[str, object]) -> list[str]:
    """The names of what was about to appear, as `begin` has noted them: of entries of one directory."""
    names = facts.get("names")
    return [
        name
        for name in (names if isinstance(names, list) else ())
        if isinstance(name, str) and name not in ("", ".", "..") and "/" not in name
    ]


def parsed(said: bytes) -> dict[str, object]:
    """What a lock says; nothing if its process was killed before it had written that."""
    with suppress(ValueError):
        value = read_json(said.decode())
        return value if isinstance(value, dict) else {}
    return {}


def kept_copy(target: Path) -> str | None:
    """What to try where a checkpoint is missing or incomplete because a run was killed while it replaced it."""
    if not is_local(target):
        return None
    try:
        target = Path(os.path.realpath(target))
        found = [stage / OLD for stage in stages_of(target) if os.path.lexists(stage / OLD)]
    except (OSError, ValueError):
        return None
    if not found:
        return None
    what = "its files are" if found[0].parent.parent == target else "it is"
    return f"a run that replaced it was killed: {what} in {found[0]}; move back what is there"
