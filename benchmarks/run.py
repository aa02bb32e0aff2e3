"""Measures the engine against copies of the same bytes and against BrainSurgery.

    run.py [--suite] storage [--size 1b] [--repeats 5] [--brainsurgery PATH | --brainsurgery make] [--only ROW ...]

Every side of a row runs once untimed, then `--repeats` times, all sides in turn and a different one first in each
round; the disk is synced and the output removed before each run. Inputs are in the page cache unless the row says
otherwise. Prints one JSON line per row as it is done and a table at the end, and writes results/NAME.json. A side whose
program is not there, and a row for which the disk has no room, are marked and left out. Exits with 1 if a command
failed, outputs differ or a target is missed; a target that could not be measured is none of these.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import machine
import measure
from suites import SUITES, Row, Suite, Target

HERE = Path(__file__).resolve().parent
BRAINSURGERY_VERSION = "0.2.12"
Record = dict[str, Any]  # what the JSON files hold


class Measure(NamedTuple):
    """How a quantity is called, its unit and what that is in base units, and its value in a run that wrote so many
    bytes."""

    label: str
    unit: str
    scale: float
    of: Callable[[measure.Sample, int], float]


MEASURES = {
    "wall_s": Measure("wall", "s", 1.0, lambda sample, _: sample.wall_s),
    "cpu_s": Measure("cpu", "s", 1.0, lambda sample, _: sample.cpu_s),
    "rss_bytes": Measure("peak", "MB", 1e6, lambda sample, _: sample.rss_bytes),
    "stream_s": Measure("work", "s", 1.0, lambda sample, _: sample.report["stream_s"]),
    "s_per_gb": Measure("wall per output", "s/GB", 1.0, lambda sample, written: sample.wall_s / (written / 1e9)),
    "compile_share": Measure(
        "compiling", "% of wall", 0.01, lambda sample, _: sample.report["compile_s"] / sample.wall_s
    ),
    "compilations_per_group": Measure(
        "compilations per group",
        "",
        1.0,
        lambda sample, _: sample.report["num_compilations"] / sample.report["num_groups"],
    ),
    "compilations_per_method": Measure(
        "most compilations of a method", "", 1.0, lambda sample, _: sample.report["compilations_per_method"]
    ),
    "num_merges": Measure("merges by one start", "", 1.0, lambda sample, _: sample.report["num_merges"]),
    "kernel_s": Measure("one matrix", "s", 1.0, lambda sample, _: sample.report["kernel_s"]),
    "residual": Measure("error over the least", "", 1.0, lambda sample, _: sample.report["residual"]),
    "read_ratio": Measure(
        "bytes read by a task over those needed", "", 1.0, lambda sample, _: sample.report["read_ratio"]
    ),
    "matmul_share": Measure("share of the rate of matmul", "", 1.0, lambda sample, _: sample.report["matmul_share"]),
}
TAKEN = ("wall_s", "cpu_s", "rss_bytes")  # of every side


def make_inputs(suite: Suite, row: Row, size: str, work: Path) -> None:
    """Generates the inputs of a row that are not there yet, in the order of the suite: later ones need earlier ones."""
    for name, line in suite.inputs.items():
        if name in row.inputs and not (work / name).exists():
            program, *arguments = shlex.split(line.format(size=size))
            print(f"making {size} {name}", flush=True)
            command = [sys.executable, str(HERE / program), ".part", *arguments]
            subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
            (work / ".part").rename(work / name)


def has_room(row: Row, work: Path) -> bool:
    """Whether the disk takes what the row needs, less the inputs that are there."""
    there = sum(path.stat().st_size for path in files_of(row, work))
    return row.disk_bytes - there <= shutil.disk_usage(work).free


def files_of(row: Row, work: Path) -> list[Path]:
    """The files of the inputs of a row."""
    return [path for name in row.inputs for path in (work / name).rglob("*") if path.is_file()]


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

    def __init__(self, work: Path, programs: Mapping[str, Path | str | None], repeats: int) -> None:
        self.work = work
        self.programs = programs
        self.repeats = repeats
        self.log = work / "log.txt"
        self.variables = {"SURGERY_JAX_CACHE": str(work / "compiled")}
        self.expected = work / "expected"  # a file with the output of the row

    def argv(self, line: str, row: Row) -> list[str] | None:
        """The command to start, None if its program is missing."""
        words = {name: str(path) for name, path in self.programs.items() if path}
        if any(f"{{{name}}}" in line for name in self.programs if name not in words):
            return None
        plan = str(HERE / "plans" / row.plan) if row.plan else ""
        line = line.format(**words, plan=shlex.quote(plan), expected=self.expected.name)
        return ["sh", "-c", line] if ">" in line or "&&" in line else shlex.split(line)

    def prepare(self, row: Row) -> None:
        """Removes the last output and waits until the disk has nothing left to do."""
        shutil.rmtree(self.work / "out", ignore_errors=True)
        os.sync()
        for path in files_of(row, self.work) if row.cold else ():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def start(self, argv: list[str], row: Row) -> measure.Sample:
        """One run of a side."""
        self.prepare(row)
        return measure.run(argv, self.work, self.log, self.variables)

    def row(self, row: Row) -> Record:
        """Warms up and measures every side; returns what is known about the row."""
        commands = {side: argv for side, line in row.sides.items() if (argv := self.argv(line, row))}
        status, identical, written, first = self.warm_up(row, commands)
        output_bytes = self.expected.stat().st_size if self.expected.exists() else 0
        sides = [side for side in commands if status[side] == "measured"]
        samples: dict[str, list[measure.Sample]] = {side: [] for side in sides}
        samples |= {side: [first[side]] for side in sides if side in row.once}
        again = [side for side in sides if side not in row.once]
        for number in range(self.repeats):
            turn = number % max(1, len(again))
            for side in again[turn:] + again[:turn]:
                samples[side].append(self.start(commands[side], row))
        self.prepare(row)
        self.expected.unlink(missing_ok=True)
        for side, taken in samples.items():
            if bad := [sample.exit_code for sample in taken if sample.exit_code]:
                status[side] = f"exit code {bad[0]}"
        return {
            "row": row.name,
            "about": row.about,
            "output_bytes": output_bytes,
            "identical": identical,
            "sides": {
                side: {"status": status[side], "output_bytes": written.get(side, 0), **summary(samples.get(side, []))}
                for side in row.sides
            },
            "targets": [judge(target, samples, written) for target in row.targets],
        }

    def warm_up(
        self, row: Row, commands: dict[str, list[str]]
    ) -> tuple[dict[str, str], bool | None, dict[str, int], dict[str, measure.Sample]]:
        """Runs every side once; leaves an output if one is to be copied.

        Returns how it went, whether all wrote the same, how many bytes each wrote, and what each took.
        """
        taken = {}
        status = {side: "measured" if side in commands else "missing" for side in row.sides}
        found = []
        written = {}
        self.expected.unlink(missing_ok=True)
        copies = {side for side in commands if "{expected}" in row.sides[side]}
        for side in sorted(commands, key=copies.__contains__):  # programs first: copies copy what they wrote
            if side in copies and not self.expected.exists():
                status[side] = "nothing to copy"
                continue
            sample = self.start(commands[side], row)
            if sample.exit_code:
                status[side] = f"exit code {sample.exit_code}"
                print(f"{row.name}, {side}: {status[side]}\n{self.log.read_text(errors='replace')[-2000:]}")
                continue
            taken[side] = sample
            written[side] = sum(path.stat().st_size for path in (self.work / "out").rglob("*") if path.is_file())
            output = self.work / "out" / "model.safetensors"
            if output.exists():
                if row.identical:
                    found.append(measure.digests(output))
                if copies and not self.expected.exists():  # of several the first
                    output.replace(self.expected)
        identical = all(other == found[0] for other in found) if len(found) > 1 else None
        return status, identical, written, taken


def measured(
    suite: Suite, row: Row, size: str, work: Path, programs: Mapping[str, Path | str | None], repeats: int
) -> Record:
    """The record of a row, with its inputs made where they are missing."""
    work.mkdir(parents=True, exist_ok=True)
    if not has_room(row, work):
        return {"size": size} | skipped(row, f"left out: needs {row.disk_bytes / 1e9:g} GB of disk")
    make_inputs(suite, row, size, work)
    return {"size": size} | Bench(work, programs, repeats).row(row)


def skipped(row: Row, why: str) -> Record:
    """The record of a row that was not measured."""
    return {
        "row": row.name,
        "about": row.about,
        "output_bytes": 0,
        "identical": None,
        "sides": {side: {"status": why} for side in row.sides},
        "targets": [judge(target, {}, {}) for target in row.targets],
    }


def summary(samples: list[measure.Sample]) -> Record:
    """The spread of every measure, and the runs themselves; nothing of nothing."""
    if not samples:
        return {}
    found: Record = {name: measure.spread([MEASURES[name].of(sample, 0) for sample in samples]) for name in TAKEN}
    if reports := [sample.report for sample in samples if "busy_s" in sample.report]:
        found["engine"] = {
            name: measure.spread([report[name] for report in reports]) for name in ("overlap", "stream_s", "compile_s")
        } | {
            "busy_s": {
                stage: measure.spread([report["busy_s"].get(stage, 0.0) for report in reports])
                for stage in reports[0]["busy_s"]
            }
        }
    return found | {"runs": [asdict(sample) for sample in samples]}


def judge(target: Target, samples: Mapping[str, Sequence[measure.Sample]], written: Mapping[str, int]) -> Record:
    """The target with what was measured: its value from medians, and the spread of the values within each round."""
    verdict: Record = {key.name: asked for key in fields(target) if (asked := getattr(target, key.name)) != key.default}
    sides = [side for side in (target.of, target.less, target.per, target.per_less) if side]
    runs = {side: samples.get(side, ()) for side in sides}
    if not all(runs.values()) or any(sample.exit_code for taken in runs.values() for sample in taken):
        return verdict | {"value": None, "met": None}
    of = MEASURES[target.measure].of
    try:
        values = {side: [of(sample, written.get(side, 0)) for sample in taken] for side, taken in runs.items()}
    except (KeyError, ZeroDivisionError):  # the program does not report it, or wrote nothing
        return verdict | {"value": None, "met": None}
    value = evaluate(target, {side: measure.spread(taken)["median"] for side, taken in values.items()})
    most = max(map(len, values.values()))
    columns = [taken * most if len(taken) == 1 else taken for taken in values.values()]  # some ran once
    rounds = [evaluate(target, dict(zip(values, taken, strict=True))) for taken in zip(*columns, strict=True)]
    if usable := [one for one in rounds if one is not None]:
        verdict["rounds"] = measure.spread(usable)
    if value is None:
        return verdict | {"value": None, "met": None}
    met = (target.at_most is None or value <= target.at_most) and (target.at_least is None or value >= target.at_least)
    return verdict | {"value": value, "met": met}


def evaluate(target: Target, found: Mapping[str, float]) -> float | None:
    """The value of a target from one value of each side; None if start-up hides what it is divided by."""
    value = (found[target.of] - (found[target.less] if target.less else 0.0)) / target.count
    if target.per is None:
        return value
    unit = (found[target.per] - (found[target.per_less] if target.per_less else 0.0)) / target.per_count
    return value / unit if unit > 0 else None


def table(rows: list[Record]) -> str:
    """All rows for a reader: what each side took, how the engine spent it, then what was asked and reached."""
    lines = [f"{'row':<16} {'side':<16} {'wall s':>8} {'min':>8} {'max':>8} {'cpu s':>8} {'peak MB':>8} {'GB/s':>6}"]
    for row in rows:
        for side, found in row["sides"].items():
            head = f"{row['row']:<16} {side:<16} "
            if "wall_s" not in found:
                lines.append(head + found["status"])
                continue
            wall = found["wall_s"]
            rate = (found["output_bytes"] or row["output_bytes"]) / wall["median"] / 1e9
            lines.append(
                f"{head}{wall['median']:8.2f} {wall['min']:8.2f} {wall['max']:8.2f} {found['cpu_s']['median']:8.2f} "
                f"{found['rss_bytes']['median'] / 1e6:8.0f} {f'{rate:6.2f}' if rate else '':>6}"
                + ("" if found["status"] == "measured" else f"  {found['status']}")
            )
    lines += ["", f"{'row':<16} {'side':<16} {'overlap':>8} {'stream s':>8} {'compile':>8}  seconds in each stage"]
    for row in rows:
        for side, found in row["sides"].items():
            if engine := found.get("engine"):
                stages = ", ".join(f"{stage} {busy['median']:.2f}" for stage, busy in engine["busy_s"].items())
                lines.append(
                    f"{row['row']:<16} {side:<16} {engine['overlap']['median']:8.2f} "
                    f"{engine['stream_s']['median']:8.2f} {engine['compile_s']['median']:8.2f}  {stages}"
                )
    asked = [(row["row"], describe(target), outcome(target)) for row in rows for target in row["targets"]]
    asked += [
        (row["row"], "all sides write the same tensors", f"{'':29}  {verdict(row['identical'])}")
        for row in rows
        if row["identical"] is not None
    ]
    width = max((len(words) for _, words, _ in asked), default=0)
    lines += ["", f"{'row':<16} {'target':<{width}} {'measured':>9}  {'rounds':<18}"]
    lines += [f"{name:<16} {words:<{width}} {found}" for name, words, found in asked]
    return "\n".join(lines)


def describe(target: Record) -> str:
    """A target in words."""
    label, unit, scale, _ = MEASURES[target["measure"]]
    bounds = [target[key] for key in ("at_least", "at_most") if key in target]
    if not bounds:  # recorded, whatever it is
        return f"{label}: {target['of']}" + (f" / {target['per']}" if "per" in target else "")
    sign = "=" if len(bounds) == 2 else "≤" if "at_most" in target else "≥"
    bound = bounds[0]
    words = f"{label}: {_beyond(target, 'of', 'less', 'count')} {sign} "
    if "per" in target:
        return f"{words}{bound:g} × {_beyond(target, 'per', 'per_less', 'per_count')}"
    return f"{words}{bound / scale:g} {unit}".rstrip()


def _beyond(target: Record, side: str, less: str, count: str) -> str:
    words = f"({target[side]} − {target[less]})" if less in target else target[side]
    return f"{words} / {target[count]}" if count in target else words


def outcome(target: Record) -> str:
    """What was measured, and whether it is good enough."""
    if target["value"] is None:
        return f"{'—':>9}  {'':<18}  not measured"
    scale = 1.0 if "per" in target else MEASURES[target["measure"]].scale
    rounds = {name: value / scale for name, value in target["rounds"].items()}
    between = f"{rounds['min']:.3g} to {rounds['max']:.3g}"
    return f"{target['value'] / scale:9.3g}  {between:<18}  {verdict(target['met'])}"


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
    parser.add_argument("suite", choices=SUITES, nargs="?")
    parser.add_argument("--suite", choices=SUITES, dest="named", help="the same")
    parser.add_argument(
        "--size", default="1b", help="of the models, as in make_llama.py (default: 1b); some rows have their own"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows to run")
    parser.add_argument("--ours", type=Path, default=Path(sys.executable).with_name("surgery-jax"))
    parser.add_argument("--earlier", type=Path, metavar="PATH", help="the program surgery-jax of another version")
    parser.add_argument("--mergekit", type=Path, metavar="PATH", help="mergekit-extract-lora; for merges mergekit-yaml")
    parser.add_argument("--mergekit-moe", type=Path, metavar="PATH", help="the program mergekit-moe")
    parser.add_argument("--brainsurgery", metavar="PATH", help="its program, or `make` to install it for this")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="where inputs and outputs lie")
    parser.add_argument("--name", help="of the result (default: SUITE-SIZE)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the result is written")
    options = parser.parse_args()
    chosen = options.suite or options.named
    if chosen is None or options.named not in (None, chosen):
        parser.error("one suite is needed")

    suite = SUITES[chosen]
    rows = [row for row in suite.rows if not options.only or row.name in options.only]
    if unknown := set(options.only or ()) - {row.name for row in rows}:
        parser.error(f"no row {', '.join(sorted(unknown))} in {', '.join(row.name for row in suite.rows)}")
    wanted = options.brainsurgery
    theirs = (
        make_brainsurgery(options.work.resolve()) if wanted == "make" else Path(wanted).absolute() if wanted else None
    )
    ours = options.ours.absolute() if options.ours.exists() else None
    names = ("with_orbax", "with_torch", "with_s3", "with_boto3", "factor", "residual", "floor", "by_tasks", "hundred")
    helpers = {name: shlex.join([sys.executable, str(HERE / f"{name}.py")]) for name in names}
    others = {"mergekit": options.mergekit, "mergekit_moe": options.mergekit_moe, "earlier": options.earlier}
    others = {name: path.absolute() if path else None for name, path in others.items()}
    programs = {"ours": ours, "brainsurgery": theirs} | others | helpers

    results = []
    for row in rows:
        size = row.size or options.size
        results.append(measured(suite, row, size, (options.work / size).resolve(), programs, options.repeats))
        print(json.dumps(results[-1]), flush=True)
    print("\n" + table(results))
    name = options.name or f"{chosen}-{options.size}"
    document = {
        "suite": chosen,
        "size": options.size,
        "repeats": options.repeats,
        "machine": machine.describe(options.work, theirs),
        "rows": results,
    }
    target = options.results / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, indent=1) + "\n")
    return int(any(map(failed, results)))


if __name__ == "__main__":
    sys.exit(main())
