"""Whether the engine became slower: a few comparisons with copies of the same bytes, in under two minutes.

    guard.py [--update] [--repeats 6]

Every ratio is the time of the baseline by the time in which the engine reads, computes and writes, less what the latter
takes for a tiny model; more is better. Both are from the fastest run, which other work on the machine disturbs least.
Compares them with results/guard.json and exits with 1 if one has fallen by more than 30 %, or if a command fails. With
--update it writes that file instead. Ratios depend on the machine less than times do, but they do: compare on the
machine that the file comes from.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import machine
import run
from suites import GUARD, Row

FALL = 0.3


def seconds(side: run.Record) -> float:
    """The fastest run: what the engine says of reading, computing and writing, or the wall clock for others."""
    found: float = (side["engine"]["stream_s"] if "engine" in side else side["wall_s"])["min"]
    return found


def ratio(row: Row, record: run.Record) -> float | None:
    """The ratio of a row, None if it could not be measured or start-up hides the rest."""
    fastest = {side: seconds(found) for side, found in record["sides"].items() if "wall_s" in found}
    (target,) = row.targets
    value = run.evaluate(target, fastest) if len(fastest) == len(row.sides) else None
    return round(1 / value, 3) if value is not None and value > 0 else None


def fallen(now: float | None, before: float | None) -> bool:
    """Whether a ratio is worse than it may be."""
    return now is not None and before is not None and now < (1 - FALL) * before


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the ratios that later runs are compared with")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--ours", type=Path, default=Path(sys.executable).with_name("surgery-jax"))
    parser.add_argument("--work", type=Path, default=run.HERE / "work", help="where inputs and outputs lie")
    parser.add_argument("--results", type=Path, default=run.HERE / "results", help="where guard.json lies")
    options = parser.parse_args()
    if not options.ours.exists():
        parser.error(f"no program {options.ours}")
    work = (options.work / "guard").resolve()
    committed = options.results / "guard.json"
    before = json.loads(committed.read_text())["ratios"] if committed.exists() else {}

    now: dict[str, float | None] = {}
    failed = False
    print(f"{'row':<16} {'before':>8} {'now':>8}")
    for row in GUARD.rows:
        record = run.measured(GUARD, row, "guard", work, {"ours": options.ours.absolute()}, options.repeats)
        now[row.name] = found = ratio(row, record)
        is_worse = run.failed(record) or (not options.update and fallen(found, before.get(row.name)))
        failed |= is_worse
        words = [f"{number:8.2f}" if number else f"{'—':>8}" for number in (before.get(row.name), found)]
        print(f"{row.name:<16} {' '.join(words)}  {'WORSE' if is_worse else ''}".rstrip(), flush=True)
    if options.update and not failed:
        document = {"repeats": options.repeats, "machine": machine.describe(work, None), "ratios": now}
        committed.parent.mkdir(parents=True, exist_ok=True)
        committed.write_text(json.dumps(document, indent=1) + "\n")
    elif not before:
        print("nothing to compare with: --update writes it")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
