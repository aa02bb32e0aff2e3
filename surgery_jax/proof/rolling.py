"""The SHA-256 of a file whose bytes are written in any order: hashed as they pass where they come in turn."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ..storage.files import File
from ..storage.places.base import fill
from ..storage.places.found import locate, place_of

__all__ = ["FileDigest", "FileFacts", "Held", "Marking", "Rolling", "digest_of", "gaps", "read_back"]

BLOCK = 1 << 20  # bytes that are read at once


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
    """How many bytes may be kept because they came before their turn."""

    def __init__(self, limit: int) -> None:
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
        while nbytes:
            part = buffer[: min(nbytes, BLOCK)]
            fill(writer, offset, part)
            see(part)
            offset, nbytes = offset + part.nbytes, nbytes - part.nbytes
    finally:
        writer.close()


class Rolling:
    """The digest of one file at `place`. Ranges are told by several threads; one of them hashes what is in turn, and
    what comes early is kept, or read back later if it may not be kept or was never seen. `marks` are ascending offsets
    at which the digest so far is wanted."""

    def __init__(self, place: str, held: Held, marks: Sequence[int] = ()) -> None:
        self.place = place
        self._held = held
        self._marks = marks
        self._so_far = Marking(marks)
        self._early: dict[int, tuple[int, bytes | None]] = {}
        self._is_busy = False
        self._lock = threading.Lock()

    def add(self, offset: int, nbytes: int, data: memoryview | bytes | None) -> None:
        """A range is in the file; `data` are its bytes, None if they were not seen."""
        if not nbytes:
            return
        with self._lock:
            if self._is_busy or offset != self._so_far.at:
                keep = data is not None and self._held.take(nbytes)
                self._early[offset] = nbytes, bytes(data) if keep and data is not None else None
                return
            self._is_busy = True
        while True:
            self._take(offset, nbytes, data)
            with self._lock:
                if self._so_far.at not in self._early:
                    self._is_busy = False
                    return
                offset = self._so_far.at
                nbytes, data = self._early.pop(offset)
                if data is not None:
                    self._held.give(nbytes)

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
