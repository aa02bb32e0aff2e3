#!/usr/bin/env python
"""Injects faults into every kind of run and feeds damaged inputs; counts what was tried and what was wrong.

    python tests/faults/run.py                a few hundred points
    python tests/faults/run.py --long         every call, a thousand signals, twenty thousand damaged inputs
    python tests/faults/run.py --only batch   one scene, or `damaged`

Needs Linux and a C compiler. The exit code is 1 if anything was wrong; `--report FILE` keeps the counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.campaign import account, damaged, struck
from faults.harness import Mode, build_library
from faults.scenes import SCENES

SHORT = dict.fromkeys((Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.FAIL, Mode.SHORT, Mode.SIGNAL), 8)
LONG = dict.fromkeys((Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.FAIL, Mode.SHORT, Mode.SIGNAL), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="every point")
    parser.add_argument("--only", default="", help="scenes, separated by commas, or `damaged`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="a JSON file for the counts")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    scenes = [scene for scene in SCENES if not only or scene.name in only]
    found: dict[str, object] = {"seed": options.seed, "long": options.long}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        library = build_library(folder)
        if scenes:
            began = time.monotonic()
            tried, wrong = struck(
                library, folder, LONG if options.long else SHORT, options.seed, scenes=scenes, tell=say
            )
            found["faults"] = account(tried, wrong) | {"seconds": round(time.monotonic() - began)}
            failed += len(wrong)
            say(f"{tried.total()} faults in {len(scenes)} kinds of run, {len(wrong)} wrong")
        if not only or "damaged" in only:
            began = time.monotonic()
            codes, wrong, peak = damaged(library, folder, 20_000 if options.long else 500, options.seed, tell=say)
            found["damaged"] = account(codes, wrong) | {"seconds": round(time.monotonic() - began), "peak_bytes": peak}
            failed += len(wrong)
            say(f"{codes.total()} damaged inputs, {len(wrong)} wrong, at most {peak >> 20} MiB")
    if options.report is not None:
        options.report.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if failed else 0


def say(sentence: str) -> None:
    print(sentence[:600], flush=True)


if __name__ == "__main__":
    sys.exit(main())
