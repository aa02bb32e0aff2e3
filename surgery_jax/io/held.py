"""Ranges of files that several tasks read one after the other: they are read once, and held until others come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

__all__ = ["HeldRanges"]


class HeldRanges:
    """The bytes of ranges, those that were used last, never more than `limit` of them. Of tasks that want the same
    range at once one reads it, and the others wait for that."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.peak = 0
        self._used = 0
        self._ranges: dict[Hashable, numpy.ndarray] = {}  # in the order of their use
        self._reading: set[Hashable] = set()
        self._changed = threading.Condition()
        self._broken = False

    def fill(self, key: Hashable, target: numpy.ndarray, read: Callable[[], object]) -> None:
        """Bring the bytes of a range into a buffer: what is held of it, or what `read` brings there.

        Raises:
            InterruptedError: the run has failed meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._broken or key not in self._reading)
            if self._broken:
                raise InterruptedError
            found = self._ranges.pop(key, None)
            if found is None:
                self._reading.add(key)
            else:
                self._ranges[key] = found
        if found is not None:
            target[:] = found
            return
        try:
            read()
            self._hold(key, target)
        finally:
            with self._changed:
                self._reading.remove(key)
                self._changed.notify_all()

    def _hold(self, key: Hashable, content: numpy.ndarray) -> None:
        """Hold a copy, if there is room when older ones are let go."""
        if content.nbytes > self.limit:
            return
        with self._changed:
            while self._used + content.nbytes > self.limit and self._ranges:
                self._used -= self._ranges.pop(next(iter(self._ranges))).nbytes
            if self._used + content.nbytes > self.limit:  # others are just being copied
                return
            self._used += content.nbytes
            self.peak = max(self.peak, self._used)
        copied = content.copy()
        with self._changed:
            self._ranges[key] = copied

    def stop(self) -> None:
        """Wake and refuse everyone who waits: the run has failed."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()
