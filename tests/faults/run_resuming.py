#!/usr/bin/env python
"""Stops runs at many calls, cuts the power, goes on with them, and holds to it that nothing is lost.

    python tests/faults/run_resuming.py           a few points of every scene
    python tests/faults/run_resuming.py --long    at least 500 kills, cuts, failing calls, signals and full disks each
    python tests/faults/run_resuming.py --only resume-orbax,resume-batch

The exit code is 1 if anything was wrong. `--report FILE` keeps the counts while they grow: called again with the same
file it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.account import Account
from faults.harness import Mode, Server, build_library
from faults.resuming import RESUMED, resumed
from faults.trial import Scene, Trial

KINDS = {
    "kill": (Mode.KILL_BEFORE, Mode.KILL_AFTER), "cut": (Mode.CUT,), "fail": (Mode.FAIL,), "signal": (Mode.SIGNAL,),
    "full": (Mode.FULL,),
}  # fmt: skip
LONG = 512  # points of every kind, over all scenes
SHORT = 6  # of every scene and kind


class Work:
    """The scenes, with the counts of each; several threads may be at work on different ones."""

    def __init__(self, scenes: Sequence[Scene], folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        about = {"seed": options.seed, "long": options.long}
        self.accounts = {scene.name: Account(scene.name, options.report, about) for scene in scenes}
        self.library = build_library(folder)

    def strike(self, scene: Scene, kind: str) -> None:
        """What is left of one kind of fault in one scene; what has no sync loses all in a power cut."""
        account, struck = self.accounts[scene.name], [one for one in RESUMED if kind != "cut" or one.is_synced]
        each = -(-LONG // len(struck)) if self.options.long else SHORT
        numbers = range(account.tried[kind], each)
        if scene not in struck or not numbers:
            return
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        with Server(self.library, folder, patience=self.options.patience) as server:
            trial = Trial(scene, folder, server)
            for number in numbers:
                draw = random.Random(f"{self.options.seed} {scene.name} {kind} {number}")
                account.add(kind, list(resumed(trial, draw, KINDS[kind][number % len(KINDS[kind])])))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="many points")
    parser.add_argument("--only", default="", help="scenes, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="scenes at a time")
    parser.add_argument("--patience", type=float, default=1.0, help="how many times longer everything may take")
    parser.add_argument("--report", type=Path, help="a JSON file for the counts, or one to go on with")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    unknown = set(only) - {scene.name for scene in RESUMED}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    scenes = [scene for scene in RESUMED if not only or scene.name in only]
    with tempfile.TemporaryDirectory(prefix="resuming-") as name, ThreadPoolExecutor(options.workers) as pool:
        work = Work(scenes, Path(name), options)
        for kind in KINDS:
            list(pool.map(partial(work.strike, kind=kind), scenes))
    for account in work.accounts.values():
        account.close()
        print(account.told)
    return 1 if any(account.wrong for account in work.accounts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
