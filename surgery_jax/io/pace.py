"""Two ways to write, past the page cache or through it: which is the faster one here and now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter

__all__ = ["MIN_DIRECT", "Pace", "cached_room"]

MIN_DIRECT = 256 << 10  # below this the page cache collects small pieces better than a disk does
WINDOW = 128 << 20  # bytes after which the ways are compared


def cached_room(proc: Path = Path("/proc")) -> float:
    """How many bytes the page cache takes before who writes must wait for the disk; no bound where nothing tells."""
    with suppress(OSError, ValueError, StopIteration):
        if limit := int((proc / "sys/vm/dirty_bytes").read_text()):
            return limit
        lines = (proc / "meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        return available * int((proc / "sys/vm/dirty_ratio").read_text()) / 100
    return float("inf")


class Pace:
    """How fast all workers together write, which is not what one of them sees: the cache takes one writer of a file at
    a time, a disk takes several.

    Both ways are tried, then the one that was the faster when it was last used, so that a way which becomes slow is
    left. Which it is depends on the disk, and on how much fresh memory the system has at hand. `only_direct` leaves no
    choice: what the cache cannot hold is not tried with it, since the disk would be busy with that when it is the
    turn of the other way.
    """

    def __init__(self, *, only_direct: bool, clock: Callable[[], float] = perf_counter) -> None:
        self.only_direct = only_direct
        self._clock = clock
        self._way = False
        self._rates: dict[bool, float] = {}  # bytes per second
        self._since: float | None = None  # of the first write that went this way
        self._bytes = 0
        self._lock = threading.Lock()

    def is_direct(self) -> bool:
        """Which way to go next."""
        return self.only_direct or self._way

    def note(self, direct: bool, nbytes: int) -> None:
        """A write is done."""
        if self.only_direct or direct is not self._way:
            return
        with self._lock:
            now = self._clock()
            if self._since is None:
                self._since, self._bytes = now, 0
                return
            self._bytes += nbytes
            if self._bytes < WINDOW:
                return
            rate = self._rates[direct] = self._bytes / max(now - self._since, 1e-9)
            self._since, self._bytes = now, 0
            if self._rates.get(not direct, float("inf")) > rate:
                self._way, self._since = not direct, None
