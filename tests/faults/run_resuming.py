#!/usr/bin/env python
"""Stops runs at many calls, cuts the power, goes on with them, and holds to it that nothing is lost.

    python tests/faults/run_resuming.py           a few points of every scene
    python tests/faults/run_resuming.py --long    at least 500 kills, and as many cuts, failing calls and signals

Prints the counts as JSON, and what was wrong; the exit code is 1 if anything was.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.harness import Mode, Server, build_library
from faults.resuming import RESUMED, resumed
from faults.trial import Scene, Trial

KINDS = {
    "kill": (Mode.KILL_BEFORE, Mode.KILL_AFTER), "cut": (Mode.CUT,), "fail": (Mode.FAIL,), "signal": (Mode.SIGNAL,)
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="many points")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    each = -(-512 // len(RESUMED)) if args.long else 6
    tried: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build_library(folder)

        def work(scene: Scene) -> None:
            draw = random.Random(f"{args.seed} {scene.name}")
            with Server(library, folder) as server:
                trial = Trial(scene, folder, server)
                for kind, modes in KINDS.items():
                    if kind == "cut" and not scene.is_synced:
                        continue
                    for number in range(each):
                        found = list(resumed(trial, draw, modes[number % len(modes)]))
                        tried[f"{scene.name} {kind}"] += 1
                        wrong.extend(found)
                        print(*found, sep="\n", end="\n" * bool(found), file=sys.stderr)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, RESUMED))
    print(json.dumps({"tried": dict(sorted(tried.items())), "total": tried.total(), "wrong": len(wrong)}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
