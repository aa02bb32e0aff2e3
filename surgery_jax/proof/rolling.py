"""The SHA-256 of a file whose bytes are written in any order: hashed as they pass where they come in turn."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from ..storage.files import File
from ..storage.places.base import fill
from ..storage.places.found import locate, place_of

__all__ = [
    "MOST_MARKS",
    "THREADS",
    "FileDigest",
    "FileFacts",
    "Held",
    "Marking",
    "Rolling",
    "blocks",
    "digest_of",
    "gaps",
    "read_back",
    "thinned",
]

BLOCK = 1 << 20  # bytes that are read at once
MOST_MARKS = 4096  # of a file: where many small tensors lie, a mark stands for several
THREADS = 2  # that read whole files
PATIENCE_S = 0.5  # that a range waits for others that must come before it, while nothing goes on


class FileDigest(NamedTuple):
    """SHA-256 of a file in hexadecimal digits, its length in bytes, and that of the bytes before each of some
    offsets."""

    sha256: str
    size: int
    marks: tuple[str, ...] = ()


class FileFacts(NamedTuple):
    """SHA-256 of a file and its length; of one that holds tensors as they are also the SHA-256 of its other bytes."""

    sha256: str
    size: int
    rest: str | None = None


def gaps(taken: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The ranges (offset, bytes) of a file that none of some ranges has."""
    at = 0
    for offset, nbytes in sorted(taken):
        if offset > at:
            yield at, offset - at
        at = max(at, offset + nbytes)
    if at < size:
        yield at, size - at


def blocks(offset: int, nbytes: int, most: int) -> Iterator[tuple[int, int]]:
    """A range (offset, bytes) of a file as ranges of at most so many bytes."""
    while nbytes > 0:
        yield offset, min(nbytes, most)
        offset, nbytes = offset + most, nbytes - most


def thinned(offsets: list[int]) -> tuple[int, ...]:
    """No more than `MOST_MARKS` of ascending offsets, with the first and the last."""
    step = -(-len(offsets) // MOST_MARKS)
    return tuple(offsets if step <= 1 else [*offsets[:1], *offsets[step:-1:step], offsets[-1]])


class Marking:
    """SHA-256 of bytes that come in order, and what it was at each of some ascending offsets."""

    def __init__(self, marks: Sequence[int] = ()) -> None:
        self._marks = marks
        self._found: list[str] = []
        self._hash = hashlib.sha256()
        self.at = 0

    def update(self, part: memoryview) -> None:
        """The next bytes."""
        while len(self._found) < len(self._marks) and self._marks[len(self._found)] <= self.at + part.nbytes:
            count = self._marks[len(self._found)] - self.at
            self._hash.update(part[:count])
            part, self.at = part[count:], self.at + count
            self._found.append(self._hash.copy().hexdigest())
        self._hash.update(part)
        self.at += part.nbytes

    def digest(self) -> FileDigest:
        """Of all so far."""
        return FileDigest(self._hash.hexdigest(), self.at, tuple(self._found))


def digest_of(path: str, marks: Sequence[int] = (), tick: Callable[[], object] | None = None) -> FileDigest:
    """The digest of a whole file; `tick` is called now and then.

    Raises:
        StorageError: it cannot be read, or is not the one that is remembered.
    """
    found = Marking(marks)
    with File(locate(path)) as file:
        for part in file.blocks(0, file.size):
            found.update(part)
            if tick is not None:
                tick()
    return found.digest()


class Held:
    """How many bytes of one output may be kept because they came before their turn; and whether it pays to wait for
    that (`is_patient`), as it does where ranges come nearly in order."""

    def __init__(self, limit: int) -> None:
        self.is_patient = True
        self._left = limit
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> bool:
        """Whether so many more may be kept."""
        with self._lock:
            if nbytes > self._left:
                return False
            self._left -= nbytes
            return True

    def give(self, nbytes: int) -> None:
        """They are not kept any more."""
        with self._lock:
            self._left += nbytes


def read_back(place: str, offset: int, nbytes: int, see: Callable[[memoryview], object]) -> None:
    """Show bytes of a file that is being written, block by block.

    Raises:
        OSError: it cannot be read.
    """
    writer = place_of(place).target(place)
    try:
        buffer = memoryview(bytearray(min(nbytes, BLOCK)))
        for at, count in blocks(offset, nbytes, BLOCK):
            fill(writer, at, buffer[:count])
            see(buffer[:count])
    finally:
        writer.close()


class Rolling:
    """The digest of one file at `place`. Ranges are told by several threads, of which one at a time hashes what is in
    turn. Who comes early waits if those before are here too, or may soon be; else the bytes are kept, or read back
    later if they may not be kept or were never seen. `marks` are ascending offsets at which the digest so far is
    wanted."""

    def __init__(self, place: str, held: Held, marks: Sequence[int] = ()) -> None:
        self.place = place
        self._held = held
        self._marks = marks
        self._so_far = Marking(marks)
        self._early: dict[int, tuple[int, bytes | None]] = {}
        self._waiting: dict[int, int] = {}
        self._end = 0  # of what is hashed, or will be by the thread that is at it
        self._is_busy = False
        self._is_stuck = False  # at bytes that were not kept, and cannot be read before all are there
        self._changed = threading.Condition()

    def add(self, offset: int, nbytes: int, data: memoryview | bytes | None) -> None:
        """A range is in the file; `data` are its bytes, None if they were not seen."""
        if not nbytes:
            return
        with self._changed:
            if self._is_stuck:
                return
            if (self._is_busy or offset != self._end) and (data is None or not self._comes(offset, nbytes)):
                keep = data is not None and self._held.take(nbytes)
                self._early[offset] = nbytes, bytes(data) if keep and data is not None else None
                return
            self._is_busy, self._end = True, offset + nbytes
        try:
            while True:
                if data is None and place_of(self.place).holds_parts:
                    self._give_up()
                    return
                self._take(offset, nbytes, data)
                with self._changed:
                    if self._end not in self._early:
                        return
                    offset = self._end
                    nbytes, data = self._early.pop(offset)
                    self._end = offset + nbytes
                    if data is not None:
                        self._held.give(nbytes)
        finally:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()

    def comes(self, offset: int, nbytes: int) -> bool:
        """Whether it is the turn of a range whose bytes can be had at any time, or will be in a moment, after which
        this returns."""
        with self._changed:
            return not self._is_stuck and self._comes(offset, nbytes)

    def _comes(self, offset: int, nbytes: int) -> bool:
        """Wait for the turn of a range, as long as what comes before is being hashed or waits too, and a moment for
        what does not; whether it has come."""
        self._waiting[offset] = nbytes
        try:
            while not self._is_turn(offset):
                if self._is_stuck:
                    return False
                end, held = self._end, self._held
                if not held.is_patient and not self._is_reached(offset):
                    return False
                goes_on = self._changed.wait_for(partial(self._has_moved, end, offset), PATIENCE_S)
                held.is_patient = held.is_patient and (goes_on or self._is_reached(offset))
            return True
        finally:
            del self._waiting[offset]

    def _is_turn(self, offset: int) -> bool:
        return not self._is_busy and offset == self._end

    def _has_moved(self, end: int, offset: int) -> bool:
        return self._end != end or self._is_stuck or self._is_turn(offset)

    def _is_reached(self, offset: int) -> bool:
        """Whether all before a range is hashed, or will be without anybody's doing."""
        at = self._end
        while at < offset:
            nbytes = self._waiting.get(at) or self._early.get(at, (0, None))[0]
            if not nbytes:
                return False
            at += nbytes
        return True

    def _give_up(self) -> None:
        """Leave the rest for the end."""
        with self._changed:
            self._is_stuck = True
            for nbytes, data in self._early.values():
                if data is not None:
                    self._held.give(nbytes)
            self._early.clear()

    def _take(self, offset: int, nbytes: int, data: memoryview | bytes | None) -> None:
        if data is None:
            read_back(self.place, offset, nbytes, self._so_far.update)
        else:
            self._so_far.update(memoryview(data).cast("B"))

    def finish(self, size: int) -> FileDigest:
        """The digest, now that nobody writes to the file any more: what is missing is read.

        Raises:
            OSError: it cannot be read.
        """
        for nbytes, data in self._early.values():
            if data is not None:
                self._held.give(nbytes)
        self._early.clear()
        if self._so_far.at > size:  # bytes were told that are not in it any more
            self._so_far = Marking(self._marks)
        read_back(self.place, self._so_far.at, size - self._so_far.at, self._so_far.update)
        return self._so_far.digest()
