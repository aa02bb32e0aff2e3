"""Which jobs of a batch are finished: a file with one line of JSON per job, added before its outputs appear.

A job is the hash of its plan. It is finished if the files that it read and those that it wrote are as its line says,
by size and time of change. The line is on the disk before the outputs are renamed into their place, and files keep size
and time when they are renamed: whenever a batch ends, a line is true as soon as the outputs are there.

Processes that share a batch cannot add to one file. Each line of theirs is a file of its own where the outputs go,
which all of them see, and whoever uses the record alone reads these too. A record at an object store has only these,
in a folder beside it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import StorageError
from ..execute.options import Options
from ..language.document import plain
from ..language.plan import Plan
from ..storage.files import check_regular, parse_json, storage_error
from ..storage.notices import board_of
from ..storage.places.found import check_writable, is_local, locate, place_of
from ..storage.stages import try_lock

__all__ = ["FileState", "FinishedJob", "FinishedJobs", "folder_of", "job_files", "key_of", "states_of"]

_ATTEMPTS = 10
_ELSEWHERE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}
_FOLDER = ".surgery-jax.tasks"
MAX_BYTES = 256 << 20  # of an untrusted record: 10 000 jobs of 100 files take 10 MB
_BEGIN = b'{"job": "'
FileState = tuple[str, int, int]  # path, size in bytes, time of change in ns


@dataclass(frozen=True)
class FinishedJob:
    """A finished job: files by the path that the plan names."""

    inputs: Mapping[str, tuple[FileState, ...]]
    outputs: Mapping[str, tuple[FileState, ...]]

    def holds(self, files_of: Callable[[str], Iterable[str]]) -> bool:
        """Whether nothing has changed since; `files_of` gives the files that an input consists of now.

        Raises:
            StorageError: that cannot be found out.
        """
        written = {os.path.realpath(state[0]) for states in self.outputs.values() for state in states}
        for states in self.outputs.values():
            if any(_file_state(state[0]) != state for state in states):
                return False
        for path, states in self.inputs.items():
            # an input that the job itself replaced was another one when it was read
            kept = [state for state in states if os.path.realpath(state[0]) not in written]
            if any(_file_state(state[0]) != state for state in kept):
                return False
            if len(kept) == len(states) and set(files_of(path)) != {state[0] for state in states}:
                return False
        return True


def key_of(plan: Plan, options: Options) -> str:
    """The hash of all that decides what a plan writes, but for the files that it reads."""
    output = (
        None
        if plan.output is None
        else [plan.output.path, plan.output.format, plan.output.shard, *sorted(plan.output.options.items())]
    )
    steps = None if plan.steps is None else plain(plan.steps)
    content: list[Any] = [1, [[entry.alias, entry.path] for entry in plan.inputs], steps, output, options.shard_size]
    if plan.output is not None and plan.output.documents is not None:
        content.append(plan.output.documents)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def folder_of(record: str, outputs: Sequence[str]) -> Path:
    """The folder in which the tasks of a batch tell each other of a job with these outputs. It is where its outputs go:
    a record may lie where not all of them see it. But one at a store is seen by all, so it has a folder beside it; and
    so it is where there are no outputs, or their place cannot tell who came first."""
    for path in outputs if is_local(record) else ():
        folder = locate(path).parent
        if place_of(path).tells_first and (is_local(path) or len(folder.parts) > 1):  # nothing is beside a bucket
            return folder / _FOLDER
    return locate(f"{record}.tasks")


def job_files(record: str, key: str, outputs: Sequence[str]) -> Path:
    """What the names begin with of all small files about a job whose plan has this key."""
    return folder_of(record, outputs) / key


class FinishedJobs:
    """The record of finished jobs. `is_kept` False only looks: nothing is written, and the file may be missing.
    `is_shared`: others may add to it at the same time, if they share it as well."""

    def __init__(self, path: str, is_kept: bool = True, is_shared: bool = False) -> None:
        """Open the record, and keep others from using it.

        Raises:
            StorageError: it cannot be opened, is no such record, or another batch is using it.
        """
        self.path = path
        self.entries: dict[str, FinishedJob] = {}
        self._is_shared = is_shared or not is_local(path)
        self._fd: int | None = None
        self._is_locked = False
        if not is_local(path):
            if is_kept:
                check_writable(path)
                self._make()
            return
        try:
            if is_kept:
                self._open()
            elif not Path(path).exists():
                return
            check_regular(Path(path))
            with Path(path).open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
            self._read(raw)
        except OSError as error:
            self.close()
            found = storage_error(error, path, "open the record of finished jobs")
            if error.errno in _ELSEWHERE:
                found.hint = "name one in a directory that can be written: --record PATH"
            raise found from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> FinishedJobs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _make(self) -> None:
        """Make the folder of a record at a store; what is wrong with the place is told before any work."""
        folder = folder_of(self.path, ())
        try:
            board_of(folder).make()
        except OSError as error:
            raise storage_error(error, folder, "keep a record of finished jobs") from None

    def _open(self) -> None:
        """Open the file that lies there, and lock it; one that its last user removes meanwhile is made again."""
        for _ in range(_ATTEMPTS):
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._fd, (fcntl.LOCK_SH if self._is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                break
            except OSError:  # a file system without locks
                return
            if _is_at(self._fd, self.path):
                self._is_locked = True
                return
            os.close(self._fd)
            self._fd = None
        raise StorageError(
            "another batch is at work",
            where=self.path,
            found="one that is not shared among tasks" if self._is_shared else "",
            hint="wait for it, or share the jobs: --task I/N for each of N processes",
        )

    def _read(self, raw: bytes) -> None:
        if len(raw) > MAX_BYTES:
            raise StorageError(f"a record of more than {MAX_BYTES} bytes", where=self.path)
        written, _, lost = raw.partition(b"\0")
        if lost.strip(b"\0") and b"\n" not in written:
            written = raw
        *lines, torn = written.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                job, entry = _parsed(parse_json(line, Path(self.path), f"line {number}"))
            except (KeyError, TypeError, ValueError, AttributeError, StorageError):
                raise self._alien(number) from None
            self.entries[job] = entry
        if not torn.startswith(_BEGIN[: len(torn)]):
            raise self._alien(len(lines) + 1)
        whole = len(written) - len(torn)
        if whole < len(raw) and self._fd is not None and not self._is_shared:
            os.ftruncate(self._fd, whole)  # what a batch that was killed, or a cut of power, has left of a line

    def _alien(self, line: int, where: str | None = None) -> StorageError:
        return StorageError(
            "not a record of finished jobs",
            where=where or self.path,
            found=f"something else in line {line}",
            hint="name another --record, or remove the file",
        )

    def of(self, job: Path) -> list[FinishedJob]:
        """What is recorded of a job (`job_files`), also by others and a moment ago; it is finished if any of these
        holds.

        Raises:
            StorageError: that cannot be read.
        """
        known = [self.entries[job.name]] if job.name in self.entries else []
        path = _file_of(job)
        try:
            note = board_of(path.parent).read(path.name, MAX_BYTES)
        except OSError as error:
            raise storage_error(error, path, "read what is recorded of a job") from None
        if note is None:
            return known
        try:
            key, entry = _parsed(parse_json(note.data, path, "what is recorded of a job"))
        except (KeyError, TypeError, ValueError, AttributeError, StorageError):
            raise self._alien(1, str(path)) from None
        return [*known, entry] if key == job.name else known

    def add(self, jobs: Mapping[Path, tuple[str, FinishedJob]], sync: bool) -> None:
        """Say that jobs, with their names, are finished as soon as their outputs are there.

        Raises:
            StorageError: the lines cannot be written.
        """
        lines = {
            job: json.dumps({"job": job.name, "name": name, "inputs": entry.inputs, "outputs": entry.outputs}) + "\n"
            for job, (name, entry) in jobs.items()
        }
        if self._is_shared:
            for job, line in lines.items():
                path = _file_of(job)
                try:
                    board_of(path.parent).put(path.name, line.encode(), sync=sync)
                except OSError as error:
                    raise storage_error(error, path, "write the record of finished jobs") from None
            return
        assert self._fd is not None
        length = os.fstat(self._fd).st_size
        try:
            rest = "".join(lines.values()).encode()
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            if sync:
                os.fsync(self._fd)
        except BaseException as error:
            with suppress(OSError):  # half a line would spoil what is added after it
                os.ftruncate(self._fd, length)
            if not isinstance(error, OSError):
                raise
            raise storage_error(error, self.path, "write the record of finished jobs") from None
        self.entries.update({job.name: entry for job, (_, entry) in jobs.items()})

    def close(self) -> None:
        """Let others use it; an empty record is removed, if it is ours."""
        if self._fd is not None:
            with suppress(OSError):
                is_alone = self._is_locked and try_lock(self._fd)  # of those who share it the last one removes it
                if is_alone and os.fstat(self._fd).st_size == 0 and _is_at(self._fd, self.path):
                    Path(self.path).unlink()
            os.close(self._fd)
            self._fd = None


def _file_of(job: Path) -> Path:
    return job.parent / f"{job.name}.done"


def _parsed(value: Any) -> tuple[str, FinishedJob]:
    return str(value["job"]), FinishedJob(_states(value["inputs"]), _states(value["outputs"]))


def _states(value: Any) -> dict[str, tuple[FileState, ...]]:
    return {path: tuple(_state(*state) for state in states) for path, states in value.items()}


def _state(path: Any, size: Any, changed: Any) -> FileState:
    if not isinstance(path, str) or not isinstance(size, int) or not isinstance(changed, int):
        raise TypeError
    return path, size, changed


def states_of(paths: Iterable[str]) -> tuple[FileState, ...]:
    """What files are now, without those that are not there.

    Raises:
        StorageError: that cannot be found out.
    """
    return tuple(state for state in map(_file_state, paths) if state is not None)


def _file_state(path: str) -> FileState | None:
    """None for what is not there. Whatever else goes wrong does not mean that a file has changed. What other places
    know a file by, such as an etag, stands for the time of change."""
    try:
        if not is_local(path):
            known = place_of(path).identity(path)
            digest = hashlib.sha256(json.dumps(known.version).encode()).digest()
            return path, known.size, int.from_bytes(digest[:7], "big")
        status = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise storage_error(error, path, "find out whether it has changed") from None
    return path, status.st_size, status.st_mtime_ns


def _is_at(descriptor: int, path: str) -> bool:
    """Whether an open file is the one that lies there."""
    try:
        return os.path.samestat(os.fstat(descriptor), Path(path).stat())
    except FileNotFoundError:
        return False
