"""Runs of the command with one fault in each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

__all__ = ["MEMORY", "NO_FAULT", "Answer", "Mode", "Point", "Server", "build_library"]

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 60.0
MEMORY = 500 << 20  # bytes that no run on small files may take, the program included


class Mode(IntEnum):
    """What happens at the call; the numbers are those of `inject.c`, which does not know the last three."""

    OFF = 0
    COUNT = 1
    KILL_BEFORE = 2
    KILL_AFTER = 3
    FAIL = 4
    SHORT = 5
    SIGNAL = 6
    FULL = 7  # from this call on there is no room
    KILL_AGAIN = 8  # after the call, and so the run after that
    LATER = 9  # a signal at any time, and once more a moment later
    CUT = 10  # the power is cut after the call: what was not brought to the disk is lost, wholly or in part


class Point(NamedTuple):
    """A fault: what happens at which call, or how many microseconds after the start; value is an errno, a signal,
    or what decides what is lost."""

    mode: Mode
    number: int
    value: int = 0


NO_FAULT = Point(Mode.OFF, 0)


class Answer(NamedTuple):
    """What became of a command: its exit code (negative for a signal, None if it hung), and what it said.

    hit is the name of the call where the fault happened, empty if it did not come to that.
    """

    code: int | None
    count: int
    hit: str
    peak: int
    cpu_s: float
    stdout: str
    stderr: str
    calls: tuple[str, ...] = ()


def build_library(folder: Path) -> Path:
    """The compiled `inject.c`."""
    path = folder / "inject.so"
    subprocess.run(
        ["cc", "-O2", "-shared", "-fPIC", "-o", str(path), str(HERE / "inject.c"), "-ldl", "-lpthread"], check=True
    )
    return path


class Server:
    """A process that has imported everything and forks a child for each command.

    patience: how many times longer than on a free machine a command may take.
    """

    def __init__(self, library: Path, folder: Path, *, patience: float = 1.0) -> None:
        self.patience = patience
        self.out = Path(tempfile.mkdtemp(prefix="said-", dir=folder))
        environment = os.environ | {
            "LD_PRELOAD": str(library),
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "100",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
        shutil.rmtree(self.out)

    def run(
        self,
        argv: Sequence[str],
        cwd: Path,
        point: Point = NO_FAULT,
        *,
        log: bool = False,
        limit: int = 0,
        timeout_s: float = TIMEOUT_S,
        goes_on: bool = False,
    ) -> Answer:
        """One command with one fault. `goes_on`: what the commands before have not brought to the disk is not there
        yet."""
        is_later = point.mode == Mode.LATER
        known = {Mode.LATER: Mode.OFF, Mode.KILL_AGAIN: Mode.KILL_AFTER, Mode.CUT: Mode.KILL_AFTER}
        mode = known.get(point.mode, point.mode)
        request = {
            "argv": list(argv), "cwd": str(cwd), "root": str(cwd), "mode": int(mode), "number": point.number,
            "value": point.value, "timeout_s": timeout_s * self.patience, "out": str(self.out), "log": log,
            "limit": limit, "after_s": point.number / 1e6 if is_later else None,
            "goes_on": goes_on, "is_cut": point.mode == Mode.CUT,
        }  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        said = [(self.out / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        calls = tuple((self.out / "calls").read_text().split()) if log else ()
        return Answer(**answer, stdout=said[0], stderr=said[1], calls=calls)
