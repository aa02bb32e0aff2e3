"""Many faults in every kind of run, and many damaged inputs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .account import Account
from .harness import Mode, Point, Server
from .mutants import Mutants, faults_of, seeds
from .trial import Scene, Trial

__all__ = ["damaged", "struck"]


def struck(
    library: Path,
    folder: Path,
    counts: Mapping[Mode, int | None],
    seed: int,
    scenes: Iterable[Scene],
    account_of: Callable[[str], Account],
    *,
    workers: int = 2,
    patience: float = 1.0,
) -> None:
    """Faults of each mode in each scene: at all calls (None) or so many.

    What the account of a scene has already is not tried again. A call that a run does not come to, since its threads
    share the work otherwise, is `missed`.
    """

    def work(scene: Scene) -> None:
        account = account_of(scene.name)
        with Server(library, folder, patience=patience) as server:
            trial = Trial(scene, folder, server)
            for mode, count in counts.items():
                kind = mode.name.lower()
                points = list(trial.points(mode, random.Random(f"{seed} {scene.name} {kind}"), count))
                for point in points[account.tried[kind] + account.tried[f"{kind} missed"] :]:
                    is_hit, wrong, peak = trial.strike(point)
                    account.add(kind if is_hit else f"{kind} missed", wrong, peak)
        account.close()

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, scenes))


def damaged(
    library: Path, folder: Path, numbers: range, seed: int, account: Account, *, workers: int = 2, patience: float = 1.0
) -> None:
    """Damaged inputs, each by its number; those that the account has are not tried again."""
    left = iter(numbers[account.tried.total() :])
    taking = threading.Lock()

    def work(worker: int) -> None:
        own = folder / f"damaged-{worker}"
        own.mkdir()
        root = own / "seeds"
        root.mkdir()
        with Server(library, own, modules=(), patience=patience) as server:
            mutants = Mutants(seeds(root, server), own / "mutant", seed)
            while True:
                with taking:
                    number = next(left, None)
                if number is None:
                    return
                mutant = mutants.make(number)
                done = server.run(mutant.command, mutant.folder, Point(Mode.OFF, 0), timeout_s=60)
                account.add(f"{mutant.kind}, exit {done.code}", faults_of(mutant, done), done.peak)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    account.close()
