"""What was tried and what was wrong, kept in a JSON file while it grows, so that what is stopped can go on."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402

__all__ = ["Account"]

EVERY_S = 5.0


class Account:
    """One part of a report: counts by kind, most memory, and sentences on what was wrong. Safe between threads.

    A part that the file has already goes on, if seed and commit are the same. Several processes may keep parts of one
    file. Without a file nothing is kept.
    """

    def __init__(self, part: str, path: Path | None = None, about: Mapping[str, Any] | None = None) -> None:
        self.part = part
        self.path = path
        self.about = {**(about or {}), **(_commit() if path else {})}
        self.tried: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.peak = 0
        self._seconds = 0.0
        self._began = time.monotonic()
        self._kept = 0.0
        self._lock = threading.Lock()
        before = _read(path).get(part) if path else None
        if before is not None:
            known = {key: before[key] for key in self.about}
            if known != self.about:
                raise SystemExit(f"{path} is about {known}, not {self.about}: name another file")
            self.tried.update(before["tried"])
            self.wrong += before["wrong"]
            self.peak = before["peak_bytes"]
            self._seconds = before["seconds"]

    def add(self, kind: str, wrong: Sequence[str] = (), peak: int = 0) -> None:
        """One more of a kind, and what was wrong with it, which is printed too."""
        for sentence in wrong:
            print(sentence[:600], file=sys.stderr, flush=True)
        with self._lock:
            self.tried[kind] += 1
            self.wrong += wrong
            self.peak = max(self.peak, peak)
            if time.monotonic() - self._kept > EVERY_S:
                self._write(complete=False)

    def close(self) -> None:
        """All has been tried."""
        with self._lock:
            self._write(complete=True)

    @property
    def told(self) -> str:
        """The sum in a sentence."""
        return f"{self.part}: {self.tried.total()} tried, {len(self.wrong)} wrong, at most {self.peak >> 20} MiB"

    def _write(self, complete: bool) -> None:
        self._kept = time.monotonic()
        if self.path is None:
            return
        mine = {
            **self.about,
            "complete": complete,
            "seconds": round(self._seconds + self._kept - self._began),
            "peak_bytes": self.peak,
            "total": self.tried.total(),
            "tried": dict(sorted(self.tried.items())),
            "wrong": self.wrong,
        }
        with _alone(self.path.parent):
            whole = json.dumps({"machine": describe(HERE, None), **_read(self.path), self.part: mine}, indent=1)
            staged = self.path.with_suffix(f".{os.getpid()}")
            staged.write_text(whole + "\n")
            staged.replace(self.path)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process changes a report in a folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _commit() -> dict[str, Any]:
    """The commit that is tried, and whether the tree differs from it."""
    asked = {"commit": ("rev-parse", "--short", "HEAD"), "changed": ("status", "--porcelain", "surgery_jax", "tests")}
    said = {
        key: subprocess.run(("git", *words), cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
        for key, words in asked.items()
    }
    return {"commit": said["commit"], "changed": bool(said["changed"])}
