"""Runs of the command with one fault in each, and what must be true of the files afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

__all__ = ["Answer", "Mode", "Point", "Scene", "Server", "Trial", "build_library", "points"]

HERE = Path(__file__).resolve().parent
READS = ("read", "pread", "pread64", "preadv", "preadv64", "preadv2", "preadv64v2")
WRITES = ("write", "pwrite", "pwrite64", "pwritev", "pwritev64", "copy_file_range", "sendfile", "sendfile64")
TIMEOUT_S = 60.0
SIGKILL = -int(signal.SIGKILL)


class Mode(IntEnum):
    """What happens at the call; the numbers are those of `inject.c`."""

    OFF = 0
    COUNT = 1
    KILL_BEFORE = 2
    KILL_AFTER = 3
    FAIL = 4
    SHORT = 5
    SIGNAL = 6


class Point(NamedTuple):
    """A fault: what happens at which call; value is an errno or a signal."""

    mode: Mode
    number: int
    value: int = 0


NO_FAULT = Point(Mode.OFF, 0)


class Answer(NamedTuple):
    """What became of a command: its exit code (negative for a signal, None if it hung), and what it said."""

    code: int | None
    count: int
    hit: str
    peak: int
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
    """A process that has imported everything and forks a child for each command."""

    def __init__(self, library: Path, folder: Path, modules: Sequence[str] = ("jax",)) -> None:
        self.out = Path(tempfile.mkdtemp(prefix="said-", dir=folder))
        environment = os.environ | {
            "LD_PRELOAD": str(library),
            "JAX_PLATFORMS": "cpu",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "100",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), *modules],
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
    ) -> Answer:
        """One command with one fault."""
        request = {
            "argv": list(argv), "cwd": str(cwd), "root": str(cwd), "mode": int(point.mode), "number": point.number,
            "value": point.value, "timeout_s": timeout_s, "out": str(self.out), "log": log, "limit": limit,
        }  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        said = [(self.out / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        calls = tuple((self.out / "calls").read_text().split()) if log else ()
        return Answer(**answer, stdout=said[0], stderr=said[1], calls=calls)


# ----------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Scene:
    """A kind of run: what lies in its folder before, the command, and the names of its outputs.

    again: the command that must succeed after any fault. volatile: files that differ between honest runs.
    """

    name: str
    build: Callable[[Path], object]
    command: tuple[str, ...]
    outputs: tuple[str, ...]
    again: tuple[str, ...] = ()
    volatile: tuple[str, ...] = ()
    computes: bool = False

    @property
    def retry(self) -> tuple[str, ...]:
        more = () if "--overwrite" in self.command else ("--overwrite",)
        return self.again or (*self.command, *more, "--resume")


Tree = Mapping[str, str]  # digests of files by relative path


def tree(root: Path, volatile: Sequence[str] = ()) -> tuple[Tree, list[str]]:
    """The files below a folder, and the hidden ones of unfinished runs."""
    found: dict[str, str] = {}
    hidden: list[str] = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if ".surgery-" in name:
            if "/" not in name or ".surgery-" not in str(Path(name).parent):
                hidden.append(name)
        elif path.is_file() and name not in volatile:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found, hidden


def part(files: Tree, name: str) -> Tree:
    """The files of one output."""
    return {path: digest for path, digest in files.items() if path == name or path.startswith(name + "/")}


@dataclass
class Trial:
    """A scene prepared: its folder as it is before, and the files of a run without faults."""

    scene: Scene
    folder: Path
    server: Server
    template: Path = field(init=False)
    before: Tree = field(init=False)
    after: Tree = field(init=False)
    calls: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.template = self.folder / f"{self.scene.name}-template"
        self.template.mkdir()
        self.scene.build(self.template)
        self.before, _ = tree(self.template, self.scene.volatile)
        place = self.copy()
        done = self.server.run(self.scene.command, place, Point(Mode.COUNT, 0), log=True)
        assert done.code == 0, done
        self.after, hidden = tree(place, self.scene.volatile)
        assert not hidden, hidden
        self.calls = done.calls
        shutil.rmtree(place)

    def copy(self) -> Path:
        """The folder as it is before, anew."""
        place = self.folder / f"{self.scene.name}-trial"
        if place.exists():
            shutil.rmtree(place)
        shutil.copytree(self.template, place, symlinks=True)
        return place

    def strike(self, point: Point) -> list[str]:
        """What is wrong after a run with a fault, and after the next run without one."""
        place = self.copy()
        done = self.server.run(self.scene.command, place, point)
        wrong = self.judge(place, done)
        if done.code == SIGKILL or tree(place)[1]:
            again = self.server.run(self.scene.retry, place)
            now, hidden = tree(place, self.scene.volatile)
            if again.code != 0:
                wrong.append(f"the next run ends with {again.code}: {again.stderr[-300:]}")
            elif dict(now) != dict(self.after):
                wrong.append(f"the next run gives other files: {difference(now, self.after)}")
            kept = [name for name in hidden if name not in again.stderr]  # it may be the only copy of what was there
            if kept or (hidden and len(self.scene.outputs) == 1):
                wrong.append(f"the next run leaves {hidden}: {again.stderr[-300:]}")
        shutil.rmtree(place)
        return [f"{self.scene.name} {point.mode.name} {point.number} {point.value} at {done.hit}: {w}" for w in wrong]

    def judge(self, place: Path, done: Answer) -> list[str]:
        """What is wrong with what a run has left and said."""
        now, hidden = tree(place, self.scene.volatile)
        wrong = []
        new = []
        for name in self.scene.outputs:
            found = part(now, name)
            if found == part(self.after, name):
                new.append(name)
            elif found != part(self.before, name):
                wrong.append(f"{name} is neither old nor new: {difference(found, part(self.after, name))}")
        others = {
            path for path in {*now, *self.before} if not any(part({path: ""}, name) for name in self.scene.outputs)
        }
        changed = sorted(path for path in others if now.get(path) != self.before.get(path))
        if changed:
            wrong.append(f"other files changed: {changed}")
        if done.code is None:
            wrong.append("it hangs")
        elif done.code == 0 and len(new) < len(self.scene.outputs):
            wrong.append(f"exit 0 without {sorted(set(self.scene.outputs) - set(new))}")
        elif done.code == 70 or "Traceback" in done.stderr or (done.code < 0 and done.code != SIGKILL):
            wrong.append(f"exit {done.code}: {done.stderr[-400:]}")
        elif done.code > 0 and self.is_new_now(new) and not self.is_told(done, new):
            wrong.append(f"exit {done.code} although {new} is there: {done.stderr[-300:]}")
        # cleaning may fail after the outputs have appeared
        if hidden and done.code not in (0, 5, SIGKILL) and "is kept: --resume goes on" not in done.stderr:
            wrong.append(f"it leaves {hidden}: {done.stderr[-300:]}")
        return wrong

    def is_told(self, done: Answer, new: Sequence[str]) -> bool:
        """Whether a run that fails says that these outputs are there."""
        return any(word in done.stderr for word in THERE) or all(f"done: {name}" in done.stderr for name in new)

    def is_new_now(self, new: Sequence[str]) -> bool:
        """Whether an output has appeared that was not there before, or not so."""
        return any(part(self.before, name) != part(self.after, name) for name in new)


THERE = ("is there", "are there")


def difference(found: Tree, expected: Tree) -> str:
    """A few words on what differs."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    other = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    return f"missing {missing[:4]}, extra {extra[:4]}, other {other[:4]}"


ERRORS = {"EIO": 5, "ENOSPC": 28, "EMFILE": 24, "EACCES": 13, "ENOMEM": 12}


def points(calls: Sequence[str], mode: Mode, draw: random.Random, count: int | None = None) -> Iterator[Point]:
    """Faults of a mode at calls, all or so many drawn."""
    numbers = [n for n, name in enumerate(calls, 1) if mode != Mode.SHORT or name in READS or name in WRITES]
    if count is not None and count < len(numbers):
        numbers = sorted(draw.sample(numbers, count))
    for number in numbers:
        value = 0
        if mode == Mode.FAIL:
            name = calls[number - 1]
            likely = ["EIO"] if name in READS else ["EIO", "ENOSPC"] if name in WRITES else list(ERRORS)
            value = ERRORS[draw.choice(likely)]
        elif mode == Mode.SIGNAL:
            value = draw.choice([signal.SIGINT, signal.SIGTERM])
        yield Point(mode, number, int(value))
