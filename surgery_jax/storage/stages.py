"""The hidden directories in which outputs are built: made, locked as long as their process lives, and cleared away when
it was killed.

A stage lies beside its output, or within it, and holds `new`, what is built; `old`, what was there before, while it is
being replaced; and `lock`, a file that is locked by whoever works here and says for which output. A stage whose lock
can be had is dead, and removed unless something in it may be the only copy of what was there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from ..core.specs import format_bytes
from ..core.strict_json import read_json
from .places.found import is_local
from .renames import rename_new

__all__ = ["Stage", "clear", "is_stage", "kept_copy"]

_NAME = re.compile(r"\..{0,40}\.surgery-[a-z0-9_]{8}", re.DOTALL)
_LOCK, _OLD, _NEW = "lock", "old", "new"
_ATTEMPTS = 10


def _prefix(target: Path) -> str:
    return f".{target.name[:40]}.surgery-"  # file names have at most 255 bytes


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
                lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # somebody who clears away took it for a dead one
                continue
            except OSError:
                with suppress(OSError):
                    path.rmdir()
                raise
            stage = cls(path, lock)
            try:
                is_ours = _try_lock(lock)
                if is_ours is None or (is_ours and (path / _LOCK).exists()):
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
        return self.path / _NEW

    @property
    def old(self) -> Path:
        """Where what was there before may be put."""
        return self.path / _OLD

    def begin(self, is_together: bool) -> None:
        """What is built is about to appear: note what whoever finds this directory dead must know to put things back.

        `is_together`: with other outputs. Until `end`, what was there before is then kept, since not all of them may
        be there.

        Raises:
            OSError: that cannot be noted.
        """
        self._length = os.fstat(self._lock).st_size
        names = sorted(entry.name for entry in self.new.iterdir()) if self.new.is_dir() else []
        facts = {"node": self.new.lstat().st_ino, "names": names, "together": is_together}
        os.write(self._lock, json.dumps(facts).encode())

    def end(self) -> None:
        """All outputs are there."""
        with suppress(OSError):
            os.ftruncate(self._lock, self._length)

    def remove(self) -> None:
        """Remove all that is left here, and let go."""
        _remove(self.path)
        self.close()

    def close(self) -> None:
        """Let go, and leave what is here."""
        if self._lock >= 0:
            with suppress(OSError):
                os.close(self._lock)
            self._lock = -1


def _try_lock(descriptor: int) -> bool | None:
    """Whether it is locked by us now; None if the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove(stage: Path) -> None:
    """The lock goes last, and stays if something else does: others can then still tell that the stage is dead."""
    with suppress(OSError):
        for entry in stage.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != _LOCK:
                with suppress(OSError):
                    entry.unlink()
        if all(entry.name == _LOCK for entry in stage.iterdir()):
            (stage / _LOCK).unlink(missing_ok=True)
            stage.rmdir()


# ------------------------------------------------------------------------------------------------- what others left


def clear(target: Path, *, remove: bool) -> list[str]:
    """Name the dead stages of an output, a sentence each, and with `remove` remove those that nobody can miss."""
    stages = _stages(target) if is_local(target) else ()  # elsewhere nobody can tell whether a writer lives
    return [told for stage in stages if (told := _clear(stage, target, remove))]


def _stages(target: Path) -> Iterator[Path]:
    for place in (target.parent, target):
        with suppress(OSError):
            names = sorted(entry.name for entry in place.iterdir())
            yield from (place / name for name in names if name.startswith(_prefix(target)) and is_stage(name))


def _clear(stage: Path, target: Path, remove: bool) -> str | None:
    try:
        lock = os.open(stage / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        if remove:  # its process was killed when it began, or has not come further
            with suppress(OSError):
                stage.rmdir()
                return f"{stage}: empty, left by a run that was killed when it began; run removes it"
        return f"{stage}: cannot be told to be dead; remove it if no run is at work there" if stage.exists() else None
    try:
        locked = _try_lock(lock)
        said, _, more = os.read(lock, 1 << 16).partition(b"\n")
        told = _parsed(said)
        if locked is False or told.get("target", target.name) != target.name:
            return None
        if locked is None or told.get("host", socket.gethostname()) != socket.gethostname():
            host = f", made on {told['host']}" if isinstance(told.get("host"), str) else ""
            return f"{stage}: cannot be told to be dead{host}; remove it if no run is at work there"
        return _clear_dead(stage, target, _parsed(more), remove)
    except OSError as error:
        return f"{stage}: cannot be looked at: {error.strerror}"
    finally:
        os.close(lock)


def _parsed(said: bytes) -> dict[str, object]:
    """What a lock says; nothing if its process was killed before it had written that."""
    with suppress(ValueError):
        value = read_json(said.decode())
        return value if isinstance(value, dict) else {}
    return {}


def _clear_dead(stage: Path, target: Path, facts: Mapping[str, object], remove: bool) -> str:
    old, new = stage / _OLD, stage / _NEW
    if os.path.lexists(old) and not os.path.lexists(target):
        if remove:
            rename_new(old, target)
            _remove(stage)
        return f"{old}: what was in {target}, left by a run that was killed while it replaced it; run puts it back"
    if stage.parent == target and _has_entries(old) and _has_entries(new):
        if remove:
            names = facts.get("names")
            _put_back(target, old, new, map(str, names) if isinstance(names, list) else ())
            _remove(stage)
        return f"{old}: files of {target}, left by a run that was killed while it replaced them; run puts them back"
    is_old_here = os.path.lexists(old) or (os.path.lexists(new) and new.lstat().st_ino != facts.get("node"))
    if facts.get("together") and is_old_here:
        return (
            f"{stage}: left by a run that was killed while its outputs appeared, not all of which may be new; "
            f"it may hold what was in {target}"
        )
    size = format_bytes(sum(_size(path) for path in stage.rglob("*")))
    if remove:
        _remove(stage)
    return f"{stage}: {size} left by a run that was killed; run removes it"


def _has_entries(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _put_back(target: Path, old: Path, new: Path, names: Iterable[str]) -> None:
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


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_blocks * 512
    return 0


def kept_copy(target: Path) -> str | None:
    """What to try where a checkpoint is missing or incomplete because a run was killed while it replaced it."""
    if not is_local(target):
        return None
    try:
        target = Path(os.path.realpath(target))
        found = [stage / _OLD for stage in _stages(target) if os.path.lexists(stage / _OLD)]
    except (OSError, ValueError):
        return None
    if not found:
        return None
    what = "its files are" if found[0].parent.parent == target else "it is"
    return f"a run that replaced it was killed: {what} in {found[0]}; move back what is there"
