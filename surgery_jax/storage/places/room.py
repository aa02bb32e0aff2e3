"""What parts that are not whole may hold in memory, all together."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cache
from typing import Protocol

__all__ = ["Room", "room"]


class HeldPart(Protocol):
    """What may hold a buffer of `size` bytes, and can give it up while nobody has its lock."""

    size: int
    lock: threading.Lock

    def put_aside(self) -> None:
        """Hold it no longer; the lock is held."""


class Room:
    """What parts that are not whole may hold at once, in bytes."""

    def __init__(self) -> None:
        self.limit = 1 << 28
        self.used = self.peak = 0
        self._parts: OrderedDict[HeldPart, None] = OrderedDict()  # those that hold a buffer, the latest last
        self._changed = threading.Condition()

    def take(self, part: HeldPart) -> None:
        """Room for a part; another one is put aside if there is none."""
        while True:
            with self._changed:
                if not self._parts or self.used + part.size <= self.limit:
                    self.used += part.size
                    self.peak = max(self.peak, self.used)
                    self._parts[part] = None
                    return
                victim = next((one for one in self._parts if one.lock.acquire(blocking=False)), None)
                if victim is None:  # all of them are being filled or sent
                    self._changed.wait(0.1)
                    continue
            try:
                victim.put_aside()
            finally:
                victim.lock.release()

    def use(self, part: HeldPart) -> None:
        """It was written to."""
        with self._changed:
            if part in self._parts:
                self._parts.move_to_end(part)

    def give(self, part: HeldPart) -> None:
        """It holds nothing any more."""
        with self._changed:
            if part in self._parts:
                del self._parts[part]
                self.used -= part.size
                self._changed.notify_all()


@cache
def room() -> Room:
    """The room of this process."""
    return Room()
