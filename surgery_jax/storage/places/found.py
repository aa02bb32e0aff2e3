"""Which place a path belongs to: by its scheme, as in `mem://models/llama`; a path without one is local.

Places are found, not listed: every module of this package that defines a `Place` counts, and those that entry points
of the group `surgery_jax.places` name.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Generator, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PosixPath

from ...core.discover import import_all
from ...core.errors import StorageError, nearest
from .base import Place, PlaceError, Status
from .local import LocalPlace

__all__ = ["PlacePath", "check_local", "check_writable", "is_local", "locate", "place_of", "places"]

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_SECRET = re.compile(r"[a-z][a-z0-9+.-]*://([^/?]*@|[^?]*\?.*=)", re.DOTALL)
_LOCAL = LocalPlace()


def places() -> Mapping[str, type[Place]]:
    """All places that are known now, but the local one, by scheme."""
    import_all(__package__, "surgery_jax.places")
    found: dict[str, type[Place]] = {}
    for kind in _kinds(Place):
        if kind is not LocalPlace and found.setdefault(kind.scheme, kind) is not kind:
            raise TypeError(f"two places have the scheme {kind.scheme!r}")
    return found


def _kinds(kind: type[Place]) -> Iterator[type[Place]]:
    """All places of a kind; one without a scheme is what several have in common."""
    if "scheme" in vars(kind):
        yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


@cache
def _of_scheme(scheme: str) -> Place:
    """A place, which is made once.

    Raises:
        KeyError: there is none, so far.
    """
    return places()[scheme]()


def place_of(path: str) -> Place:
    """The place where a path is.

    Raises:
        StorageError: nobody offers its scheme, or it holds a secret.
    """
    match = _SCHEME.match(path)
    if match is None:
        return _LOCAL
    scheme = match[1]
    if _SECRET.match(path) and not os.path.lexists(path):
        raise StorageError(
            "a path may hold no password, key or signed query: it goes into messages and receipts",
            where=re.sub(r"\?.*", "?…", re.sub(r"//[^/]*@", "//…@", path), flags=re.DOTALL),
            hint="give them in the environment or in ~/.netrc, as the page about places says",
        )
    try:
        return _of_scheme(scheme)
    except KeyError:
        if os.path.lexists(path):  # a directory may be called so
            return _LOCAL
        near = nearest(scheme, places(), 1)
        raise StorageError(
            f"no place is known for {scheme}://",
            where=path,
            expected=", ".join(f"{known}://" for known in places()) or "a path of this machine",
            hint=f"did you mean {near[0]}://?" if near else "install a package that offers it (surgery_jax.places)",
        ) from None


def is_local(path: str | Path) -> bool:
    """Whether a path is one of this machine's file system."""
    return place_of(str(path)) is _LOCAL


def check_local(path: Path, what: str) -> None:
    """Whether a path is local, for what only a file system can hold.

    Raises:
        StorageError: it is not.
    """
    if not is_local(path):
        raise StorageError(f"{what} are read and written in local directories only", where=str(path))


def check_writable(path: str) -> None:
    """Whether the place of a path can be written at all.

    Raises:
        StorageError: it can only be read.
    """
    if not place_of(path).is_writable:
        kinds = [f"{kind.scheme}://" for kind in places().values() if kind.is_writable]
        raise StorageError(
            f"{place_of(path).scheme}:// can only be read",
            where=path,
            expected=f"a path of this machine, or {' or '.join(kinds)}",
        )


def locate(path: str) -> Path:
    """A path, whose questions are answered by its place.

    Raises:
        StorageError: nobody offers its scheme.
    """
    return Path(path) if place_of(path) is _LOCAL else PlacePath(path)


class PlacePath(PosixPath):
    """A path of another place than the local one. What it asks (what is there, which names) that place answers; a
    file is opened with `storage.files.File`."""

    def __str__(self) -> str:
        scheme, *rest = self.parts or (".",)
        return f"{scheme}//{'/'.join(rest)}" if scheme.endswith(":") else "/".join([scheme, *rest])

    def __fspath__(self) -> str:
        return str(self)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Type and size; all else is 0."""
        found = place_of(str(self)).stat(str(self))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        mode = stat.S_IFDIR if found.is_directory else stat.S_IFREG
        return os.stat_result((mode, 0, 0, 1, 0, 0, found.size, 0, 0, 0))

    def _status(self) -> Status | None:
        """What lies there, for who asks no further if that cannot be told.

        Raises:
            StorageError: it cannot be told.
        """
        try:
            return place_of(str(self)).stat(str(self))
        except OSError as error:
            hint = error.hint if isinstance(error, PlaceError) else None
            raise StorageError(f"cannot look there: {error.strerror or error}", where=str(self), hint=hint) from None

    def exists(self, **options: object) -> bool:
        """Whether anything lies there."""
        return self._status() is not None

    def is_file(self, **options: object) -> bool:
        """Whether a file lies there."""
        found = self._status()
        return found is not None and not found.is_directory

    def is_dir(self, **options: object) -> bool:
        """Whether a directory lies there."""
        found = self._status()
        return found is not None and found.is_directory

    def is_symlink(self) -> bool:
        """There are no links."""
        return False

    def resolve(self, strict: bool = False) -> PlacePath:
        """Itself: there are no links, and no current directory."""
        return self

    def iterdir(self) -> Generator[PlacePath, None, None]:
        """What lies in a directory."""
        return (self / name for name in place_of(str(self)).list(str(self)))

    def glob(self, pattern: str) -> Generator[PlacePath, None, None]:
        """What lies in a directory and matches a pattern without slashes."""
        return (entry for entry in self.iterdir() if fnmatchcase(entry.name, pattern))

    def rglob(self, pattern: str) -> Generator[PlacePath, None, None]:
        """What lies below a directory and has a name that matches a pattern."""
        for entry in self.iterdir():
            if fnmatchcase(entry.name, pattern):
                yield entry
            if entry.is_dir():
                yield from entry.rglob(pattern)
