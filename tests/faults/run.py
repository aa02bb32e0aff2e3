#!/usr/bin/env python
"""Injects faults into every kind of run and feeds damaged inputs; counts what was tried and what was wrong.

    python tests/faults/run.py                      a few hundred points
    python tests/faults/run.py --long               every failing call, and thousands more
    python tests/faults/run.py --only batch,itself  some scenes, or `damaged`

Needs Linux and a C compiler. The exit code is 1 if anything was wrong. `--report FILE` keeps the counts while they
grow: called again with the same file it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.account import Account
from faults.campaign import damaged, serving, struck
from faults.harness import Mode, build_library
from faults.mutants import KINDS
from faults.scenes import SCENES

EACH: tuple[Mode, ...] = tuple(mode for mode in Mode if mode not in (Mode.OFF, Mode.COUNT, Mode.CUT))
SHORT = dict.fromkeys(EACH, 4)
LONG = {**dict.fromkeys(EACH, 30), Mode.FAIL: None, Mode.SHORT: None, Mode.FULL: None, Mode.SIGNAL: 40}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="all of it")
    parser.add_argument("--only", default="", help="scenes, separated by commas, or `damaged`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", help=f"kinds of damaged inputs, of {', '.join(KINDS)}")
    parser.add_argument("--first", type=int, metavar="N", help="the first of the damaged inputs to try, by its number")
    parser.add_argument("--last", type=int, metavar="N", help="the number after the last one")
    parser.add_argument("--workers", type=int, default=2, help="trials at a time")
    parser.add_argument("--patience", type=float, default=1.0, help="how many times longer everything may take")
    parser.add_argument("--report", type=Path, help="a JSON file for the counts, or one to go on with")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    kinds = [name for name in options.kinds.split(",") if name]
    unknown = {*only} - {"damaged", *(scene.name for scene in SCENES)} | {*kinds} - {*KINDS}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    accounts: list[Account] = []

    def account(part: str) -> Account:
        about = {"seed": options.seed, "long": options.long}
        accounts.append(Account(part, options.report, about))
        return accounts[-1]

    more = {"workers": options.workers, "patience": options.patience}
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        library = build_library(folder)
        scenes = [scene for scene in SCENES if not only or scene.name in only]
        with serving(library, folder, **more) as servers:
            for scene in scenes:
                counts = LONG if options.long else SHORT
                struck(servers, folder, scene, counts, options.seed, account(scene.name))
        if not only or "damaged" in only:
            numbers = range(20_000 if options.long else 500)[options.first : options.last]
            part = f"damaged {' '.join([*kinds, ''])}{numbers.start} to {numbers.stop}"
            damaged(library, folder, numbers, options.seed, account(part), kinds=kinds, **more)
    for one in accounts:
        print(one.told)
    return 1 if any(one.wrong for one in accounts) else 0


if __name__ == "__main__":
    sys.exit(main())
