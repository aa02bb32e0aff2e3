"""When which stage was at work: seconds per stage, and on request every single piece as a trace."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Timeline"]


class Timeline:
    """Measures stages that several workers go through.

    `busy_s` counts the time in which at least one worker was in a stage: comparable with the wall clock.
    """

    def __init__(self, keep_events: bool = False) -> None:
        self.busy_s: dict[str, float] = {}
        self._active: dict[str, int] = defaultdict(int)
        self._since: dict[str, float] = {}
        self._events: list[tuple[str, int, float, float]] | None = [] if keep_events else None
        self._began = time.perf_counter()
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One worker's time in a stage."""
        start = time.perf_counter()
        with self._lock:
            if self._active[name] == 0:
                self._since[name] = start
            self._active[name] += 1
        try:
            yield
        finally:
            end = time.perf_counter()
            with self._lock:
                self._active[name] -= 1
                if self._active[name] == 0:
                    self.busy_s[name] = self.busy_s.get(name, 0.0) + end - self._since[name]
                if self._events is not None:
                    self._events.append((name, threading.get_ident(), start, end))

    def write(self, path: Path) -> None:
        """Write the kept events in the Chrome trace format, which Perfetto opens."""
        threads: dict[int, int] = {}
        rows = [
            {
                "name": name,
                "ph": "X",
                "pid": 1,
                "tid": threads.setdefault(thread, len(threads)),
                "ts": round((start - self._began) * 1e6, 1),
                "dur": round((end - start) * 1e6, 1),
            }
            for name, thread, start, end in sorted(self._events or [], key=lambda event: event[2])
        ]
        path.write_text(json.dumps({"traceEvents": rows, "displayTimeUnit": "ms"}), encoding="utf-8")
