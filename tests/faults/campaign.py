"""Many faults in every kind of run, and many damaged inputs; the counts of what was tried and what was wrong."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .harness import Mode, Point, Scene, Server, Trial, points
from .mutants import faults_of, mutants, seeds
from .scenes import SCENES

__all__ = ["damaged", "struck"]

WORKERS = 2


class _Tally:
    """Counts by kind, and sentences on what was wrong."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tried: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._tell = tell

    def add(self, kind: str, wrong: Sequence[str]) -> None:
        with self._lock:
            self.tried[kind] += 1
            self.wrong += wrong
            for sentence in wrong:
                self._tell(sentence)


def struck(
    library: Path,
    folder: Path,
    counts: dict[Mode, int | None],
    seed: int,
    *,
    scenes: Iterable[Scene] = SCENES,
    tell: Callable[[str], None] = lambda sentence: None,
) -> tuple[Counter[str], list[str]]:
    """Faults of each mode in each scene: all calls (None) or so many. Gives what was tried and what was wrong."""
    tally = _Tally(tell)

    def work(scene: Scene) -> None:
        draw = random.Random(f"{seed} {scene.name}")
        with Server(library, folder) as server:
            trial = Trial(scene, folder, server)
            for mode, count in counts.items():
                for point in points(trial.calls, mode, draw, count):
                    tally.add(f"{scene.name} {mode.name.lower()}", trial.strike(point))

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, scenes))
    return tally.tried, tally.wrong


def damaged(
    library: Path, folder: Path, count: int, seed: int, *, tell: Callable[[str], None] = lambda sentence: None
) -> tuple[Counter[str], list[str], int]:
    """So many damaged inputs. Gives the exit codes, what was wrong, and the most memory that one took."""
    tally = _Tally(tell)
    peaks: list[int] = []

    def work(worker: int) -> None:
        own = folder / f"damaged-{worker}"
        own.mkdir()
        draw = random.Random(f"{seed} {worker}")
        with Server(library, own, modules=()) as server:
            root = own / "seeds"
            root.mkdir()
            for mutant in mutants(seeds(root, server), own / "mutant", draw, count // WORKERS):
                done = server.run(mutant.command, mutant.folder, Point(Mode.OFF, 0), timeout_s=30)
                peaks.append(done.peak)
                tally.add(f"exit {done.code}", faults_of(mutant, done))

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, range(WORKERS)))
    return tally.tried, tally.wrong, max(peaks)


def account(tried: Counter[str], wrong: Sequence[str]) -> dict[str, Any]:
    """Counts for a report."""
    return {
        "tried": dict(sorted(tried.items())),
        "total": tried.total(),
        "wrong": len(wrong),
        "first": list(wrong[:20]),
    }
