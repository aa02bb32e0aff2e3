"""Adapters of many fine-tunes of one base as one batch: by so many tasks at once, each with one core, as if that were a
machine, or by one process with one core.

    by_tasks.py TASKS PLAN --base BASE --tuned N [--ours PROGRAM]

Takes `BASE` and `BASE-1` to `BASE-N` from the directory that it is started in, and writes adapters to `out` there.
Prints JSON: how many jobs each task has done, and `read_ratio`, the bytes that a task has read over what it needs of
the base and of its fine-tunes, the most of any of them. It is little more than 1 if the base is read once, since the
beginning of each matrix is compared before; nearly 2 if it is read for every job. Exits with 1 if a task failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECTIONS = "_proj.weight"  # what the plan reads of every model


def needed_bytes(path: Path) -> int:
    """Bytes of the matrices that an adapter is made of."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    spans = [entry["data_offsets"] for name, entry in header.items() if name.endswith(PROJECTIONS)]
    return sum(end - begin for begin, end in spans)


def run(ours: list[str], count: int, jobs: str) -> list[dict[str, Any]]:
    """The reports of all tasks, which are started at once.

    Raises:
        SystemExit: one failed.
    """
    cores = sorted(os.sched_getaffinity(0))
    tasks = []
    for number in range(1, count + 1):
        task = f"{number}/{count}" if count > 1 else "none"
        pinned = ["taskset", "-c", str(cores[(number - 1) % len(cores)])]
        words = ["batch", jobs, "--task", task, "--quiet", "--json", "--again"]
        tasks.append(subprocess.Popen([*pinned, *ours, *words], stdout=subprocess.PIPE))
    printed = [task.communicate()[0] for task in tasks]
    if any(task.returncode for task in tasks):
        raise SystemExit(1)
    return [json.loads(text) for text in printed]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=int)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--base", required=True, help="its directory")
    parser.add_argument("--tuned", type=int, required=True, help="number of fine-tunes")
    parser.add_argument("--ours", default=str(Path(sys.executable).with_name("surgery-jax")), help="the program")
    options = parser.parse_args()
    names = [f"{options.base}-{number}" for number in range(1, options.tuned + 1)]
    own = {"base": options.base, "output.path": "out/${job}"}
    jobs = {"plan": str(options.plan), "matrix": {"tuned": names}, "set": own}
    Path("jobs.yaml").write_text(json.dumps(jobs))
    reports = run(shlex.split(options.ours), options.tasks, "jobs.yaml")
    once = needed_bytes(Path(options.base, "model.safetensors"))
    jobs_done = [report["counts"]["done"] for report in reports]
    ratios = [
        sum(share["bytes_read"] for share in report["processes"]) / (once * (1 + done))
        for report, done in zip(reports, jobs_done, strict=True)
    ]
    print(json.dumps({"read_ratio": max(ratios), "jobs": jobs_done}))


if __name__ == "__main__":
    main()
