"""What places behind HTTP have in common: objects with a version, read by ranges.

Every range is asked for as one of the object that was opened, and what a server answers must be of that: other bytes
under the name are an error, not data. Of an object whose header is wanted the first range is read at once, with which
its size and its version come: a header costs one request.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar

from .base import Identity, Place, PlaceError, Reader, Status
from .cached import cache as kept_ranges
from .looking import Seen, StoredObject, looked
from .refusals import changed, no_ranges, refusal
from .wire import SHORT, Answer, Sinks, StoreRequest, wire

__all__ = ["RemotePlace", "StoredObject", "started", "submit"]

T = TypeVar("T")
U = TypeVar("U")

FIRST = SHORT  # bytes that are read at once of an object whose header is wanted
CHUNK = 8 << 20  # longer ranges are read in several requests at the same time
GAP = 256 << 10  # bytes between two ranges that are read and thrown away rather than asked for separately
_PACKED = frozenset({"br", "compress", "deflate", "gzip", "x-gzip", "zstd"})  # other bytes than those of the file
_MOVES = 5  # times that an object may be said to be elsewhere
_IN_FLIGHT = 32  # requests
_AHEAD = 32  # objects whose first ranges are asked for at the same time


class RemoteReader(Reader):
    """An object that was found. `first` are bytes from its beginning that are known already."""

    def __init__(self, place: RemotePlace, path: str, found: StoredObject, first: bytes = b"") -> None:
        super().__init__(Identity((path,), found.size, (found.version,)))
        self._place, self._path, self._found, self._first = place, path, found, first

    def read_into(self, offset: int, target: memoryview) -> int:
        count = min(target.nbytes, max(self._found.size - offset, 0))
        self.read_ranges([(offset, target[:count])])
        return count

    def read_ranges(self, parts: Sequence[tuple[int, memoryview]]) -> None:
        wanted = []
        for offset, target in sorted(parts, key=lambda part: part[0]):
            known = max(0, min(target.nbytes, len(self._first) - offset))
            target[:known] = self._first[offset : offset + known]
            if target.nbytes > known:
                wanted.append((offset + known, target[known:]))
        acts = [partial(self._place.read, self._path, self._found, *run) for run in _runs(wanted)]
        if len(acts) <= 1:
            for act in acts:
                act()
            return
        for future in [_pool().submit(act) for act in acts]:
            future.result()


def _runs(parts: Sequence[tuple[int, memoryview]]) -> list[tuple[int, list[memoryview]]]:
    """Ranges in order as requests: where each begins, and the buffers that it fills. Long ones are cut, and those that
    lie near each other are taken together with what is between them."""
    runs: list[tuple[int, list[memoryview]]] = []
    end = room = 0
    for offset, target in parts:
        gap = offset - end
        if runs and 0 <= gap <= GAP and gap + target.nbytes <= room:
            if gap:
                runs[-1][1].append(memoryview(bytearray(gap)))
            runs[-1][1].append(target)
            room -= gap + target.nbytes
        else:
            for start in range(0, target.nbytes, CHUNK):
                part = target[start : start + CHUNK]
                runs.append((offset + start, [part]))
                room = CHUNK - part.nbytes
        end = offset + target.nbytes
    return runs


def submit(act: Callable[[U], T], subjects: Iterable[U]) -> list[T]:
    """Ask something of several paths, or other subjects, at the same time."""
    return list(_pool().map(act, subjects))


def started(act: Callable[[], T]) -> Future[T]:
    """Begin something that waits for nothing but a server."""
    return _pool().submit(act)


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that wait for answers; what they do waits for nothing else."""
    return ThreadPoolExecutor(_IN_FLIGHT, "surgery-place")


class RemotePlace(Place):
    """A place behind HTTP. Subclasses say how an object is asked for (`request`), what a directory holds (`entries`),
    and what an answer's version is (`version`)."""

    is_writable = False

    # -- what kinds of them differ in -----------------------------------------------------------------------------

    def request(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> StoreRequest:
        """What asks for the bytes of an object.

        Raises:
            OSError: it cannot be asked for.
        """
        raise NotImplementedError

    def fresh(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> StoreRequest:
        """The same, whereto answers before may have sent us.

        Raises:
            OSError: it cannot be asked for.
        """
        return self.request(path, method, headers)

    def entries(self, path: str) -> Mapping[str, StoredObject | None]:
        """The objects in a directory by name, and directories with None; empty if there is no such directory.

        Raises:
            OSError: the place does not say.
        """
        raise NotImplementedError

    def objects(self, path: str) -> Mapping[str, StoredObject]:
        """All objects below a directory, by their names there.

        Raises:
            OSError: the place does not say.
        """
        found: dict[str, StoredObject] = {}
        level = [""]
        while level:
            entries = submit(self.entries, [f"{path}/{above}".rstrip("/") for above in level])
            rows = [
                (above + name, item) for above, held in zip(level, entries, strict=True) for name, item in held.items()
            ]
            found |= {name: item for name, item in rows if item is not None}
            level = [f"{name}/" for name, item in rows if item is None]
        return found

    def version(self, headers: Mapping[str, str]) -> str:
        """What changes with the bytes of an object; empty if nothing does."""
        return headers.get("etag") or headers.get("last-modified", "")

    def condition(self, found: StoredObject) -> Mapping[str, str]:
        """Headers that ask for bytes of this version only, where a server knows them."""
        is_strong = found.version.startswith('"')  # of weak ones no two are the same to a server
        return {"If-Match": found.version} if is_strong else {}

    def found(self, answer: Answer) -> StoredObject:
        """What the head of an answer says of the object, whether it comes whole or a range of it."""
        packed = answer.headers.get("content-encoding", "").lower()
        if packed in _PACKED:
            raise PlaceError(
                errno.EOPNOTSUPP, f"the server sends it compressed ({packed})", "fetch it, and read the local file"
            )
        size = answer.headers.get("content-range", "").rpartition("/")[2] or answer.headers.get("content-length", "")
        version = self.version(answer.headers)
        if not size.isdecimal() or not version:
            raise PlaceError(
                errno.EOPNOTSUPP,
                "the server says neither ETag nor Last-Modified of it" if size.isdecimal() else "no size is told of it",
                "fetch it, and read the local file",
            )
        return StoredObject(int(size), version)

    def refusal(self, answer: Answer) -> OSError:
        """What an answer means that is no success."""
        return refusal(answer)

    def absent(self, path: str, answer: Answer) -> bool:
        """Whether an answer says that there is no such object."""
        return answer.status == 404

    def moved(self, path: str, answer: Answer) -> bool:
        """Whether an answer says that an object is asked for elsewhere, which is noted."""
        return False

    # -- objects --------------------------------------------------------------------------------------------------

    def find(self, path: str) -> StoredObject | None:
        """The object at a path; None if there is none.

        Raises:
            OSError: the place does not say.
        """
        ask = self.fresh
        for _ in range(_MOVES):
            answer = wire().ask(ask(path, "HEAD"))
            ask = self.request
            if self.absent(path, answer):
                return None
            if answer.status < 300:
                return self.found(answer)
            if not self.moved(path, answer):
                break
        raise self.refusal(answer)

    def begin(self, path: str) -> tuple[StoredObject, bytes] | None:
        """The object at a path with its first bytes; None if there is none.

        Raises:
            OSError: it cannot be read.
        """
        ask, wanted = self.fresh, {"Range": f"bytes=0-{FIRST - 1}"}
        for _ in range(_MOVES):
            answer = wire().ask(ask(path, "GET", wanted), most=FIRST)
            ask = self.request
            if self.absent(path, answer):
                return None
            if answer.status in (200, 206) and (found := self.found(answer)).size >= len(answer.body):
                if answer.status == 200 and found.size > FIRST:
                    raise no_ranges()
                return found, answer.body
            if answer.status == 416:  # an empty object has no first byte
                empty = self.find(path)
                return None if empty is None else (empty, b"")
            if not self.moved(path, answer):
                break
        raise self.refusal(answer)

    def is_exact(self, found: StoredObject) -> bool:
        """Whether no two states of an object have the same version."""
        return bool(found.version)

    def read(self, path: str, found: StoredObject, offset: int, targets: Sequence[memoryview]) -> None:
        """Fill buffers with the bytes of an object from an offset on: as they are kept on this machine, if they are.

        Raises:
            OSError: they cannot be read, or are of another version.
        """
        kept = kept_ranges()
        if kept is None or not self.is_exact(found):
            self.fetch(path, found, offset, targets)
        else:
            kept.read(path, found, offset, targets, partial(self.fetch, path, found))

    def fetch(self, path: str, found: StoredObject, offset: int, targets: Sequence[memoryview]) -> None:
        """The same from the place itself.

        Raises:
            OSError: they cannot be read, or are of another version.
        """
        sinks = Sinks(targets)
        request: StoreRequest

        def asked(done: int) -> StoreRequest:
            nonlocal request
            wanted = f"bytes={offset + done}-{offset + sinks.size - 1}"
            request = self.request(path, headers={"Range": wanted, **self.condition(found)})
            return request

        def check(answer: Answer, begun: int) -> None:
            wanted = f"bytes {offset + begun}-{offset + sinks.size - 1}/{found.size}"
            if answer.headers.get("content-range", "").lower() != wanted or not self.is_of(
                path, request, answer, found
            ):
                raise changed()

        for _ in range(_MOVES):
            answer = wire().fill(asked, sinks, check)
            if answer.status == 206:
                return
            if answer.status == 200:
                if len(answer.body) != found.size:
                    raise no_ranges()
                if not self.is_of(path, request, answer, found):
                    raise changed()
                for target in targets:
                    target[:] = answer.body[offset : offset + target.nbytes]
                    offset += target.nbytes
                return
            if answer.status in (404, 412, 416):
                raise changed()
            if not self.moved(path, answer):
                break
        raise self.refusal(answer)

    def is_of(self, path: str, request: StoreRequest, answer: Answer, found: StoredObject) -> bool:
        """Whether the bytes of an answer to a request are of the object that was found."""
        return self.version(answer.headers) == found.version

    # -- what a place offers --------------------------------------------------------------------------------------

    def list(self, path: str) -> Iterable[str]:
        return list(self._listed(path))

    def stat(self, path: str) -> Status | None:
        above, _, name = path.rpartition("/")
        seen = looked()
        found: StoredObject | None
        if seen is not None and path in seen.known:
            found = seen.known[path]
        elif seen is not None and above in seen.lists:
            listed = seen.lists[above]
            if name in listed:
                found = listed[name]
            elif self.lists or path not in seen.expected:
                return None
            else:
                found = self._begun(seen, path)[0]
        elif seen is not None:
            found = None if path in seen.lists or self.is_root(path) else self._begun(seen, path)[0]
        else:
            found = None if self.is_root(path) else self.find(path)
        if found is not None:
            return Status(False, found.size)
        return Status(True) if self._listed(path) else None

    def below(self, path: str) -> Mapping[str, int]:
        found = self.objects(path)
        seen = looked()
        if seen is not None:
            seen.known |= {f"{path}/{name}": item for name, item in found.items()}
        return {name: item.size for name, item in found.items()}

    def open(self, path: str) -> Reader:
        seen = looked()
        found: StoredObject | None
        if seen is None:
            found, first = self.find(path), b""
        elif path in seen.known and path not in seen.begun and path not in seen.expected:
            found, first = seen.known[path], b""
        else:
            found, first = self._begun(seen, path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
        return RemoteReader(self, path, found, first)

    def reopen(self, path: str, known: Identity) -> Reader:
        return RemoteReader(self, path, StoredObject(known.size, str(known.version[0])))

    def glance(self, path: str, most: int) -> tuple[str, bytes] | None:
        begun = self.begin(path)
        if begun is None:
            return None
        found, first = begun
        data = bytearray(min(found.size, most))
        first = first[:most]
        data[: len(first)] = first
        if len(first) < len(data):
            self.read(path, found, len(first), [memoryview(data)[len(first) :]])
        return found.version, bytes(data)

    def identity(self, path: str) -> Identity:
        found = self.find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
        return Identity((path,), found.size, (found.version,))

    def identities(self, paths: Sequence[str]) -> Sequence[Identity | OSError]:
        seen = looked()
        known = seen.known if seen is not None else {}

        def found(path: str) -> Identity | OSError:
            if path in known:
                return Identity((path,), known[path].size, (known[path].version,))
            return super(RemotePlace, self).identities([path])[0]

        return submit(found, paths)

    def expect(self, paths: Iterable[str]) -> None:
        seen = looked()
        if seen is not None:
            seen.expected |= dict.fromkeys(paths)

    def is_root(self, path: str) -> bool:
        """Whether a path is that of a bucket, a repository or a server: no object has it."""
        return path.removeprefix(f"{self.scheme}://").count("/") == 0

    # -- what is remembered while headers are read ----------------------------------------------------------------

    def _listed(self, path: str) -> Mapping[str, StoredObject | None]:
        seen = looked()
        if seen is None:
            return self.entries(path)
        if path not in seen.lists:
            seen.lists[path] = self.entries(path)
        return seen.lists[path]

    def _begun(self, seen: Seen, path: str) -> tuple[StoredObject, bytes] | tuple[None, bytes]:
        """An object and its first bytes; those that are expected next are asked for at the same time. Of the bytes
        only those that came last are kept."""
        if path not in seen.begun:
            after = list(seen.expected)
            after = after[after.index(path) + 1 :] if path in seen.expected else []
            wanted = [path, *(other for other in after if other not in seen.begun)][:_AHEAD]
            found = submit(self.begin, wanted) if len(wanted) > 1 else [self.begin(path)]
            seen.begun |= dict(zip(wanted, found, strict=True))
            for old in list(seen.begun)[: -2 * _AHEAD]:
                if (known := seen.begun[old]) is not None:
                    seen.begun[old] = known[0], b""
        return seen.begun[path] or (None, b"")
