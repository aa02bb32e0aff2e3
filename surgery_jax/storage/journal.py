"""Journals: what is finished of an output that is being written, so that another run can go on with it.

A journal is a file beside what is built, to which one process appends a record for every task that is done. A record
has its length and a checksum before it, so that one that was not written whole is noticed, and everything after it
ignored. It says which ranges of bytes of which files are in their places; a mark says that what the same process had
noted before has been brought to the disk. What no mark speaks of is there as long as the system runs that it was given
to, whose name the process notes first; else it must be compared before it counts, or made again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from .boots import boot_of
from .writing import write_at

__all__ = ["Finished", "Journal", "Range", "finished", "framed", "lock", "rewrite", "unframed"]

Range = tuple[int, int, int]  # number of the file, offset, number of bytes: never none

MOST_BYTES = 256 << 20  # of a journal: a million tasks
_MOST_RANGES = 1 << 20  # of one length in a task, whose blocks have at least 512 bytes of 32 MiB
_FRAME = struct.Struct("<II")  # bytes of the record and their checksum
_TASK = struct.Struct("<cBI")  # flags, and number of runs of ranges
_RUN = struct.Struct("<IQQQI")  # file, offset, bytes, from one begin to the next, and how many
_MARK = struct.Struct("<cQQ")  # where in the journal that begins and ends what a mark speaks of
_KEY = 32  # characters of the key of a task
_LOOKED_AT = 1


class Finished(NamedTuple):
    """A task that was done: the ranges that it wrote; whether these are there for certain, on the disk or in the memory
    of a system that has run ever since; and of a task whose results were looked at its key, and what was found."""

    ranges: tuple[Range, ...]
    is_sure: bool = False
    key: str = ""
    found: bytes = b""


def framed(body: bytes) -> bytes:
    """A record as it stands in a file."""
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def unframed(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Whole records, with where each of them ends, up to the first that is none."""
    at = 0
    while at + _FRAME.size <= len(data):
        length, known = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        body = data[at : at + length]
        if not length or len(body) < length or zlib.crc32(body) != known:
            return
        at += length
        yield at, body


class Journal:
    """The journal of one process. What cannot be written is left out: a run does not fail for it."""

    def __init__(self, path: Path) -> None:
        """Append to one that is there, or begin it.

        Raises:
            OSError: the operating system refuses, or a process that lives is writing to it.
        """
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not lock(self._fd):
                raise BlockingIOError(errno.EAGAIN, "a process that lives is writing to it", str(path))
            self._begin = self.length = os.fstat(self._fd).st_size
        except BaseException:
            os.close(self._fd)
            raise
        self._is_whole = True
        self._is_named = False

    def add(self, done: Finished) -> None:
        """A task is done."""
        if not self._is_named:
            self._append(b"B" + boot_of(self.path))
            self._is_named = True
        self._append(_packed(done))

    def mark(self, length: int) -> None:
        """What this process has noted while the journal grew to so many bytes is on the disk; so is this mark."""
        self._append(_MARK.pack(b"S", self._begin, length))
        if self._is_whole:
            with suppress(OSError):
                os.fdatasync(self._fd)

    def _append(self, body: bytes) -> None:
        if not self._is_whole:
            return
        data = framed(body)
        try:
            write_at(self._fd, data, self.length)
            self.length += len(data)
        except OSError:
            self._is_whole = False  # what is there now ends in a record that nobody takes for one

    def close(self) -> None:
        """Nothing more is noted, whoever still tries."""
        self._is_whole = False
        os.close(self._fd)


def _packed(done: Finished) -> bytes:
    flags = bool(done.key) * _LOOKED_AT
    runs = [_RUN.pack(*run) for run in _runs(sorted(done.ranges))]
    head = _TASK.pack(b"T", flags, len(runs))
    return b"".join([head, *runs, done.key.encode(), done.found])


def rewrite(path: Path, others: Iterable[Path], known: Iterable[Finished]) -> None:
    """Make a journal of what is known to be finished, in the place of one and of others: what did not turn out to be
    true must not be taken for true later. All of it is in the memory of the system that runs now.

    Raises:
        OSError: the operating system refuses.
    """
    fresh = path.with_name(f"new-{path.name}")
    with fresh.open("wb") as stream:
        stream.writelines(framed(body) for body in (b"B" + boot_of(path), *map(_packed, known)))
        stream.flush()
        os.fsync(stream.fileno())
    for other in others:
        other.unlink()
    fresh.replace(path)


def lock(descriptor: int) -> bool:
    """Whether nobody who lives holds an open file; it is ours then. A file system without locks does not know."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def finished(path: Path, sizes: Sequence[int]) -> list[Finished]:
    """What a journal of a process that is dead says; what follows its last whole record is cut off. `sizes` are those
    of the files: a record that speaks of anything else says nothing.

    Raises:
        OSError: it cannot be read, or not be cut.
    """
    with path.open("r+b") as stream:
        data = stream.read(MOST_BYTES)
        found: list[tuple[int, Finished]] = []
        synced: list[tuple[int, int]] = []
        boot, is_same = boot_of(path), False
        end = 0
        for end, body in unframed(data):
            if body[:1] == b"S" and len(body) == _MARK.size:
                synced.append(_MARK.unpack(body)[1:])
            elif body[:1] == b"B":
                is_same = body[1:] == boot != b""
            elif body[:1] == b"T" and (done := _task(body, sizes)) is not None:
                found.append((end, done._replace(is_sure=is_same)))
        stream.truncate(end)
    marks = [*accumulate(sorted(synced), lambda one, other: (other[0], max(one[1], other[1])))]
    return [done._replace(is_sure=done.is_sure or _is_within(at, marks)) for at, done in found]


def _is_within(at: int, marks: Sequence[tuple[int, int]]) -> bool:
    """Whether a record that ends here is one of those that marks speak of; each has the end of the farthest before."""
    number = bisect_left(marks, (at, 0)) - 1
    return number >= 0 and at <= marks[number][1]


def _task(body: bytes, sizes: Sequence[int]) -> Finished | None:
    if len(body) < _TASK.size:
        return None
    _, flags, count = _TASK.unpack_from(body)
    end = _TASK.size + count * _RUN.size
    if end > len(body):
        return None
    ranges: list[Range] = []
    for run in _RUN.iter_unpack(body[_TASK.size : end]):
        file, offset, nbytes, step, many = run
        if file >= len(sizes) or not nbytes or not 0 < many <= _MOST_RANGES or (many > 1 and step < nbytes):
            return None
        if offset + (many - 1) * step + nbytes > sizes[file]:
            return None
        ranges += ((file, offset + number * step, nbytes) for number in range(many))
    key = body[end : end + _KEY].decode("ascii", "replace") if flags & _LOOKED_AT else ""
    return Finished(tuple(ranges), False, key, body[end + len(key) :])


def _runs(ranges: Iterable[Range]) -> Iterator[tuple[int, int, int, int, int]]:
    """Ranges of one length at equal distances taken together."""
    run: tuple[int, int, int, int, int] | None = None
    for file, offset, nbytes in ranges:
        if run is not None:
            first_file, first, length, step, many = run
            here = offset - first - (many - 1) * step
            if (file, nbytes) == (first_file, length) and (many == 1 or here == step):
                run = (file, first, length, here, many + 1)
                continue
            yield run
        run = (file, offset, nbytes, 0, 1)
    if run is not None:
        yield run
