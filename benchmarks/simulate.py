"""Predicted times against real ones: `explain --simulate` calibrated on some runs and held to others; and what it takes
to plan for models of 671 and 70 billion parameters.

    python benchmarks/simulate.py [--directory SCRATCH] [--size 2GiB] [--repeats 5] [--only planning]

Runs of a tiny checkpoint and of one of half the size give the rates and what a start costs: those that only move
tensors that of the storage, those that compute with all elements that of the device, and those that extract factors
that of work on whole tensors. What two processes of one machine reach together is not what one reaches, so their rates
are measured with two. Then other plans, the whole size and matrices of other shapes are predicted and run. All are run
in rounds, which begin with another run each, every run from a quiet disk, and medians count. The model of 671 billion
parameters is headers without data, and so are a thousand fine-tunes of one of 70 billion, whose adapters 64 hosts
extract as the tasks of one batch.

Prints tables and writes results/simulate.json, and results/planning.json with what planning takes. Exits with 1 if a
prediction is off by more than a quarter, that of matrices of another shape excepted, or if planning takes more than 30
seconds of processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import machine
import measure
import numpy as np

from surgery_jax import Options, compile_plan, plan_of
from surgery_jax.core.specs import parse_size
from surgery_jax.reports.simulate import Machines, simulate

HERE = Path(__file__).resolve().parent
HEADERS = HERE.parent / "tests" / "make_headers.py"
TOLERANCE = 0.25
PLANNING_S = 30.0
TENSOR = 4 << 20  # elements of one tensor of float32: 16 MiB
SQUARE, OBLONG = (1024, 1024), (2048, 1024)  # matrices that factors are extracted of
Record = dict[str, Any]

MOVE = [{"move": {"from": "(.+)", "to": r"moved.\1"}}]
COMPUTE = [{"scale_": {"target": ".+", "by": 0.3}}, {"clamp_": {"target": ".+", "min": -1.0, "max": 1.0}}]
MIXED = [{"scale_": {"target": r"w\.\d*[02468]", "by": 0.3}}, {"clamp_": {"target": r"w\.\d*[02468]", "min": -1.0}}]
# the changes are noise, so that every module gets `max_rank` and the predicted bound is what is done
EXTRACT = [
    {"lora_extract": {"base": "base::(.+)", "tuned": r"tuned::\1", "to": "adapter", "energy": 0.99, "max_rank": 16}}
]


class Row(NamedTuple):
    """One plan on one checkpoint, by so many processes."""

    name: str
    about: str
    model: str
    steps: list[Any]
    processes: int = 1
    is_held: bool = True  # whether a prediction that is off is a failure

    @property
    def kind(self) -> str:
        """The calibration that tells what a start costs."""
        return next((kind for kind, steps in KINDS.items() if self.steps is steps), "compute")


KINDS: dict[str, list[Any]] = {"move": MOVE, "compute": COMPUTE, "extract": EXTRACT}
CALIBRATIONS = [
    Row(f"{kind}, {model}, {processes}", "", model, steps, processes)
    for processes in (1, 2)
    for kind, steps in KINDS.items()
    for model in ("tiny", "half")
]
HELD = [
    Row("move", "every tensor under another name", "whole", MOVE),
    Row("compute", "every tensor scaled and clamped", "whole", COMPUTE),
    Row("mixed", "half of the tensors scaled and clamped", "whole", MIXED),
    Row("extract", "an adapter of many matrices", "whole", EXTRACT),
    # tells how far the rate of work on whole tensors depends on their shape
    Row("extract oblong", "an adapter of matrices of another shape", "oblong", EXTRACT, is_held=False),
    Row("move, 2 processes", "every tensor under another name", "whole", MOVE, 2),
    Row("mixed, 2 processes", "half of the tensors scaled and clamped", "whole", MIXED, 2),
    Row("extract, 2 processes", "an adapter of many matrices", "whole", EXTRACT, 2),
]
MATRICES = {"tiny": (2, SQUARE), "half": (16, SQUARE), "whole": (48, SQUARE), "oblong": (20, OBLONG)}


class Large(NamedTuple):
    """Planning for a model that is not there: the plan with its parameters, and the checkpoints that it reads, which
    are made with some options."""

    about: str
    plan: tuple[str, ...]
    inputs: tuple[str, ...]
    options: tuple[str, ...] = ()


LIBRARY = HERE.parent / "plans"
LARGE = {
    "upcycle": Large(
        "twice as many experts, each half of the scale, and a second router",
        (str(HERE / "plans" / "upcycle_671b.yaml"),),
        ("671b",),
    ),
    "extract": Large(
        "an adapter, with ranks by the data, of a fine-tune",
        (str(HERE / "plans" / "extract_671b.yaml"),),
        ("671b-base", "671b-tuned"),
        ("--wide",),
    ),
    "mixtral": Large(
        "a dense model of 70 billion parameters to eight experts, by the plan of the library",
        (str(LIBRARY / "upcycle_mixtral.yaml"), "source=70b", "output=out", "experts=8"),
        ("70b",),
        ("--dense",),
    ),
}
LARGE_MACHINES = "hosts=64,devices=4,storage=100GB/s,network=10GB/s,compute=50GB/s,whole=1GB/s"
LARGE_BUDGETS = ["--memory", "64GiB", "--workers", "16"]


# ------------------------------------------------------------------------------------------------------ checkpoints


def write_model(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """A safetensors file of float32."""
    header, at = {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            stream.write(array.tobytes())


def make_inputs(directory: Path, nbytes: int) -> None:
    """Checkpoints of random numbers: tensors to move and compute with, and matrices with a fine-tune of them."""
    generator = np.random.default_rng(1)
    for model, size in (("tiny", 0), ("half", nbytes // 2), ("whole", nbytes)):
        count = max(size // (4 * TENSOR), 2)
        tensors = {f"w.{n}": generator.standard_normal(TENSOR, np.float32) for n in range(count)}
        write_model(directory / f"{model}.safetensors", tensors)
    for model, (count, shape) in MATRICES.items():
        base = {f"h.{n}.weight": generator.standard_normal(shape, np.float32) for n in range(count)}
        tuned = {name: array + 0.01 * generator.standard_normal(shape, np.float32) for name, array in base.items()}
        write_model(directory / f"{model}-base.safetensors", base)
        write_model(directory / f"{model}-tuned.safetensors", tuned)


def plan_for(directory: Path, row: Row) -> Record:
    """The plan of a row."""
    if row.kind == "extract":
        inputs = [f"{side}::{directory / row.model}-{side}.safetensors" for side in ("base", "tuned")]
        output: Any = {"path": str(directory / "out"), "format": "peft"}
    else:
        inputs, output = [str(directory / f"{row.model}.safetensors")], str(directory / "out" / "model.safetensors")
    return {"inputs": inputs, "transforms": row.steps, "output": output}


# ------------------------------------------------------------------------------------------------- real and predicted


def run(directory: Path, row: Row) -> float:
    """Seconds that the work of one run of the command takes, without the start of the process."""
    path = directory / "plan.yaml"
    path.write_text(json.dumps(plan_for(directory, row)))
    command = [sys.executable, "-m", "surgery_jax", "run", str(path), "--json", "--overwrite"]
    if row.processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        command += ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", str(row.processes)]
    shutil.rmtree(directory / "out", ignore_errors=True)
    (directory / "out").mkdir()
    os.sync()  # what earlier runs have left to the system must not be written during this one
    started = [
        subprocess.Popen(
            [*command, *(["--process-id", str(rank)] if row.processes > 1 else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(row.processes)
    ]
    said = [process.communicate() for process in started]
    for process, (_, complaint) in zip(started, said, strict=True):
        if process.returncode:
            raise SystemExit(f"{row.name}: exit code {process.returncode}\n{complaint.decode(errors='replace')}")
    seconds: float = json.loads(said[0][0])["stream_s"]
    return seconds


def forecast(directory: Path, row: Row, machines: Machines) -> Any:
    """The row as it would be on some machines."""
    return simulate(compile_plan(plan_of(plan_for(directory, row))).passes, Options(), machines)


def amount(directory: Path, row: Row) -> float:
    """Bytes that pass through what a calibration measures: the link, or a device."""
    found = forecast(directory, row, Machines(storage=1.0, compute=1.0, whole=1.0))
    hosts = [one.hosts[0] for one in found.passes]
    return float(sum(host.link_s if row.steps is MOVE else host.device_s for host in hosts))


def rate_and_start(amounts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Bytes per second, and seconds that a run takes besides, of a small run and a large one."""
    rate = (amounts[1] - amounts[0]) / (seconds[1] - seconds[0])
    return rate, max(seconds[0] - amounts[0] / rate, 0.0)


def accuracy(directory: Path, size: str, repeats: int) -> tuple[list[Record], list[Record]]:
    """The calibration, and for every row what was predicted and measured."""
    make_inputs(directory, parse_size(size, binary=True) or 0)
    rows = [*CALIBRATIONS, *HELD]
    taken: dict[str, list[float]] = {row.name: [] for row in rows}
    for number in range(repeats + 1):
        begin = number * len(rows) // (repeats + 1)
        for row in [*rows[begin:], *rows[:begin]]:
            seconds = run(directory, row)
            if number:  # the first round compiles
                taken[row.name].append(seconds)
    spread = {name: measure.spread(times) for name, times in taken.items()}
    calibration = []
    for small, large in zip(CALIBRATIONS[::2], CALIBRATIONS[1::2], strict=True):
        rate, start_s = rate_and_start(
            [amount(directory, row) for row in (small, large)],
            [spread[row.name]["median"] for row in (small, large)],
        )
        found = {"bytes_per_s": rate, "start_s": start_s, "small_s": spread[small.name], "large_s": spread[large.name]}
        calibration.append({"kind": small.kind, "processes": small.processes, **found})
    return calibration, [judged(directory, row, calibration, spread[row.name]) for row in HELD]


def judged(directory: Path, row: Row, calibration: Sequence[Record], real: Record) -> Record:
    """What was predicted of a row, what was measured, and one by the other."""
    known = {found["kind"]: found for found in calibration if found["processes"] == row.processes}
    machines = Machines(
        row.processes,
        storage=known["move"]["bytes_per_s"],
        compute=known["compute"]["bytes_per_s"] / row.processes,  # what they reach together
        whole=known["extract"]["bytes_per_s"] / row.processes,
        startup=known[row.kind]["start_s"],
    )
    predicted = forecast(directory, row, machines).wall_s
    ratios = {"value": predicted / real["median"], "min": predicted / real["max"], "max": predicted / real["min"]}
    found = {"predicted_s": predicted, "real_s": real, "ratio": ratios}
    return {"row": row.name, "about": row.about, "is_held": row.is_held, **found}


# ------------------------------------------------------------------------------------------------------------ planning


def planning(directory: Path, kind: str, repeats: int, **shape: int) -> Record:
    """What it takes to predict a run of a large plan, and what is predicted; `shape` makes the model smaller."""
    about, plan, names, more = LARGE[kind]
    options = [*(f"--{word}={number}" for word, number in shape.items()), *more]
    indexes = []
    for name in names:
        shutil.rmtree(directory / name, ignore_errors=True)
        subprocess.run([sys.executable, HEADERS, directory / name, *options], check=True, stdout=subprocess.DEVNULL)
        indexes.append(json.loads((directory / name / "model.safetensors.index.json").read_bytes()))
    command = [sys.executable, "-m", "surgery_jax", "explain", *plan, *LARGE_BUDGETS, "--simulate", LARGE_MACHINES]
    log = directory / "log.txt"
    samples = [measure.run([*command, "--json"], directory, log) for _ in range(repeats)]
    if any(sample.exit_code for sample in samples):
        raise SystemExit(f"{kind}: {log.read_text(errors='replace')}")
    found = json.loads(log.read_bytes())
    for name in names:
        shutil.rmtree(directory / name)
    return {
        "row": kind,
        "about": about,
        "num_tensors": sum(len(index["weight_map"]) for index in indexes),
        "input_bytes": sum(index["metadata"]["total_size"] for index in indexes),
        "wall_s": measure.spread([sample.wall_s for sample in samples]),
        "cpu_s": measure.spread([sample.cpu_s for sample in samples]),
        "rss_bytes": measure.spread([sample.rss_bytes for sample in samples]),
        "predicted_s": found["wall_s"],
        "passes": [
            {
                "wall_s": one["wall_s"],
                "balance": one["balance"],
                "bytes_read": sum(host["bytes_read"] for host in one["hosts"]),
                "bytes_written": sum(host["bytes_written"] for host in one["hosts"]),
                "peak_buffer_bytes": max(host["peak_buffer_bytes"] for host in one["hosts"]),
            }
            for one in found["passes"]
        ],
    }


BULK_PLAN = """\
tuned: base
inputs: [ "base::base", "tuned::${tuned}" ]
transforms:
  - lora_extract: { base: 'base::(.+_proj\\.weight)', tuned: 'tuned::\\1', to: adapter, rank: 16 }
output: { path: out, format: peft }
"""
BULK_JOBS = """\
plan: bulk.yaml
matrix: { tuned: { glob: "runs/*" } }
set: { output.path: "out/${job}" }
"""


def bulk(directory: Path, num_jobs: int = 1000, layers: int = 80, machines: str = LARGE_MACHINES) -> Record:
    """What is predicted of a batch with an adapter of each of many fine-tunes of a model of 70 billion parameters."""
    place = directory / "bulk"
    shutil.rmtree(place, ignore_errors=True)
    (place / "runs").mkdir(parents=True)
    command = [sys.executable, str(HEADERS), str(place / "base"), "--dense", f"--layers={layers}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for number in range(num_jobs):  # other files of the same headers
        shutil.copytree(place / "base", place / "runs" / f"{number:04}", copy_function=os.link)
    (place / "bulk.yaml").write_text(BULK_PLAN)
    (place / "jobs.yaml").write_text(BULK_JOBS)
    words = ["batch", "jobs.yaml", *LARGE_BUDGETS, "--simulate", machines, "--json"]
    sample = measure.run([sys.executable, "-m", "surgery_jax", *words], place, directory / "log.txt")
    printed = (directory / "log.txt").read_text(errors="replace")
    shutil.rmtree(place)
    if sample.exit_code:
        raise SystemExit(f"bulk: {printed}")
    found = json.loads(printed)
    (one,) = found["passes"]
    read = [host["bytes_read"] for host in one["hosts"]]
    return {
        "row": "bulk",
        "about": f"adapters of {num_jobs} fine-tunes, by {len(read)} hosts",
        "machines": machines,
        "cpu_s": sample.cpu_s,
        "rss_bytes": sample.rss_bytes,
        "predicted_s": found["wall_s"],
        "balance": one["balance"],
        "bytes_read": {"min": min(read), "mean": sum(read) / len(read), "max": max(read)},
        "bytes_written": max(host["bytes_written"] for host in one["hosts"]),
    }


def planned(directory: Path, repeats: int) -> Record:
    """What planning for large models takes, and what is predicted; printed too."""
    rows = [planning(directory, kind, repeats) for kind in LARGE]
    for row in rows:
        walls = " + ".join(f"{one['wall_s']:.1f} s" for one in row["passes"])
        print(
            f"{row['row']:22} planned in {row['cpu_s']['median']:6.2f} s, {row['rss_bytes']['median'] / 1e6:4.0f} MB; "
            f"predicted {walls}; balance {max(one['balance'] for one in row['passes']):.3f}",
            flush=True,
        )
    many = bulk(directory)
    print(
        f"{many['about']}: predicted in {many['cpu_s']:.0f} s: {many['predicted_s']:.0f} s; a host reads "
        f"{many['bytes_read']['max'] / 1e12:.2f} TB at most; balance {many['balance']:.3f}",
        flush=True,
    )
    return {"planned": rows, "bulk": many, "machines": LARGE_MACHINES}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=HERE / "work" / "simulate", help="where checkpoints lie")
    parser.add_argument("--size", default="2GiB", help="of the largest checkpoint that is moved")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("planning",), help="what planning takes, and nothing that is run")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the result is written")
    args = parser.parse_args()
    directory = args.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    args.results.mkdir(parents=True, exist_ok=True)

    def write(name: str, size: str, repeats: int, **found: Any) -> None:
        head = {"suite": name, "size": size, "repeats": repeats, "machine": machine.describe(directory, None)}
        (args.results / f"{name}.json").write_text(json.dumps(head | found, indent=1) + "\n")

    large = planned(directory, min(args.repeats, 3))
    write("planning", "671b and 70b", min(args.repeats, 3), **large)
    is_slow = any(row["cpu_s"]["median"] > PLANNING_S for row in large["planned"])
    if args.only:
        return int(is_slow)

    calibration, rows = accuracy(directory, args.size, args.repeats)
    for found in calibration:
        what = f"{found['kind']}, {found['processes']}"
        print(f"{what:22} {found['bytes_per_s'] / 1e9:.3f} GB/s + {found['start_s']:.2f} s")
    for row in rows:
        ratio = row["ratio"]
        print(
            f"{row['row']:22} predicted {row['predicted_s']:6.2f} s  real {row['real_s']['median']:6.2f} s  "
            f"{ratio['value']:5.2f}  rounds {ratio['min']:.2f} to {ratio['max']:.2f}"
        )
    write("simulate", args.size, args.repeats, calibration=calibration, rows=rows)
    is_off = any(row["is_held"] and abs(row["ratio"]["value"] - 1) > TOLERANCE for row in rows)
    return int(is_off or is_slow)


if __name__ == "__main__":
    sys.exit(main())
