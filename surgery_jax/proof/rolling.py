"""The SHA-256 of a file whose bytes are written in any order: hashed as they pass where they come in turn."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import NamedTuple

from ..storage.files import File
from ..storage.places.base import Reader
from ..storage.places.found import is_local, locate, place_of
from .rereading import read_back, show

__all__ = [
    "MOST_MARKS",
    "THREADS",
    "FileDigest",
    "FileFacts",
    "Held",
    "Marking",
    "Rolling",
    "TimeToWait",
    "digest_of",
    "gaps",
    "thinned",
]

MOST_MARKS = 4096  # of a file: where many small tensors lie, a mark stands for several
THREADS = 2  # that read whole files
PATIENCE_S = 0.01  # that a range waits for others that must come before it and are not here; longer, cores are idle
VAIN = 0.02  # of the time so far may have been waited in vain, and PATIENCE_S


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
    """How many bytes of one output may be kept because they came before their turn."""

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


class TimeToWait:
    """How long a range of one output may wait for others, all in all. Where they come nearly in order nobody waits in
    vain; where they do not, or the disk stops for a moment, that is lost, and comes back little by little."""

    def __init__(
        self, most: float = PATIENCE_S, share: float = VAIN, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """At most so many seconds at once, and of all the time so far this share and as much once."""
        self._most = most
        self._share = share
        self._clock = clock
        self._lost = 0.0
        self._began = clock()

    def left(self) -> float:
        """Seconds that may be waited now."""
        return min(self._most, self._most + self._share * (self._clock() - self._began) - self._lost)

    def lose(self, seconds: float) -> None:
        """So long was waited in vain."""
        self._lost += seconds


class _Early(NamedTuple):
    """A range that came before its turn: its bytes if they are kept; or the file and the offset there that they were
    copied from."""

    nbytes: int
    data: bytes | None
    origin: tuple[str, int] | None


class Rolling:
    """The digest of one file at `place`. Ranges are told by several threads, of which one at a time hashes what is in
    turn. Who comes early waits if those before are here too, or may soon be; else the bytes are kept, or, if they may
    not be, read again later: from where they were copied, which is in the page cache if anything is, or back from the
    file. `marks` are ascending offsets at which the digest so far is wanted."""

    def __init__(self, place: str, held: Held, patience: TimeToWait, marks: Sequence[int] = ()) -> None:
        self.place = place
        self._held = held
        self._patience = patience
        self._marks = marks
        self._so_far = Marking(marks)
        self._early: dict[int, _Early] = {}
        self._waiting: dict[int, int] = {}
        self._end = 0  # of what is hashed, or will be by the thread that is at it
        self._vain: int | None = None  # the end at which others have waited in vain
        self._is_busy = False
        self._is_stuck = False  # at bytes that were not kept, and cannot be read before all are there
        self._changed = threading.Condition()

    def add(
        self, offset: int, nbytes: int, data: memoryview | bytes | None, origin: tuple[str, int] | None = None
    ) -> None:
        """A range is in the file; `data` are its bytes, None if they were not seen, and `origin` is where those come
        from that were seen, if they are a copy."""
        if not nbytes:
            return
        with self._changed:
            if self._is_stuck:
                return
            if (self._is_busy or offset != self._end) and (data is None or not self._comes(offset, nbytes)):
                keep = data is not None and self._held.take(nbytes)
                self._early[offset] = _Early(nbytes, bytes(data) if keep and data is not None else None, origin)
                return
            self._is_busy, self._end = True, offset + nbytes
        try:
            while self._take(offset, nbytes, data, origin):
                with self._changed:
                    if self._end not in self._early:
                        return
                    offset = self._end
                    nbytes, data, origin = self._early.pop(offset)
                    self._end = offset + nbytes
                    if data is not None:
                        self._held.give(nbytes)
            self._give_up()
        except BaseException:
            self._give_up()  # so that nobody waits for what will not be hashed
            raise
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
        most = left = self._patience.left()
        try:
            while not self._is_turn(offset) and not self._is_stuck:
                is_reached, began = self._is_reached(offset), time.monotonic()
                if not is_reached and (left <= 0 or self._vain == self._end):
                    break
                self._wait(offset, None if is_reached else left)
                left -= 0 if is_reached else time.monotonic() - began
                if left <= 0 and not self._is_reached(offset):
                    self._patience.lose(most)
                    self._vain = self._end  # nobody else is to wait for it either
                    self._changed.notify_all()
            return self._is_turn(offset) and not self._is_stuck
        finally:
            del self._waiting[offset]

    def _wait(self, offset: int, seconds: float | None) -> None:
        """Wait until something is hashed, at most so long."""
        end = self._end
        self._changed.wait_for(
            lambda: self._has_moved(end, offset) or (seconds is not None and self._vain == end), seconds
        )

    def _is_turn(self, offset: int) -> bool:
        return not self._is_busy and offset == self._end

    def _has_moved(self, end: int, offset: int) -> bool:
        return self._end != end or self._is_stuck or self._is_turn(offset)

    def _is_reached(self, offset: int) -> bool:
        """Whether all before a range is hashed, or will be without anybody's doing."""
        at = self._end
        while at < offset:
            nbytes = self._waiting.get(at) or (self._early[at].nbytes if at in self._early else 0)
            if not nbytes:
                return False
            at += nbytes
        return True

    def _give_up(self) -> None:
        """Leave the rest for the end."""
        with self._changed:
            self._is_stuck = True
            for early in self._early.values():
                if early.data is not None:
                    self._held.give(early.nbytes)
            self._early.clear()

    def _take(self, offset: int, nbytes: int, data: memoryview | bytes | None, origin: tuple[str, int] | None) -> bool:
        """Hash a range; False if it cannot be read before all is there."""
        source = _opened(origin) if data is None else None
        if data is not None:
            self._so_far.update(memoryview(data).cast("B"))
        elif source is not None and origin is not None:
            with closing(source):
                show(source, origin[0], origin[1], nbytes, self._so_far.update)
        elif place_of(self.place).holds_parts:
            return False
        else:
            read_back(self.place, offset, nbytes, self._so_far.update)
        return True

    def finish(self, size: int) -> FileDigest:
        """The digest, now that nobody writes to the file any more: what is missing is read.

        Raises:
            OSError: it cannot be read.
        """
        for early in self._early.values():
            if early.data is not None:
                self._held.give(early.nbytes)
        self._early.clear()
        if self._so_far.at > size:  # bytes were told that are not in it any more
            self._so_far = Marking(self._marks)
        read_back(self.place, self._so_far.at, size - self._so_far.at, self._so_far.update)
        return self._so_far.digest()


def _opened(origin: tuple[str, int] | None) -> Reader | None:
    """A file of this machine that bytes were copied from, if it can still be read; whether it is still what it was is
    known when all is there."""
    if origin is not None and is_local(origin[0]):
        with suppress(OSError):
            return place_of(origin[0]).open(origin[0])
    return None
