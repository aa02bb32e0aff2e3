"""What a place offers: names, sizes, identities, bytes at positions, and files that appear when they are complete.

A place is one file with one `Place` subclass. Paths begin with its scheme, as in `mem://models/llama`, and mean what
they mean on a disk: directories, names in them, and files. Every method may be called by several threads at once, and
fails with an `OSError`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple

__all__ = [
    "MARKER",
    "USUAL_PART",
    "WHOLE",
    "HandedPart",
    "Identity",
    "Place",
    "PlaceError",
    "Reader",
    "Status",
    "Writer",
    "fill",
]


USUAL_PART = 8 << 20  # bytes of a file that are sent at once
MARKER = ".surgery-marker"  # an object that says whether the directory in which it lies is whole
WHOLE = b"whole\n"  # what it says then; anything else is longer


# Of a part of a file: its number, whether it was sent, which ranges of it are there, and what the store knows it by.
HandedPart = tuple[int, bool, Sequence[tuple[int, int]], Sequence[str]]


class PlaceError(OSError):
    """What a place refuses, and what can be done about it."""

    def __init__(self, number: int, reason: str, hint: str | None = None) -> None:
        super().__init__(number, reason)
        self.hint = hint


class Identity(NamedTuple):
    """Which file it is, its size in bytes, and which state of it: of a local file its device and inode, and the times
    of change; elsewhere whatever the place changes when other bytes are there, such as an etag or a generation."""

    file: tuple[int | str, ...]
    size: int
    version: tuple[int | str, ...]


class Status(NamedTuple):
    """What lies at a path: a directory, or a file of `size` bytes."""

    is_directory: bool
    size: int = 0


class Reader:
    """A file open for reading, also while others read it. `descriptor` is that of the operating system, if it has one:
    then bytes may be copied, shared or mapped without passing through here."""

    descriptor: int | None = None

    def __init__(self, identity: Identity) -> None:
        self.identity = identity

    def read_into(self, offset: int, target: memoryview) -> int:
        """Bytes from an offset on into a buffer; gives how many, at least one except at the end of the file."""
        raise NotImplementedError

    def read_ranges(self, parts: Sequence[tuple[int, memoryview]]) -> None:
        """Fill several buffers, each from its offset on.

        Raises:
            OSError: they cannot be read, or there are fewer bytes.
        """
        for offset, target in parts:
            fill(self, offset, target)

    def close(self) -> None:
        """It is not read any more."""


class Writer:
    """A file that was created and has not appeared yet. Ranges come in any order, from several threads; each byte is
    written at least once before the file is published, and may be read back before that."""

    descriptor: int | None = None

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of these bytes."""
        raise NotImplementedError

    def read_into(self, offset: int, target: memoryview) -> int:
        """As a reader gives what was written."""
        raise NotImplementedError

    def truncate(self, size: int) -> None:
        """What comes after so many bytes is not wanted."""
        raise NotImplementedError

    def sync(self) -> None:
        """What was written must outlast a power cut."""

    def direct(self) -> int | None:
        """A further descriptor, for whole pages that bypass the page cache, which the caller closes; None if there is
        no such way."""
        return None

    def close(self) -> None:
        """This user writes no more; the file stays as it is."""


class Place:
    """Where files lie. Subclasses are found by `storage.places.found`.

    Where `holds_parts`, files are sent in parts, each of which is held in memory until all its bytes are there; then
    it cannot be read back before the file is settled.
    """

    scheme: ClassVar[str]
    holds_parts: ClassVar[bool] = False
    is_writable: ClassVar[bool] = True
    tells_first: ClassVar[bool] = False  # whether it knows, of several who write a small file, who came first
    lists: ClassVar[bool] = True  # whether it says what a directory holds, or only whether a name is there

    def list(self, path: str) -> Iterable[str]:
        """The names in a directory."""
        raise NotImplementedError

    def stat(self, path: str) -> Status | None:
        """What lies at a path; None if nothing does. A directory is there if a file lies below it."""
        raise NotImplementedError

    def below(self, path: str) -> Mapping[str, int]:
        """All files below a directory, such as `h/0`, and their sizes in bytes; none if there is no such directory."""
        found: dict[str, int] = {}
        pending = [""]
        while pending:
            above = pending.pop()
            for name in self.list(f"{path}/{above}".rstrip("/")):
                status = self.stat(f"{path}/{above}{name}")
                if status is not None and status.is_directory:
                    pending.append(f"{above}{name}/")
                elif status is not None:
                    found[above + name] = status.size
        return found

    def open(self, path: str) -> Reader:
        """A file for reading."""
        raise NotImplementedError

    def open_direct(self, path: str) -> Reader | None:
        """A file whose whole pages are read past the page cache; None if there is no such way."""
        return None

    def reopen(self, path: str, known: Identity) -> Reader:
        """A file that is known, for reading; one that has become another need not be noticed before it is read."""
        return self.open(path)

    def expect(self, paths: Iterable[str]) -> None:
        """These files will be wanted next, in this order."""
        return

    def identity(self, path: str) -> Identity:
        """What a file is now."""
        reader = self.open(path)
        reader.close()
        return reader.identity

    def identities(self, paths: Sequence[str]) -> Sequence[Identity | OSError]:
        """What several files are now, or why that cannot be told."""
        found: list[Identity | OSError] = []
        for path in paths:
            try:
                found.append(self.identity(path))
            except OSError as error:
                found.append(error)
        return found

    def create(self, path: str, size: int) -> None:
        """A new file of this length under a name that does not exist; its directories come by themselves."""
        raise NotImplementedError

    def stage(self, path: str, final: str, size: int, *, is_revised: bool = False) -> None:
        """As `create`, of a file that will be published as `final`. What is written of one that `is_revised` is read
        back and written again."""
        self.create(path, size)

    def settle(self, path: str) -> None:
        """All bytes of a file that was created are there: none is written again."""
        return

    def mark(self, directory: str, *, is_whole: bool) -> None:
        """From now on a directory whose files appear one by one is not to be read; or it is whole."""
        return

    def target(self, path: str) -> Writer:
        """A file that was created, for writing."""
        raise NotImplementedError

    def publish(self, created: str, path: str) -> None:
        """Let a file that was created appear under its final name, complete; one that is there is replaced."""
        raise NotImplementedError

    def remove(self, path: str) -> None:
        """Remove a file, which may be gone already."""
        raise NotImplementedError

    # -- small files in which processes tell each other something -------------------------------------------------

    def glance(self, path: str, most: int) -> tuple[str, bytes] | None:
        """The version of a small file, and its bytes, or so many of them; None if there is none."""
        raise self._no_versions()

    def put_if(self, path: str, data: bytes, known: str | None) -> str | None:
        """Write a small file if there is none, or if it is still of the version that is `known`: its version then;
        None if that is not so. No two have the same bytes."""
        raise self._no_versions()

    def _no_versions(self) -> PlaceError:
        return PlaceError(
            errno.EOPNOTSUPP,
            f"{self.scheme}:// cannot tell who came first",
            "keep the record at s3:// or gs://, or on a file system that all machines see",
        )

    # -- files that several processes write: one creates and publishes them, the others join it --------------------

    def share(self, path: str) -> str:
        """What other processes must know of a file that was created, to write to it too."""
        raise PlaceError(
            errno.EOPNOTSUPP,
            f"one process alone can write a file of {self.scheme}://",
            "run it in one process, or write to a disk that all of them have",
        )

    def join(self, path: str, final: str, size: int, told: str, *, is_revised: bool) -> None:
        """As `stage`, of a file that another process has created, which `told` so much; `path` is this process's own
        name for it."""
        raise NotImplementedError

    def hand_in(self, path: str) -> Sequence[HandedPart]:
        """This process has written all that it will to a file that it joined; what its creator must hear, as JSON."""
        raise NotImplementedError

    def take_in(self, path: str, told: Sequence[HandedPart]) -> None:
        """What another process has handed in of a file that was created here."""
        raise NotImplementedError

    def leave(self, path: str) -> None:
        """A file that was handed in is its creator's business from now on."""
        raise NotImplementedError

    # -- files that another run goes on with ----------------------------------------------------------------------

    def keep(self, path: str) -> None:
        """This run ends, and another one may go on with a file that was created, of which what is whole stays."""
        raise NotImplementedError

    def resume(self, path: str, told: str) -> Sequence[tuple[int, int]]:
        """A file that was staged is that of an earlier run, which was `share`d and has `told` so much: the offsets and
        lengths of what is there of it. What is written there is taken to be the same."""
        raise NotImplementedError

    def discard(self, final: str, told: str) -> None:
        """Of what an earlier run has begun as `final` and `share`d, end what has no name of its own."""
        raise NotImplementedError

    def clear(self, prefix: str) -> None:
        """Remove everything whose path begins so: what processes that were killed have left of files that they wrote
        together."""
        raise NotImplementedError


def fill(file: Reader | Writer, offset: int, target: memoryview) -> None:
    """Fill a buffer with the bytes from an offset on.

    Raises:
        OSError: they cannot be read, or there are fewer.
    """
    while target.nbytes:
        count = file.read_into(offset, target)
        if count == 0:
            raise OSError(errno.EIO, "the file is shorter than it was")
        offset, target = offset + count, target[count:]
