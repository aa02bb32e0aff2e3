"""Runs one command and takes its time, its CPU seconds and its peak memory. Compares what two commands wrote.

Only the standard library, and little of it: Linux counts the memory of the process that starts a command into the
command's own peak, so this process stays small.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S = 1800.0  # a command that takes longer is stopped and counts as failed
CHUNK_BYTES = 4 << 20
REPORTED = (  # what is kept of the report of a run
    "stream_s",
    "compile_s",
    "overlap",
    "busy_s",
    "num_groups",
    "num_compilations",
    "num_host_fallbacks",
    "bytes_moved",
    "bytes_read",
    "bytes_computed",
    "peak_buffer_bytes",
    "read_ratio",  # of by_tasks.py
    "compilations_per_method",  # these two of hundred.py
    "num_merges",
    "kernel_s",  # these three of factor.py
    "residual",
    "matmul_share",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run.

    `rss_bytes` is the largest of the processes that the command consisted of, not their sum. `report` is what the
    engine says of itself, if that is all the command printed.
    """

    wall_s: float
    cpu_s: float
    rss_bytes: int
    exit_code: int
    report: dict[str, Any] = field(default_factory=dict)


def run(argv: Sequence[str], directory: Path, log: Path, variables: Mapping[str, str] | None = None) -> Sample:
    """Starts `argv` in `directory`, with an empty standard input and everything it prints in `log`."""
    environment = os.environ | {"TQDM_DISABLE": "1"} | dict(variables or {})
    with log.open("wb") as printed:
        begun = time.monotonic()
        process = subprocess.Popen(
            argv, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT
        )
        timer = threading.Timer(LIMIT_S, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - begun
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for: Popen need not
    cpu_s = usage.ru_utime + usage.ru_stime
    return Sample(wall_s, cpu_s, usage.ru_maxrss * 1024, process.returncode, _report(log))


def _report(log: Path) -> dict[str, Any]:
    """What is kept of the JSON object that a command printed; nothing if it printed anything else."""
    try:
        printed = json.loads(log.read_bytes())
    except ValueError:
        return {}
    return {key: printed[key] for key in REPORTED if key in printed} if isinstance(printed, dict) else {}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Minimum, quartiles and maximum."""
    if len(values) == 1:
        return dict.fromkeys(("min", "q1", "median", "q3", "max"), values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": min(values), "q1": q1, "median": median, "q3": q3, "max": max(values)}


def digests(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Dtype, shape and digest of the bytes of every tensor of a safetensors file, whatever their order in it."""
    found = {}
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            digest = hashlib.blake2b()
            for piece in _pieces(end - begin):
                digest.update(file.read(piece))
            found[name] = (entry["dtype"], tuple(entry["shape"]), digest.hexdigest())
    return found


def _pieces(size: int) -> Iterable[int]:
    yield from [CHUNK_BYTES] * (size // CHUNK_BYTES)
    yield size % CHUNK_BYTES
