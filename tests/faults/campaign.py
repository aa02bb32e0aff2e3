"""Many faults in every kind of run, and many damaged inputs."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from .account import Account
from .harness import Mode, Point, Server
from .mutants import Mutants, faults_of, seeds
from .trial import Scene, Trial

__all__ = ["damaged", "serving", "struck"]

T = TypeVar("T")


@contextmanager
def serving(library: Path, folder: Path, workers: int = 2, patience: float = 1.0) -> Iterator[list[Server]]:
    """Servers that try so many faults at a time."""
    with ExitStack() as stack:
        yield [stack.enter_context(Server(library, folder, patience=patience)) for _ in range(workers)]


def struck(
    servers: Sequence[Server],
    folder: Path,
    scene: Scene,
    counts: Mapping[Mode, int | None],
    seed: int,
    account: Account,
) -> None:
    """Faults of each mode in a scene: at all calls (None) or so many.

    What the account has already is not tried again. A call that a run does not come to, since its threads share the
    work otherwise, is `missed`.
    """
    folders = [Path(tempfile.mkdtemp(dir=folder)) for _ in servers]
    with ThreadPoolExecutor(len(servers)) as pool:
        trials = list(pool.map(partial(Trial, scene), folders, servers))
        points = _Shared(_left(trials[0], counts, seed, account))
        list(pool.map(lambda trial: _strike_all(trial, points, account), trials))
    account.close()


class _Shared(Iterator[T]):
    """What several threads take from."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)


def _strike_all(trial: Trial, points: Iterator[Point], account: Account) -> None:
    for point in points:
        kind = point.mode.name.lower()
        is_hit, wrong, peak = trial.strike(point)
        account.add(kind if is_hit else f"{kind} missed", wrong, peak)


def _left(trial: Trial, counts: Mapping[Mode, int | None], seed: int, account: Account) -> list[Point]:
    """What is still to be tried."""
    found: list[Point] = []
    for mode, count in counts.items():
        kind = mode.name.lower()
        points = list(trial.points(mode, random.Random(f"{seed} {trial.scene.name} {kind}"), count))
        found += points[account.tried[kind] + account.tried[f"{kind} missed"] :]
    return found


def damaged(
    library: Path,
    folder: Path,
    numbers: range,
    seed: int,
    account: Account,
    *,
    kinds: Collection[str] = (),
    workers: int = 2,
    patience: float = 1.0,
) -> None:
    """Damaged inputs of these kinds, or of all, each by its number; those that the account has are not tried again."""
    left = _Shared(numbers[account.tried.total() :])

    def work(worker: int) -> None:
        own = folder / f"damaged-{worker}"
        own.mkdir()
        root = own / "seeds"
        root.mkdir()
        with Server(library, own, patience=patience) as server:
            mutants = Mutants(seeds(root, server, kinds), own / "mutant", seed, server)
            for number in left:
                mutant = mutants.make(number)
                done = server.run(mutant.command, mutant.folder, Point(Mode.OFF, 0), timeout_s=60)
                account.add(f"{mutant.kind}, exit {done.code}", faults_of(mutant, done), done.peak)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    account.close()
