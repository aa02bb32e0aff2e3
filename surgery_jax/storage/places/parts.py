"""Files that are sent in parts: each is held in memory until its last byte is there, and then sent, whatever the order.

All parts of a file but the last have one length. What parts that are not whole may hold is bounded for the whole
process: when there is no more room, the one that was written to least recently is put aside, as an object of its own at
the store, and fetched back when more of it comes. Tasks are done in the order of what they write, so this is rare.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait

from .base import MARKER, WHOLE, HandedPart, Identity, PlaceError, Reader, Status, Writer
from .looking import StoredObject
from .remote import RemotePlace, started, submit
from .room import room
from .sink import UploadSink, part_bytes
from .wire import wanted_until

__all__ = ["PartedPlace"]

_SHORT = 1 << 12  # bytes that a part without a buffer keeps beside itself: headers, and checksums in them
_PATIENCE = 30.0  # seconds that parts under way are waited for before their file is given up


class _Part:
    """A part of a file, `size` bytes long. `ranges` are those that have come, none touching another."""

    def __init__(self, file: PartedFile, number: int, size: int) -> None:
        self.file, self.number, self.size = file, number, size
        self.buffer: bytearray | None = None
        self.beside: list[tuple[int, bytes]] = []  # short pieces that have come since it had a buffer
        self.ranges: list[tuple[int, int]] = []
        self.is_aside = self.is_sent = False
        self.is_kept = False  # sent by an earlier run, with the same bytes
        self.lock = threading.Lock()

    def held(self) -> bytearray:
        """Its buffer, with what has come of it; the lock is held."""
        if self.buffer is None:
            room().take(self)
            self.buffer = bytearray(self.size)
            if self.is_aside:
                self.file.sink.fetch(self.number, 0, memoryview(self.buffer))
            for begin, piece in self.beside:
                self.buffer[begin : begin + len(piece)] = piece
            self.beside.clear()
        return self.buffer

    def put(self, begin: int, piece: memoryview) -> None:
        """Bytes of it; the lock is held."""
        import numpy as np  # here: who reads headers does without

        if self.buffer is None and piece.nbytes + sum(len(one) for _, one in self.beside) <= _SHORT:
            self.beside.append((begin, bytes(piece)))
        else:  # other threads go on while NumPy copies
            np.frombuffer(self.held(), np.uint8)[begin : begin + piece.nbytes] = np.frombuffer(piece, np.uint8)

    def put_aside(self) -> None:
        """Hold it no longer; the lock is held."""
        if self.buffer is not None:
            self.file.sink.put_aside(self.number, self.buffer)
            self.is_aside, self.buffer = True, None
            room().give(self)

    def hold_no_more(self) -> None:
        """Put aside what of it has come, unless it was sent."""
        with self.lock:
            if not self.is_sent:
                if self.beside:
                    self.held()
                self.put_aside()

    def send(self) -> None:
        """Send it as it is, unless the file is given up."""
        with wanted_until(self.file.ended), self.lock:
            if self.is_sent:
                return
            if self.buffer is None and self.is_aside and not self.beside:
                self.file.sink.adopt(self.number, self.size)
            else:
                self.file.sink.send(self.number, self.held())
            self.is_sent = True
            if self.buffer is not None:
                self.buffer = None
                room().give(self)

    def add(self, begin: int, end: int) -> bool:
        """Note that a range has come; whether all have now."""
        for one in [one for one in self.ranges if one[0] <= end and begin <= one[1]]:
            self.ranges.remove(one)
            begin, end = min(begin, one[0]), max(end, one[1])
        self.ranges.append((begin, end))
        return self.ranges == [(0, self.size)]


class PartedFile(Writer):
    """A file that is written in parts. One that `is_revised` is sent when it is settled."""

    def __init__(self, place: PartedPlace, final: str, aside: str, size: int, is_revised: bool) -> None:
        self.place, self.final, self.size, self._aside = place, final, size, aside
        self.sink = place.sink(final, aside, size)
        self.is_settled = False
        self.found: StoredObject | None = None  # once it has appeared
        self.ended = threading.Event()  # given up
        self._is_revised = is_revised
        self._sending: list[Future[None]] = []
        self._cut(size)

    def _cut(self, size: int) -> None:
        self.size, self.part = size, part_bytes(size)
        begins = range(0, size, self.part) if size else (0,)
        self._parts = [_Part(self, number, min(self.part, size - begin)) for number, begin in enumerate(begins)]

    def _pieces(self, offset: int, data: memoryview) -> Iterator[tuple[_Part, int, memoryview]]:
        """The parts that bytes belong to, with where in them."""
        while data.nbytes:
            number, begin = divmod(offset, self.part)
            part = self._parts[number]
            piece = data[: part.size - begin]
            yield part, begin, piece
            offset, data = offset + piece.nbytes, data[piece.nbytes :]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._check()
        for part, begin, piece in self._pieces(offset, memoryview(data).cast("B")):
            with part.lock:
                if part.is_kept:
                    continue
                if part.is_sent:
                    raise PlaceError(errno.EIO, "bytes that are at the store already are written again")
                part.put(begin, piece)
                is_whole = part.add(begin, begin + piece.nbytes)
            room().use(part)
            if is_whole and not self._is_revised and len(self._parts) > 1:
                self._sending.append(started(part.send))

    def _check(self) -> None:
        """Raise what went wrong with a part that was sent."""
        for future in list(self._sending):
            if future.done():
                self._sending.remove(future)
                future.result()

    def read_into(self, offset: int, target: memoryview) -> int:
        target = target[: max(0, self.size - offset)]
        for part, begin, piece in self._pieces(offset, target):
            with part.lock:
                is_sent = part.is_sent
                buffer = part.held() if part.beside and not is_sent else part.buffer
                if buffer is not None:
                    piece[:] = memoryview(buffer)[begin : begin + piece.nbytes]
                elif part.is_aside and not is_sent:
                    self.sink.fetch(part.number, begin, piece)
                elif not is_sent:
                    piece[:] = bytes(piece.nbytes)
            if is_sent:
                if not self.is_settled:
                    raise PlaceError(errno.EOPNOTSUPP, "bytes cannot be read back before all of them are there")
                self.place.fetch(self.final, self.complete(), part.number * self.part + begin, [piece])
        return target.nbytes

    def truncate(self, size: int) -> None:
        if any(part.is_sent for part in self._parts):
            raise PlaceError(errno.EIO, "a file whose bytes are at the store already cannot be made shorter")
        kept = bytearray(min(size, self.size))
        self.read_into(0, memoryview(kept))
        self._release()
        self.sink.abort()
        self.sink = self.place.sink(self.final, self._aside, size)
        self._cut(size)
        self.write(0, memoryview(kept))

    def _release(self) -> None:
        """Hold nothing any more."""
        for part in self._parts:
            with part.lock:
                part.is_sent, part.buffer = True, None
                part.beside.clear()
                room().give(part)

    def sync(self) -> None:
        self._check()

    def settle(self) -> None:
        """Send what is still here, unless it is all in one part."""
        if not self.is_settled and len(self._parts) > 1:
            for future in [*self._sending, *(started(part.send) for part in self._parts if not part.is_sent)]:
                future.result()
            self._sending.clear()
        self.is_settled = True

    def complete(self) -> StoredObject:
        """Let it appear, if it has not yet."""
        if self.found is None:
            self.settle()
            self._parts[0].send()
            self.found = self.sink.complete()
        return self.found

    def hand_in(self) -> Sequence[HandedPart]:
        """Of a file that several processes write: what this one has of it, all of which is at the store then. What is
        whole was sent, and the rest is put aside for the process that completes the file."""
        for future in self._sending:
            future.result()
        self._sending.clear()
        begun = [part for part in self._parts if part.ranges]
        submit(lambda part: part.hold_no_more(), begun)
        return [
            (part.number, part.is_sent, part.ranges, self.sink.hand_in(part.number, is_sent=part.is_sent))
            for part in begun
        ]

    def take_in(self, told: Sequence[HandedPart]) -> None:
        """What another process has handed in. Parts that are whole stay where they are; bytes of others are fetched and
        put together with those from elsewhere."""
        submit(self._take_in, told)

    def _take_in(self, told: HandedPart) -> None:
        number, is_sent, ranges, known = told
        part = self._parts[number]
        if is_sent or [tuple(one) for one in ranges] == [(0, part.size)]:
            with part.lock:
                self.sink.take_in(number, known, is_sent=is_sent)
                part.is_sent, part.is_aside, part.ranges = is_sent, not is_sent, [(0, part.size)]
            return
        for begin, end in ranges:
            data = bytearray(end - begin)
            self.sink.fetch_foreign(known, begin, memoryview(data))
            self.write(number * self.part + begin, memoryview(data))

    def resume(self, told: str) -> Sequence[tuple[int, int]]:
        """Go on with what an earlier run has sent; which ranges those are."""
        if self._is_revised or len(self._parts) == 1:
            return []
        sizes = self.sink.resume(told)
        kept = [part for part in self._parts if sizes.get(part.number) == part.size]
        for part in kept:
            part.is_sent = part.is_kept = True
            part.ranges = [(0, part.size)]
        return [(part.number * self.part, part.size) for part in kept]

    def keep(self) -> None:
        """This run ends; what is whole stays at the store."""
        wait([future for future in self._sending if not future.cancel()], timeout=_PATIENCE)
        self._release()
        self.sink.keep()

    def abort(self) -> None:
        """Nothing of it is wanted."""
        self.ended.set()
        under_way = [future for future in self._sending if not future.cancel()]
        self.sink.abort()  # now, since this process may not be given the time to wait
        wait(under_way, timeout=_PATIENCE)
        self._release()
        if under_way:  # a part that was on its way may have come all the same
            self.sink.abort()


class PartedPlace(RemotePlace):
    """A place that files are sent to in parts. Subclasses say what takes the parts of a file (`sink`), how a short
    object is written at once (`put`), and how an object is removed (`remove_object`)."""

    holds_parts = is_writable = tells_first = True

    def __init__(self) -> None:
        self._staged: dict[str, PartedFile] = {}

    def sink(self, final: str, aside: str, size: int) -> UploadSink:
        """What takes the parts of a file; those that are put aside have names that begin with `aside`."""
        raise NotImplementedError

    def begun_with(self, prefix: str) -> Mapping[str, StoredObject]:
        """All objects whose paths begin so, by path.

        Raises:
            OSError: the store does not say.
        """
        raise NotImplementedError

    def put(self, path: str, data: bytes | bytearray | memoryview) -> StoredObject:
        """Write a whole object.

        Raises:
            OSError: the store refuses.
        """
        raise NotImplementedError

    def put_version(self, path: str, data: bytes, known: str | None) -> StoredObject | None:
        """Write a whole object if there is none, or if it is still of the version that is `known`; None if it is not.

        Raises:
            OSError: the store refuses for another reason.
        """
        raise NotImplementedError

    def remove_object(self, path: str) -> None:
        """Remove an object, which may be gone.

        Raises:
            OSError: the store refuses.
        """
        raise NotImplementedError

    def create(self, path: str, size: int) -> None:
        self.stage(path, path, size)

    def stage(self, path: str, final: str, size: int, *, is_revised: bool = False) -> None:
        self._staged[path] = PartedFile(self, final, path, size, is_revised)

    def _file(self, path: str) -> PartedFile:
        if path not in self._staged:
            raise PlaceError(
                errno.EOPNOTSUPP,
                "only the process that began a file can write it",
                "run it in one process, or write to a disk that all of them have",
            )
        return self._staged[path]

    def target(self, path: str) -> Writer:
        return self._file(path)

    def settle(self, path: str) -> None:
        self._file(path).settle()

    def stat(self, path: str) -> Status | None:
        if path in self._staged:
            return Status(False, self._staged[path].size)
        return super().stat(path)

    def open(self, path: str) -> Reader:
        file = self._staged.get(path)
        return super().open(path) if file is None else _Unpublished(file, path)

    def publish(self, created: str, path: str) -> None:
        file = self._file(created)
        if file.final != path:
            raise PlaceError(errno.EINVAL, f"it was begun as {file.final}")
        file.complete()
        del self._staged[created]

    def remove(self, path: str) -> None:
        file = self._staged.pop(path, None)
        if file is None:
            self.remove_object(path)
            return
        file.abort()
        if file.found is not None:
            self.remove_object(file.final)

    def put_if(self, path: str, data: bytes, known: str | None) -> str | None:
        written = self.put_version(path, data, known)
        if written is not None:
            return written.version
        there = self.glance(path, len(data) + 1)  # a try whose answer was lost may have written it
        return there[0] if there is not None and there[1] == data else None

    def share(self, path: str) -> str:
        return self._file(path).sink.begin()

    def join(self, path: str, final: str, size: int, told: str, *, is_revised: bool) -> None:
        self.stage(path, final, size, is_revised=is_revised)
        self._file(path).sink.join(told)

    def hand_in(self, path: str) -> Sequence[HandedPart]:
        return self._file(path).hand_in()

    def take_in(self, path: str, told: Sequence[HandedPart]) -> None:
        self._file(path).take_in(told)

    def keep(self, path: str) -> None:
        self._file(path).keep()
        self.leave(path)

    def resume(self, path: str, told: str) -> Sequence[tuple[int, int]]:
        return self._file(path).resume(told)

    def leave(self, path: str) -> None:
        self._staged.pop(path, None)

    def discard(self, final: str, told: str) -> None:
        """Nothing: all that was begun has names."""

    def clear(self, prefix: str) -> None:
        submit(self.remove_object, self.begun_with(prefix))

    def mark(self, directory: str, *, is_whole: bool) -> None:
        text = WHOLE if is_whole else b"this directory is being written, or was when its writer was stopped\n"
        self.put(f"{directory}/{MARKER}", text)


class _Unpublished(Reader):
    """A file that has not appeared yet, for those who look at it before it does."""

    def __init__(self, file: PartedFile, path: str) -> None:
        super().__init__(Identity((path,), file.size, ("",)))
        self._file = file

    def read_into(self, offset: int, target: memoryview) -> int:
        return self._file.read_into(offset, target)
