"""What a run did: bytes, seconds, compilations, memory."""

from __future__ import annotations

import dataclasses
import resource
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Progress", "Report", "Share", "peak_rss_bytes"]


class Progress:
    """Bytes done so far; `show(done, total)` is called from the main thread now and then."""

    def __init__(self, show: Callable[[int, int], None] | None = None) -> None:
        self.done = 0
        self.total = 0
        self._show = show
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        """Count bytes that are finished."""
        with self._lock:
            self.done += nbytes

    def tick(self) -> None:
        """Show."""
        if self._show is not None:
            self._show(self.done, self.total)


@dataclass(frozen=True)
class Share:
    """What one process of a run did: bytes that it read from and wrote to files, and seconds of streaming."""

    process: str
    bytes_read: int
    bytes_written: int
    stream_s: float

    @classmethod
    def of(cls, passes: Iterable[Share]) -> Share:
        """What one process did in several passes."""
        rows = list(passes)
        read, written = (sum(getattr(row, name) for row in rows) for name in ("bytes_read", "bytes_written"))
        return cls(rows[0].process, read, written, sum(row.stream_s for row in rows))


@dataclass(frozen=True)
class Report:
    """The account of one run. Sizes in bytes, times in seconds.

    `stream_s` is the time of reading, computing and writing; `busy_s` the part of it in which a stage was at work, and
    `overlap` the busiest stage's share of it: near 1 the other stages cost nothing. `compile_s` is the part in which
    JAX traced and compiled, or loaded what it had compiled before. `processes` are those that shared the work; of
    several, times and peaks are the largest. `leftovers` says, a sentence each, what runs that were killed had left
    beside the outputs.
    """

    outputs: tuple[str, ...]
    num_tensors: int
    num_groups: int
    num_compilations: int
    num_host_fallbacks: int
    bytes_moved: int
    bytes_read: int
    bytes_computed: int
    peak_buffer_bytes: int
    peak_rss_bytes: int
    wall_s: float
    stream_s: float
    compile_s: float
    busy_s: dict[str, float] = field(default_factory=dict)
    processes: tuple[Share, ...] = ()
    printed: str = ""
    summary: str = ""
    leftovers: tuple[str, ...] = ()

    @property
    def overlap(self) -> float:
        """The busiest stage's share of the streaming time."""
        return max(self.busy_s.values(), default=0.0) / self.stream_s if self.stream_s else 0.0

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self) | {"overlap": self.overlap}


def peak_rss_bytes() -> int:
    """The most memory that this process has held so far.

    The kernel's own high-water mark is preferred: the other also counts what a parent held before it started us.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024
