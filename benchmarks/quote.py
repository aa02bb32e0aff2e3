"""Puts measured results into the documentation, so that no number there is typed.

    quote.py [--write]

A page holds `<!-- quote NAME FORM -->` and `<!-- end of quote -->`; what is between them is made from
`results/NAME.json`; what was not measured yet has no rows. Forms: `summary` compares the engine with the other sides in
one line a row, `targets` lists what was asked and reached, `sides` what every side took, `machine` says where; of
simulate.py `predictions` holds them to real runs, `planning` tells what it took to plan for a large model and what was
predicted, and `bulk` what was predicted of a batch by many hosts. Exits with 1 if a page is not up to date, unless it
is to be written.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from run import MEASURES, describe, verdict

HERE = Path(__file__).resolve().parent
PAGES = (HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md")))
QUOTE = re.compile(r"(<!-- quote (\S+) (\S+) -->\n).*?(<!-- end of quote -->)", re.DOTALL)
Record = dict[str, Any]


def quoted(text: str, results: Path = HERE / "results") -> str:
    """A page with every quotation renewed."""

    def renew(found: re.Match[str]) -> str:
        path = results / f"{found[2]}.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
        return f"{found[1]}\n{FORMS[found[3]](result)}\n\n{found[4]}"

    return QUOTE.sub(renew, text)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _measured(row: Record, side: str) -> Record | None:
    found: Record = row["sides"].get(side, {})
    return found if "wall_s" in found else None


def _amount(nbytes: float) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.0f} MB"


def summary(result: Record) -> str:
    """Rows in which the engine has a plain copy and BrainSurgery beside it."""
    rows = []
    for row in result["rows"]:
        synced = next((side for side in row["sides"] if side.endswith("&& sync")), "")
        sides = [_measured(row, side) for side in (synced, "ours", "ours --no-sync", "brainsurgery")]
        if not all(sides):
            continue
        copy, ours, quick, theirs = (
            {name: one[name]["median"] for name in ("wall_s", "cpu_s", "rss_bytes")} for one in sides if one
        )
        rows.append(
            (
                row["about"],
                f"{ours['wall_s']:.2f} s",
                f"{ours['wall_s'] / copy['wall_s']:.2f}",
                f"{quick['wall_s']:.2f} s",
                f"{theirs['wall_s']:.1f} s",
                f"{theirs['wall_s'] / quick['wall_s']:.1f}",
                f"{theirs['cpu_s'] / quick['cpu_s']:.1f}",
                _amount(ours["rss_bytes"]),
                _amount(theirs["rss_bytes"]),
            )
        )
    theirs_over_ours = ("its time / ours", "its processor time / ours")
    head = ("work", "time", "time / plain copy", "with `--no-sync`", "BrainSurgery", *theirs_over_ours)
    return _table((*head, "peak memory", "its peak"), rows)


def targets(result: Record) -> str:
    """What was asked and what was reached, with the spread over the rounds."""
    rows = []
    for row in result["rows"]:
        for target in row["targets"]:
            if target["value"] is None:
                rows.append((row["row"], describe(target), "not measured", "", ""))
                continue
            scale = 1.0 if "per" in target else MEASURES[target["measure"]].scale
            low, high = (target["rounds"][name] / scale for name in ("min", "max"))
            is_bound = "at_most" in target or "at_least" in target
            met = ("yes" if verdict(target["met"]) == "ok" else "**no**") if is_bound else "recorded"
            rows.append(
                (row["row"], describe(target), f"{target['value'] / scale:.3g}", f"{low:.3g} to {high:.3g}", met)
            )
    return _table(("row", "target", "measured", "rounds", "reached"), rows)


def sides(result: Record) -> str:
    """What every side of every row took."""
    rows = []
    for row in result["rows"]:
        for side, found in row["sides"].items():
            if "wall_s" not in found:
                rows.append((row["row"], f"`{side}`", found["status"], "", "", ""))
                continue
            wall = found["wall_s"]
            rows.append(
                (
                    row["row"],
                    f"`{side}`",
                    f"{wall['median']:.2f} s",
                    f"{wall['min']:.2f} to {wall['max']:.2f} s",
                    f"{found['cpu_s']['median']:.2f} s",
                    _amount(found["rss_bytes"]["median"]),
                )
            )
    return _table(("row", "side", "wall", "from – to", "processor", "peak memory"), rows)


def machine(result: Record) -> str:
    """Where and when it was measured, in a sentence."""
    found = result["machine"]
    versions = ", ".join(
        f"{name} {found[name]}" for name in ("python", "jax", "numpy", "brainsurgery") if name in found
    )
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_bytes'] / 2**30:.0f} GiB of memory, "
        f"{found['file_system']}, Linux {found['kernel']}; {versions}; {found['date']}; "
        f"medians of {result['repeats']} runs, models of size {result['size']}."
    )


def predictions(result: Record) -> str:
    """Predicted times, and real ones with their spread over the rounds."""
    rows = []
    for row in result["rows"]:
        real, ratio = row["real_s"], row["ratio"]
        rows.append(
            (
                row["row"],
                row["about"],
                f"{row['predicted_s']:.2f} s",
                f"{real['median']:.2f} s",
                f"{real['min']:.2f} to {real['max']:.2f} s",
                f"{ratio['value']:.2f}",
                f"{ratio['min']:.2f} to {ratio['max']:.2f}",
            )
        )
    return _table(("row", "work", "predicted", "real", "from – to", "predicted / real", "rounds"), rows)


def planning(result: Record) -> str:
    """What planning for a large model took, and what was predicted, one line for every pass."""
    rows = []
    for row in result["planned"]:
        taken = (f"{row['cpu_s']['median']:.1f} s", _amount(row["rss_bytes"]["median"]))
        for number, one in enumerate(row["passes"], 1):
            rows.append(
                (
                    *((row["row"], row["about"], *taken) if number == 1 else ("", "", "", "")),
                    f"{number} of {len(row['passes'])}",
                    f"{one['bytes_read'] / 1e12:.2f} TB",
                    f"{one['bytes_written'] / 1e12:.2f} TB",
                    f"{one['wall_s']:.1f} s",
                    f"{one['balance']:.3f}",
                    _amount(one["peak_buffer_bytes"]),
                )
            )
    predicted = ("pass", "read", "written", "predicted", "busiest host / mean", "most buffers of a host")
    return _table(("plan", "work", "planned in", "peak memory", *predicted), rows)


def bulk(result: Record) -> str:
    """What was predicted of a batch by many hosts, once that was measured."""
    rows = []
    for row in (result["bulk"],) if "bulk" in result else ():
        read = row["bytes_read"]
        rows.append(
            (
                row["about"],
                f"{row['cpu_s']:.0f} s",
                _amount(row["rss_bytes"]),
                f"{row['predicted_s']:.0f} s",
                f"{read['mean'] / 1e12:.2f} TB, {read['min'] / 1e12:.2f} to {read['max'] / 1e12:.2f}",
                f"{row['bytes_written'] / 1e9:.1f} GB",
                f"{row['balance']:.3f}",
            )
        )
    host = ("read by a host", "written by a host at most", "busiest host / mean")
    return _table(("work", "planned in", "peak memory", "predicted", *host), rows)


FORMS: dict[str, Callable[[Record], str]] = {
    "summary": summary,
    "targets": targets,
    "sides": sides,
    "machine": machine,
    "predictions": predictions,
    "planning": planning,
    "bulk": bulk,
}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="renew the pages")
    options = parser.parse_args()
    stale = [page for page in PAGES if quoted(text := page.read_text(encoding="utf-8")) != text]
    for page in stale:
        print(f"{page.name}: {'renewed' if options.write else 'not up to date'}")
        if options.write:
            page.write_text(quoted(page.read_text(encoding="utf-8")), encoding="utf-8")
    return int(bool(stale) and not options.write)


if __name__ == "__main__":
    sys.exit(main())
