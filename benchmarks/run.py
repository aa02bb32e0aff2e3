"""Measures the engine against copies of the same bytes and against BrainSurgery.

    run.py storage [--size 1b] [--repeats 5] [--brainsurgery PATH | --brainsurgery make] [--only ROW ...]

Every side of a row runs once untimed, then `--repeats` times, all sides in turn and a different one first in each
round; the disk is synced and the output removed before each run. Inputs are in the page cache. Prints one JSON line per
row as it is done and a table at the end, and writes results/NAME.json. A side whose program is not there is marked and
left out. Exits with 1 if a command failed, outputs differ or a target is missed; a target that could not be measured is
none of these.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import measure
from suites import SUITES, Row, Suite, Target

HERE = Path(__file__).resolve().parent
BRAINSURGERY_VERSION = "0.2.12"
Record = dict[str, Any]  # what the JSON files hold
UNITS = {"wall_s": ("s", 1.0), "cpu_s": ("s", 1.0), "rss_bytes": ("MB", 1e6)}


def make_inputs(suite: Suite, size: str, work: Path) -> None:
    """Generates the inputs that are not there yet."""
    for name, arguments in suite.inputs.items():
        if not (work / name).exists():
            command = [sys.executable, str(HERE / "make_llama.py"), ".part", "--size", size, *shlex.split(arguments)]
            print(f"making {size} {name}", flush=True)
            subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
            (work / ".part").rename(work / name)


def make_brainsurgery(work: Path) -> Path | None:
    """The program in an environment of its own, made if a Python that it runs on is found."""
    environment = work / "brainsurgery"
    if not (environment / "bin" / "brainsurgery").exists():
        python = shutil.which("python3.13")
        if python is None or subprocess.run([python, "-V"], capture_output=True).returncode:
            print("brainsurgery: no python3.13 found, its sides are left out")
            return None
        subprocess.run([python, "-m", "venv", "--clear", environment], check=True)
        wanted = f"brainsurgery=={BRAINSURGERY_VERSION}"
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", wanted], check=True)
    return environment / "bin" / "brainsurgery"


class Bench:
    """Runs rows: where the files lie and which programs there are."""

    def __init__(self, work: Path, programs: dict[str, Path | None], repeats: int) -> None:
        self.work = work
        self.programs = programs
        self.repeats = repeats
        self.log = work / "log.txt"
        self.expected = work / "expected"  # a file with the output of the row

    def argv(self, line: str, row: Row) -> list[str] | None:
        """The command to start, None if its program is missing."""
        words = {name: str(path) for name, path in self.programs.items() if path}
        if any(f"{{{name}}}" in line for name in self.programs if name not in words):
            return None
        plan = str(HERE / "plans" / row.plan) if row.plan else ""
        line = line.format(**words, plan=shlex.quote(plan), expected=self.expected.name)
        return ["sh", "-c", line] if ">" in line or "&&" in line else shlex.split(line)

    def prepare(self) -> None:
        """Removes the last output and waits until the disk has nothing left to do."""
        shutil.rmtree(self.work / "out", ignore_errors=True)
        os.sync()

    def row(self, row: Row) -> Record:
        """Warms up and measures every side; returns what is known about the row."""
        commands = {side: argv for side, line in row.sides.items() if (argv := self.argv(line, row))}
        status, identical = self.warm_up(row, commands)
        output_bytes = self.expected.stat().st_size if self.expected.exists() else 0
        sides = [side for side in commands if status[side] == "measured"]
        samples: dict[str, list[measure.Sample]] = {side: [] for side in sides}
        for number in range(self.repeats):
            turn = number % max(1, len(sides))
            for side in sides[turn:] + sides[:turn]:
                self.prepare()
                samples[side].append(measure.run(commands[side], self.work, self.log))
        self.prepare()
        self.expected.unlink(missing_ok=True)
        for side, taken in samples.items():
            if bad := [sample.exit_code for sample in taken if sample.exit_code]:
                status[side] = f"exit code {bad[0]}"
        return {
            "row": row.name,
            "about": row.about,
            "output_bytes": output_bytes,
            "identical": identical,
            "sides": {side: {"status": status[side], **summary(samples.get(side, []))} for side in row.sides},
            "targets": [judge(target, samples) for target in row.targets],
        }

    def warm_up(self, row: Row, commands: dict[str, list[str]]) -> tuple[dict[str, str], bool | None]:
        """Runs every side once; leaves an output to copy. Returns how it went, and whether all wrote the same."""
        status = {side: "measured" if side in commands else "missing" for side in row.sides}
        written = []
        self.expected.unlink(missing_ok=True)
        copies = {side for side in commands if "{expected}" in row.sides[side]}
        for side in sorted(commands, key=copies.__contains__):  # programs first: copies copy what they wrote
            if side in copies and not self.expected.exists():
                status[side] = "nothing to copy"
                continue
            self.prepare()
            sample = measure.run(commands[side], self.work, self.log)
            if sample.exit_code:
                status[side] = f"exit code {sample.exit_code}"
                print(f"{row.name}, {side}: {status[side]}\n{self.log.read_text(errors='replace')[-2000:]}")
                continue
            output = self.work / "out" / "model.safetensors"
            if output.exists():
                if row.identical:
                    written.append(measure.digests(output))
                output.replace(self.expected)
        return status, all(other == written[0] for other in written) if len(written) > 1 else None


def summary(samples: list[measure.Sample]) -> Record:
    """The spread of every measure, and the runs themselves; nothing of nothing."""
    if not samples:
        return {}
    return {
        **{name: measure.spread([getattr(sample, name) for sample in samples]) for name in UNITS},
        "runs": [asdict(sample) for sample in samples],
    }


def judge(target: Target, samples: dict[str, list[measure.Sample]]) -> Record:
    """The target with what was measured: the ratio of medians, and the spread of the ratios within each round."""
    verdict: Record = {key: value for key, value in asdict(target).items() if value is not None}
    if not samples.get(target.of) or (target.per and not samples.get(target.per)):
        return verdict | {"value": None, "met": None}
    ours = [getattr(sample, target.measure) for sample in samples[target.of]]
    value = measure.spread(ours)["median"]
    if target.per:
        theirs = [getattr(sample, target.measure) for sample in samples[target.per]]
        value /= measure.spread(theirs)["median"]
        verdict["rounds"] = measure.spread([one / other for one, other in zip(ours, theirs, strict=True)])
    met = (target.at_most is None or value <= target.at_most) and (target.at_least is None or value >= target.at_least)
    return verdict | {"value": value, "met": met}


def table(rows: list[Record]) -> str:
    """All rows for a reader: what each side took, then what was asked and reached."""
    lines = [f"{'row':<16} {'side':<16} {'wall s':>8} {'min':>8} {'max':>8} {'cpu s':>8} {'peak MB':>8} {'GB/s':>6}"]
    for row in rows:
        for side, found in row["sides"].items():
            head = f"{row['row']:<16} {side:<16} "
            if "wall_s" not in found:
                lines.append(head + found["status"])
                continue
            wall = found["wall_s"]
            rate = row["output_bytes"] / wall["median"] / 1e9
            lines.append(
                f"{head}{wall['median']:8.2f} {wall['min']:8.2f} {wall['max']:8.2f} {found['cpu_s']['median']:8.2f} "
                f"{found['rss_bytes']['median'] / 1e6:8.0f} {f'{rate:6.2f}' if rate else '':>6}"
                + ("" if found["status"] == "measured" else f"  {found['status']}")
            )
    lines += ["", f"{'row':<16} {'target':<48} {'measured':>9}  {'rounds':<13}"]
    for row in rows:
        for target in row["targets"]:
            lines.append(f"{row['row']:<16} {describe(target):<48} {outcome(target)}")
        if row["identical"] is not None:
            lines.append(f"{row['row']:<16} {'all sides write the same tensors':<48} {verdict(row['identical'])}")
    return "\n".join(lines)


def describe(target: Record) -> str:
    """A target in words."""
    unit, scale = UNITS[target["measure"]]
    kind = "peak" if unit == "MB" else target["measure"].removesuffix("_s")
    sign = "≤" if "at_most" in target else "≥"
    bound = target["at_most" if "at_most" in target else "at_least"]
    if "per" in target:
        return f"{kind}: {target['of']} {sign} {bound:g} × {target['per']}"
    return f"{kind}: {target['of']} {sign} {bound / scale:g} {unit}"


def outcome(target: Record) -> str:
    """What was measured, and whether it is good enough."""
    if target["value"] is None:
        return f"{'—':>9}  {'':<13}  not measured"
    rounds = target.get("rounds")
    between = f"{rounds['min']:.2f} to {rounds['max']:.2f}" if rounds else ""
    scale = 1.0 if rounds else UNITS[target["measure"]][1]
    return f"{target['value'] / scale:9.2f}  {between:<13}  {verdict(target['met'])}"


def verdict(met: bool) -> str:
    """Yes or no, so that it is seen."""
    return "ok" if met else "MISSED"


def failed(row: Record) -> bool:
    """Whether a command failed, an output is wrong or a target is missed."""
    statuses = [found["status"] for found in row["sides"].values()]
    missed = [target for target in row["targets"] if target["met"] is False]
    return row["identical"] is False or bool(missed) or any(status.startswith("exit") for status in statuses)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--size", default="1b", help="of the models, as in make_llama.py (default: 1b)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows to run")
    parser.add_argument("--ours", type=Path, default=Path(sys.executable).with_name("surgery-jax"))
    parser.add_argument("--brainsurgery", metavar="PATH", help="its program, or `make` to install it for this")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where inputs and outputs lie")
    parser.add_argument("--name", help="of the result (default: SUITE-SIZE)")
    options = parser.parse_args()

    suite = SUITES[options.suite]
    rows = [row for row in suite.rows if not options.only or row.name in options.only]
    if unknown := set(options.only or ()) - {row.name for row in rows}:
        parser.error(f"no row {', '.join(sorted(unknown))} in {', '.join(row.name for row in suite.rows)}")
    work = (options.work / options.size).resolve()
    work.mkdir(parents=True, exist_ok=True)
    make_inputs(suite, options.size, work)
    wanted = options.brainsurgery
    theirs = (
        make_brainsurgery(options.work.resolve()) if wanted == "make" else Path(wanted).absolute() if wanted else None
    )
    ours = options.ours.absolute() if options.ours.exists() else None
    bench = Bench(work, {"ours": ours, "brainsurgery": theirs}, options.repeats)

    results = []
    for row in rows:
        results.append(bench.row(row))
        print(json.dumps(results[-1]), flush=True)
    print("\n" + table(results))
    name = options.name or f"{options.suite}-{options.size}"
    document = {
        "suite": options.suite,
        "size": options.size,
        "repeats": options.repeats,
        "machine": machine.describe(work, theirs),
        "rows": results,
    }
    target = HERE / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n")
    return int(any(map(failed, results)))


if __name__ == "__main__":
    sys.exit(main())
