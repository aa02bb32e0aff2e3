"""Two ways to write, past the page cache or through it: which is the faster one here and now."""

from __future__ import annotations

__all__ = ["MIN_DIRECT", "Pace"]

MIN_DIRECT = 256 << 10  # below this the page cache collects small pieces better than a disk does
TRIALS = 4  # writes each way before one is preferred


class Pace:
    """How fast bytes are written each way, as all files of a run find it.

    Both ways are tried; then the one that was the faster when it was last used, so that a way which becomes slow is
    left. Which it is depends on the disk, and on how much fresh memory the system has at hand. `only_direct` leaves no
    choice.
    """

    def __init__(self, *, only_direct: bool) -> None:
        self.only_direct = only_direct
        self._rates = {True: 0.0, False: 0.0}  # bytes per second
        self._tried = {True: 0, False: 0}

    def is_direct(self) -> bool:
        """Which way to go next."""
        if self.only_direct:
            return True
        if min(self._tried.values()) < TRIALS:
            return self._tried[False] >= TRIALS
        return self._rates[True] > self._rates[False]

    def note(self, direct: bool, nbytes: int, seconds: float) -> None:
        """What a write took; the latest counts a quarter."""
        rate = nbytes / max(seconds, 1e-9)
        tried = self._tried[direct]
        self._rates[direct] = rate if tried == 0 else 0.75 * self._rates[direct] + 0.25 * rate
        self._tried[direct] = tried + 1
