"""While headers are read, what a server has said once need not be asked again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Seen", "StoredObject", "looked", "looking"]


class StoredObject(NamedTuple):
    """An object: its size in bytes, and what changes when other bytes are under its name."""

    size: int
    version: str


@dataclass
class Seen:
    """What servers have said so far: the names in directories, with None for directories in them; objects with their
    first bytes, None where there is none; what lies below directories; and objects that will be wanted."""

    lists: dict[str, Mapping[str, StoredObject | None]] = field(default_factory=dict)
    begun: dict[str, tuple[StoredObject, bytes] | None] = field(default_factory=dict)
    known: dict[str, StoredObject] = field(default_factory=dict)
    expected: dict[str, None] = field(default_factory=dict)


_SEEN: ContextVar[Seen | None] = ContextVar("seen", default=None)


@contextmanager
def looking() -> Iterator[None]:
    """What lies at other places than the local one is asked once meanwhile, and remembered until the end; the next
    time it is asked anew."""
    token = _SEEN.set(Seen()) if _SEEN.get() is None else None
    try:
        yield
    finally:
        if token is not None:
            _SEEN.reset(token)


def looked() -> Seen | None:
    """What has been seen so far; None outside of `looking`."""
    return _SEEN.get()
