"""What a file is, so that other bytes under its name are noticed before they count.

Headers and data are read at different times. The identity of every file whose header is read is kept; each time it is
opened again, and once before an output appears, it must be the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from ..core.errors import StorageError
from .places.base import Identity, Place
from .places.found import place_of

__all__ = [
    "Changed",
    "Identity",
    "add_all",
    "check_all",
    "check_unchanged",
    "identities_of",
    "notice",
    "remembered",
    "remembering",
]


class Changed(StorageError):
    """A file is not what it was: what was made of it is of no use any more."""


def check_unchanged(path: str, known: Identity, found: Identity) -> None:
    """Whether a file is still the one that it was.

    Raises:
        StorageError: it is another one, or was written to.
    """
    if known == found:
        return
    if known.file != found.file:
        how = "another file under its name"
    elif known.size != found.size:
        how = f"{found.size} bytes, after {known.size}"
    else:
        how = "the same file, changed since"
    raise Changed(
        "the file changed after its header was read",
        where=path,
        expected="the same file until the end",
        found=how,
        hint="run it again when nothing writes to it any more",
    )


def check_all(known: Mapping[str, Identity]) -> None:
    """Whether all of these files are still what they were.

    Raises:
        StorageError: one is not, or is gone.
    """
    for path, found in _now(known).items():
        check_unchanged(path, known[path], found)


def add_all(known: dict[str, Identity], more: Mapping[str, Identity]) -> None:
    """Add the identities that other headers were read with.

    Raises:
        StorageError: a file of both was not the same.
    """
    for path, found in more.items():
        check_unchanged(path, known.setdefault(path, found), found)


# ---------------------------------------------------------------------------------------- what is opened meanwhile

_REMEMBERED: ContextVar[dict[str, Identity] | None] = ContextVar("remembered", default=None)


@contextmanager
def remembering(known: dict[str, Identity] | None = None) -> Iterator[dict[str, Identity]]:
    """Remember every file that this thread opens for reading meanwhile, by path, in `known` or a new table; those that
    are in it already must be what they were. Threads may share a table."""
    found = {} if known is None else known
    token = _REMEMBERED.set(found)
    try:
        yield found
    finally:
        _REMEMBERED.reset(token)


def notice(path: str, identity: Identity) -> None:
    """A file was just opened for reading, and was this one.

    Raises:
        StorageError: it is remembered as another one.
    """
    remembered = _REMEMBERED.get()
    if remembered is not None:
        check_unchanged(path, remembered.setdefault(path, identity), identity)


def remembered(path: str) -> Identity | None:
    """What a file is remembered as, if it is."""
    known = _REMEMBERED.get()
    return None if known is None else known.get(path)


def identities_of(files: Iterable[str], opened: Mapping[str, Identity]) -> dict[str, Identity]:
    """The identities of the files that were opened, and of others whose presence and size a header relies on.

    Raises:
        StorageError: one of them is gone.
    """
    return {**opened, **_now([path for path in files if path not in opened])}


def _now(paths: Iterable[str]) -> dict[str, Identity]:
    """What files are now; each place is asked for all of its own at once.

    Raises:
        StorageError: one of them is gone.
    """
    by_place: dict[Place, list[str]] = {}
    for path in paths:
        by_place.setdefault(place_of(path), []).append(path)
    found: dict[str, Identity] = {}
    for place, own in by_place.items():
        for path, identity in zip(own, place.identities(own), strict=True):
            if isinstance(identity, OSError):
                raise StorageError(  # it may come back
                    "the file was lost after its header was read",
                    where=path,
                    found=identity.strerror or str(identity),
                    hint="bring it back, the same file, and run again",
                ) from None
            found[path] = identity
    return found
