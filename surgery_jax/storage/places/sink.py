"""What takes the parts of a file, and how long these are."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .base import USUAL_PART
from .looking import StoredObject

if TYPE_CHECKING:
    from .remote import RemotePlace

__all__ = ["UploadSink", "part_bytes"]

_MOST_PARTS = 10_000
_STEP = 1 << 20


def part_bytes(size: int) -> int:
    """How long the parts of a file of so many bytes are."""
    return max(USUAL_PART, -(-size // (_MOST_PARTS * _STEP)) * _STEP)


class UploadSink:
    """Where the parts of one file go. Each method but `abort` is called for a part by one thread at a time, and raises
    OSError."""

    def __init__(self, store: RemotePlace) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._made: set[str] = set()  # objects that are to be removed, but for the file itself

    def send(self, number: int, data: bytearray) -> None:
        """A part, for good."""
        raise NotImplementedError

    def put_aside(self, number: int, data: bytearray) -> None:
        """A part that may change."""
        raise NotImplementedError

    def fetch(self, number: int, offset: int, target: memoryview) -> None:
        """Bytes of a part that was put aside."""
        raise NotImplementedError

    def adopt(self, number: int, size: int) -> None:
        """A part that was put aside is as it must be."""
        raise NotImplementedError

    def begin(self) -> str:
        """Other processes will send parts too: what they must know for that."""
        return ""

    def join(self, told: str) -> None:
        """Send parts to what another process has begun, which `told` so much."""

    def hand_in(self, number: int, *, is_sent: bool) -> Sequence[str]:
        """What is known of a part that was sent or put aside, as JSON, for the process that completes the file."""
        raise NotImplementedError

    def take_in(self, number: int, told: Sequence[str], *, is_sent: bool) -> None:
        """A part that another process has sent or put aside."""
        raise NotImplementedError

    def fetch_foreign(self, told: Sequence[str], offset: int, target: memoryview) -> None:
        """Bytes of a part that another process has put aside, which is removed with all others."""
        name, found = self.foreign(told)
        self._store.fetch(name, found, offset, [target])

    def foreign(self, told: Sequence[str]) -> tuple[str, StoredObject]:
        """The object that another process has made, which is ours to remove now."""
        name, size, version = told
        with self._lock:
            self._made.add(name)
        return name, StoredObject(int(size), version)

    def resume(self, told: str) -> dict[int, int]:
        """Go on with what an earlier run has begun: the lengths of the parts that were sent, by number."""
        raise NotImplementedError

    def keep(self) -> None:
        """Leave what was sent for another run, and nothing else."""
        raise NotImplementedError

    def complete(self) -> StoredObject:
        """All parts are there: let the file appear."""
        raise NotImplementedError

    def abort(self) -> None:
        """Remove whatever the store has of it; may be called again."""
        raise NotImplementedError
