"""Predicted times against real ones: `explain --simulate` calibrated on some runs and held to others.

    python benchmarks/simulate.py --directory SCRATCH [--size 2GiB] [--repeat 3]

Runs of a tiny checkpoint and of one of half the size give the rates and what a start costs: those that only move
tensors that of the storage, those that compute with all of them that of the device. Then other plans, the whole size
and two processes are predicted and run. All are run in rounds, each from a quiet disk, and the fastest run of each
counts, since other work on the machine only ever makes a run slower. Prints a table; the exit code is 1 if a prediction
is off by more than a quarter.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from surgery_jax import Options, compile_plan, plan_of
from surgery_jax.core.specs import parse_size
from surgery_jax.execute.simulate import Machines, simulate

TOLERANCE = 0.25
TENSOR = 4 << 20  # elements of one tensor of float32: 16 MiB
MOVE = [{"move": {"from": "(.+)", "to": r"moved.\1"}}]
COMPUTE = [{"scale_": {"target": ".+", "by": 0.3}}, {"clamp_": {"target": ".+", "min": -1.0, "max": 1.0}}]
MIXED = [{"scale_": {"target": r"w\.\d*[02468]", "by": 0.3}}, {"clamp_": {"target": r"w\.\d*[02468]", "min": -1.0}}]


def make(path: Path, nbytes: int) -> None:
    """A checkpoint of so many bytes, of random numbers."""
    count = max(nbytes // (4 * TENSOR), 2)
    header = {
        f"w.{n}": {"dtype": "F32", "shape": [TENSOR], "data_offsets": [4 * TENSOR * n, 4 * TENSOR * (n + 1)]}
        for n in range(count)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(1)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _ in range(count):
            stream.write(generator.standard_normal(TENSOR, np.float32).tobytes())


def plan_for(directory: Path, model: str, steps: list[Any]) -> dict[str, Any]:
    return {"inputs": [str(directory / model)], "transforms": steps, "output": str(directory / "out.safetensors")}


def run(directory: Path, plan: dict[str, Any], processes: int) -> dict[str, Any]:
    """The report of one run of the command."""
    path = directory / "plan.yaml"
    path.write_text(json.dumps(plan))
    command = [sys.executable, "-m", "surgery_jax", "run", str(path), "--json", "--no-sync", "--overwrite"]
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        command += ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", str(processes)]
    (directory / "out.safetensors").unlink(missing_ok=True)
    os.sync()  # what earlier runs have left to the system must not be written during this one
    started = [
        subprocess.Popen([*command, *(["--process-id", str(rank)] if processes > 1 else [])], stdout=subprocess.PIPE)
        for rank in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"a run failed: {plan['transforms']}")
    report: dict[str, Any] = json.loads(said[0])
    return report


Row = tuple[str, str, list[Any], int]  # name, checkpoint, steps, processes
CALIBRATIONS: list[Row] = [
    (name, size, steps, 1) for name, steps in (("move", MOVE), ("compute", COMPUTE)) for size in ("tiny", "half")
]
HELD: list[Row] = [
    ("move", "whole", MOVE, 1),
    ("compute", "whole", COMPUTE, 1),
    ("mixed", "whole", MIXED, 1),
    ("move, 2 processes", "whole", MOVE, 2),
    ("mixed, 2 processes", "whole", MIXED, 2),
]


def rate_and_start(small: dict[str, Any], large: dict[str, Any]) -> tuple[float, float]:
    """Bytes per second, in and out, and seconds that a run takes besides."""
    through = [2 * report["bytes_moved"] + report["bytes_read"] + report["bytes_computed"] for report in (small, large)]
    rate = (through[1] - through[0]) / (large["stream_s"] - small["stream_s"])
    return rate, max(small["stream_s"] - through[0] / rate, 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--size", default="2GiB")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    size = parse_size(args.size, binary=True) or 0
    args.directory.mkdir(parents=True, exist_ok=True)
    for model, nbytes in (("tiny", 0), ("half", size // 2), ("whole", size)):
        make(args.directory / f"{model}.safetensors", nbytes)
    fastest: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(args.repeat + 1):  # one more, to compile
        for name, model, steps, processes in [*CALIBRATIONS, *HELD]:
            report = run(args.directory, plan_for(args.directory, f"{model}.safetensors", steps), processes)
            best = fastest.setdefault((name, model), report)
            if report["stream_s"] < best["stream_s"]:
                fastest[name, model] = report
    storage, moving_s = rate_and_start(fastest["move", "tiny"], fastest["move", "half"])
    compute, computing_s = rate_and_start(fastest["compute", "tiny"], fastest["compute", "half"])
    print(f"storage {storage / 1e9:.2f} GB/s + {moving_s:.2f} s, device {compute / 1e9:.2f} GB/s + {computing_s:.2f} s")
    worst = 0.0
    for name, model, steps, processes in HELD:
        # the processes of one machine share its processor as well as its disk
        startup = moving_s if steps is MOVE else computing_s
        machines = Machines(processes, storage=storage, compute=compute / processes, startup=startup)
        plan = plan_of(plan_for(args.directory, f"{model}.safetensors", steps))
        predicted = simulate(compile_plan(plan).program, Options(), machines).wall_s
        real = fastest[name, model]["stream_s"]
        worst = max(worst, abs(predicted / real - 1))
        print(f"{name:20} predicted {predicted:6.2f} s  real {real:6.2f} s  {predicted / real:5.2f}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
