"""When which stage was at work: seconds per stage, and on request every single piece as a trace."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .devices import device_trace
from .observers import Observer, Pass
from .report import Account

__all__ = ["Timeline", "Trace"]


class Timeline:
    """Measures stages that several workers go through, and tells an observer of every single piece.

    `busy_s` counts the time in which at least one worker was in a stage: comparable with the wall clock.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self.busy_s: dict[str, float] = {}
        self._observer = observer or Observer()
        self._active: dict[str, int] = defaultdict(int)
        self._since: dict[str, float] = {}
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
            self._observer.stage(name, start, end)


class Trace(Observer):
    """Writes to a folder, for each pass in the place of the one before, when which thread was in which stage; and, if
    devices have work, what JAX's profiler saw."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._began = 0.0
        self._events: list[tuple[str, int, float, float]] = []
        self._devices = ExitStack()

    def pass_begins(self, work: Pass) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._events = []
        self._devices.enter_context(device_trace(str(self._folder) if work.program.needs_device else None))
        self._began = time.perf_counter()

    def stage(self, name: str, start: float, end: float) -> None:
        self._events.append((name, threading.get_ident(), start, end))  # which is one step for other threads

    def pass_ends(self, account: Account | None) -> None:
        self._devices.close()
        if account is not None:
            self._write(self._folder / "stages.trace.json")

    def _write(self, path: Path) -> None:
        """The events in the Chrome trace format, which Perfetto opens."""
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
            for name, thread, start, end in sorted(self._events, key=lambda event: event[2])
        ]
        path.write_text(json.dumps({"traceEvents": rows, "displayTimeUnit": "ms"}), encoding="utf-8")
