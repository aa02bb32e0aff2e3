"""What a run did: bytes, seconds, compilations, memory."""

from __future__ import annotations

import dataclasses
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import Notice
from .observers import Observer, Pass

__all__ = ["Account", "Amounts", "Figures", "Progress", "Report", "Share", "peak_rss_bytes"]


class Progress(Observer):
    """Shows how far a pass is: `show(done, total)`, in bytes, is called from the main thread now and then."""

    def __init__(self, show: Callable[[int, int], None]) -> None:
        self._show = show
        self._done = self._total = 0
        self._lock = threading.Lock()

    def pass_begins(self, work: Pass) -> None:
        self._done, self._total = 0, work.nbytes

    def advanced(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes

    def tick(self) -> None:
        self._show(self._done, self._total)


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
class Account:
    """What a pass over the data did, or several, in all processes. The fields are those of `Report`."""

    processes: tuple[Share, ...]
    num_compilations: int
    num_host_fallbacks: int
    peak_buffer_bytes: int
    stream_s: float
    compile_s: float
    busy_s: Mapping[str, float]

    @classmethod
    def of(cls, passes: Sequence[Account]) -> Account:
        """The account of several passes as that of one: sums, and the highest peak."""
        busy: Counter[str] = Counter()
        for done in passes:
            busy.update(done.busy_s)
        rows = zip(*(done.processes for done in passes), strict=True)
        return cls(
            tuple(Share.of(row) for row in rows),
            sum(done.num_compilations for done in passes),
            sum(done.num_host_fallbacks for done in passes),
            max(done.peak_buffer_bytes for done in passes),
            sum(done.stream_s for done in passes),
            sum(done.compile_s for done in passes),
            dict(busy),
        )


class Figures(Observer):
    """The figures of a session, from its first moment on. `num_passes`, and the bytes moved, read and computed, are
    those of passes that write."""

    def __init__(self) -> None:
        self.num_passes = 0
        self.bytes_moved = self.bytes_read = self.bytes_computed = self.bytes_resumed = 0
        self.account = Account((), 0, 0, 0, 0.0, 0.0, {})
        self._work: Pass | None = None
        self._began = time.perf_counter()

    def pass_begins(self, work: Pass) -> None:
        self._work = work
        self.num_passes += work.is_last

    def pass_ends(self, account: Account | None) -> None:
        work, self._work = self._work, None  # it is large, and another one may follow
        if account is None:
            return
        self.account = Account.of([self.account, account] if self.account.processes else [account])
        if work is not None and work.is_last:
            moved, read, computed = work.schedule.amounts(work.left)
            self.bytes_moved += moved
            self.bytes_read += read
            self.bytes_computed += computed
            all_moved, _, all_computed = work.schedule.amounts(work.schedule.tasks)
            self.bytes_resumed += all_moved + all_computed - moved - computed

    def of(self, kind: type) -> dict[str, Any]:
        """All that a report of this kind, a dataclass, has a field for."""
        found = {
            **vars(self.account),
            "num_passes": self.num_passes,
            "bytes_moved": self.bytes_moved,
            "bytes_read": self.bytes_read,
            "bytes_computed": self.bytes_computed,
            "bytes_resumed": self.bytes_resumed,
            "peak_rss_bytes": peak_rss_bytes(),
            "wall_s": time.perf_counter() - self._began,
        }
        return {field.name: found[field.name] for field in dataclasses.fields(kind) if field.name in found}


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What was done, by all passes together. Sizes in bytes, times in seconds.

    `stream_s` is the time of reading, computing and writing; `compile_s` the part of it in which JAX traced and
    compiled, or loaded what it had compiled before. Of several processes, times and peaks are the largest.
    `bytes_resumed` are those of the outputs that an earlier run had written; what it had moved and computed is not
    counted again. `tensors_reused` and `bytes_reused` are those that were taken over from earlier outputs, and `reused`
    says from which, a sentence each. `leftovers` says, a sentence each, what runs that did not come to their end had
    left beside the outputs.
    """

    num_compilations: int
    bytes_moved: int
    bytes_read: int
    bytes_computed: int
    peak_buffer_bytes: int
    peak_rss_bytes: int
    wall_s: float
    stream_s: float
    compile_s: float
    bytes_resumed: int = 0
    tensors_reused: int = 0
    bytes_reused: int = 0
    reused: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report(Amounts):
    """The account of one run.

    `busy_s` is the part of `stream_s` in which a stage was at work, and `overlap` the busiest stage's share of it: near
    1 the other stages cost nothing. `processes` are those that shared the work. `accounting` says how many tensors of
    the inputs were `read` and `dropped`, how many of the outputs are `moved`, `computed` and `created`, and which ones
    of the inputs are `untouched`; it is empty where nothing was left to do.
    """

    outputs: tuple[str, ...]
    num_tensors: int
    num_groups: int
    num_host_fallbacks: int
    busy_s: Mapping[str, float] = field(default_factory=dict)
    processes: tuple[Share, ...] = ()
    printed: str = ""
    summary: str = ""
    warnings: tuple[Notice, ...] = ()
    accounting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overlap(self) -> float:
        """The busiest stage's share of the streaming time."""
        return max(self.busy_s.values(), default=0.0) / self.stream_s if self.stream_s else 0.0

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        warnings = [warning.as_json() for warning in self.warnings]
        return dataclasses.asdict(self) | {"overlap": self.overlap, "warnings": warnings}


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
