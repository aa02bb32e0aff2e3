"""Kinds of run, what must be true of the files after a fault in one, and after the run that follows."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .harness import MEMORY, NO_FAULT, Answer, Mode, Point, Server

__all__ = ["Scene", "Struck", "Trial"]

READS = ("read", "pread", "pread64", "preadv", "preadv64", "preadv2", "preadv64v2")
WRITES = ("write", "pwrite", "pwrite64", "pwritev", "pwritev64", "copy_file_range", "sendfile", "sendfile64")
ONLY_AT = {Mode.SHORT: (*READS, *WRITES), Mode.FULL: (*WRITES, "mkdir", "mkdirat")}
PUBLISHING = ("rename", "renameat", "renameat2")
LAST = 60  # calls before the first output appears, at most, from where on a signal waits
SIGKILL = -int(signal.SIGKILL)
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ERRORS = {"EIO": 5, "ENOSPC": 28, "EMFILE": 24, "EACCES": 13, "ENOMEM": 12}
THERE = ("is there", "are there")


@dataclass(frozen=True)
class Scene:
    """A kind of run: what lies in its folder before, the command, and the names of its outputs.

    first: a command that prepares the folder. again: the command that must succeed after any fault. volatile: files
    that differ between honest runs. strangers: files in outputs that no run may touch. keeps: whether what is finished
    is not made again.
    """

    name: str
    build: Callable[[Path], object]
    command: tuple[str, ...]
    outputs: tuple[str, ...]
    first: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    volatile: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    keeps: bool = False

    @property
    def is_synced(self) -> bool:
        """Whether what has appeared is on the disk."""
        return "--no-sync" not in self.command

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
            data = path.read_bytes()
            found[name] = hashlib.sha256(_shared(data) if path.name == "surgery.receipt.json" else data).hexdigest()
    return found, hidden


def _shared(receipt: bytes) -> bytes:
    """The digest over what all honest runs of a plan share; a receipt without it as it is."""
    try:
        products = json.loads(receipt)["predicate"]["runDetails"]["byproducts"]
        (found,) = (one["digest"]["sha256"] for one in products if one["name"] == "surgery.comparable")
    except (ValueError, KeyError, TypeError):
        return receipt
    return str(found).encode()


def part(files: Tree, name: str) -> Tree:
    """The files of one output."""
    return {path: digest for path, digest in files.items() if path == name or path.startswith(name + "/")}


def difference(found: Tree, expected: Tree) -> str:
    """A few words on what differs."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    other = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    return f"missing {missing[:4]}, extra {extra[:4]}, other {other[:4]}"


def identities(place: Path, files: Iterable[str]) -> dict[str, int]:
    """Which files these are, so that one that is written anew is another."""
    return {name: (place / name).stat().st_ino for name in files if (place / name).exists()}


class Struck(NamedTuple):
    """How a fault ended: whether it came to it, what was wrong, and the most memory that was taken, in bytes."""

    is_hit: bool
    wrong: list[str]
    peak: int


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
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        self.template = self.folder / f"{self.scene.name}-template"
        self.template.mkdir()
        self.scene.build(self.template)
        if self.scene.first:
            done = self.server.run(self.scene.first, self.template)
            assert done.code == 0, done
        self.before, _ = tree(self.template, self.scene.volatile)
        place = self.copy()
        began = time.monotonic()
        done = self.server.run(self.scene.command, place, Point(Mode.COUNT, 0), log=True)
        self.seconds = time.monotonic() - began
        assert done.code == 0, done
        self.after, hidden = tree(place, self.scene.volatile)
        assert not hidden, hidden
        assert all(part(self.after, name) for name in self.scene.outputs), self.after
        lost = [name for name in self.scene.strangers if self.after.get(name) != self.before[name]]
        assert not lost, lost
        self.calls = done.calls
        shutil.rmtree(place)

    def copy(self) -> Path:
        """The folder as it is before, anew."""
        place = self.folder / f"{self.scene.name}-trial"
        if place.exists():
            shutil.rmtree(place)
        shutil.copytree(self.template, place, symlinks=True)
        return place

    def points(self, mode: Mode, draw: random.Random, count: int | None = None) -> Iterator[Point]:
        """Faults of a mode: at all calls, or at so many that are drawn."""
        if mode == Mode.LATER:
            for _ in range(count or 1):
                yield Point(mode, draw.randrange(round(self.seconds * 1e6)), draw.choice([signal.SIGKILL, *ASKING]))
            return
        numbers = [n for n, name in enumerate(self.calls, 1) if mode not in ONLY_AT or name in ONLY_AT[mode]]
        if count is not None and count < len(numbers):
            numbers = sorted(draw.sample(numbers, count))
        for number in numbers:
            yield Point(mode, number, value_of(mode, self.calls[number - 1], draw))

    # -- one fault ----------------------------------------------------------------------------------------------

    def strike(self, point: Point) -> Struck:
        """What is wrong after a run with a fault, and after the next run without one."""
        place = self.copy()
        finished = identities(place, self.finished(place))
        done = self.server.run(self.scene.command, place, point)
        wrong = [*self.judge(place, done, point), *self.judge_kept(place, finished)]
        if point.mode == Mode.KILL_AGAIN and done.code == SIGKILL:
            again = self.server.run(self.scene.retry, place, point)
            wrong += [f"the next run: {w}" for w in self.judge(place, again, point)]
        if done.code == SIGKILL or self.scene.keeps or any(".surgery-" in path.name for path in place.rglob("*")):
            wrong += self.judge_next(place)
        shutil.rmtree(place)
        if done.peak > MEMORY:
            wrong.append(f"it takes {done.peak >> 20} MiB")
        where = f"{self.scene.name} {point.mode.name} {point.number} {point.value} at {done.hit or 'no call'}"
        return Struck(bool(done.hit), [f"{where}: {w}" for w in wrong], done.peak)

    def finished(self, place: Path) -> list[str]:
        """Files of outputs that are as they should be, where such are not made again."""
        if not self.scene.keeps:
            return []
        now, _ = tree(place, self.scene.volatile)
        whole = [name for name in self.scene.outputs if part(now, name) == part(self.after, name)]
        return [path for name in whole for path in part(now, name)]

    def judge(self, place: Path, done: Answer, point: Point) -> list[str]:
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
        # cleaning may fail after the outputs have appeared
        if hidden and done.code not in (0, 5, SIGKILL) and "is kept: --resume goes on" not in done.stderr:
            wrong.append(f"it leaves {hidden}: {done.stderr[-300:]}")
        return wrong + self.judge_code(done, point, new)

    def judge_code(self, done: Answer, point: Point, new: Sequence[str]) -> list[str]:
        """What is wrong with how a run ends where these outputs are there."""
        if done.code is None:
            return ["it hangs"]
        if done.code not in self.codes(point, done) or "Traceback" in done.stderr:
            return [f"exit {done.code}: {done.stderr[-400:]}"]
        if done.code == 0 and len(new) < len(self.scene.outputs):
            return [f"exit 0 without {sorted(set(self.scene.outputs) - set(new))}"]
        appeared = [name for name in new if part(self.before, name) != part(self.after, name)]
        if done.code > 0 and appeared and not is_told(done, appeared):
            return [f"exit {done.code} although {appeared} is there: {done.stderr[-300:]}"]
        return []

    def codes(self, point: Point, done: Answer) -> set[int]:
        """The exit codes that a fault may have."""
        if not done.hit:
            return {0}
        if point.mode in (Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.KILL_AGAIN):
            return {SIGKILL}
        if point.mode == Mode.LATER:
            return {-point.value, 128 + point.value, 0, 5}  # before anybody listens, while it works, at its end
        if point.mode == Mode.SIGNAL:
            return {128 + point.value} if self.is_before_all(point) else {128 + point.value, 0, 5}
        return {0, 2, 3, 4, 5} | ({1} if "batch" in self.scene.command else set())

    def is_before_all(self, point: Point) -> bool:
        """Whether a call comes well before the first output appears, whose last checks nothing may disturb."""
        return not any(name in PUBLISHING for name in self.calls[: point.number + LAST])

    # -- the next run -------------------------------------------------------------------------------------------

    def judge_next(self, place: Path) -> list[str]:
        """What is wrong after the next run, which nothing disturbs."""
        _, left = tree(place)
        finished = identities(place, self.finished(place))
        again = self.server.run(self.scene.retry, place, NO_FAULT)
        now, hidden = tree(place, self.scene.volatile)
        wrong = self.judge_kept(place, finished)
        if again.code != 0:
            wrong.append(f"the next run ends with {again.code}: {again.stderr[-300:]}")
        elif dict(now) != dict(self.after):
            wrong.append(f"the next run gives other files: {difference(now, self.after)}")
        unnamed = [name for name in hidden if name not in again.stderr]
        if unnamed:
            wrong.append(f"the next run does not name {unnamed}: {again.stderr[-300:]}")
        if hidden and (len(self.scene.outputs) == 1 or not set(hidden) <= set(left)):
            # of several outputs it may be the only copy of what was there
            wrong.append(f"the next run leaves {hidden}: {again.stderr[-300:]}")
        return wrong

    def judge_kept(self, place: Path, finished: Mapping[str, int]) -> list[str]:
        """What was finished must be the same files still."""
        anew = sorted(name for name, number in identities(place, finished).items() if number != finished[name])
        return [f"{anew} was finished, and is made again"] if anew else []


def is_told(done: Answer, names: Sequence[str]) -> bool:
    """Whether a run that fails says that these outputs are there."""
    return any(word in done.stderr for word in THERE) or all(f"done: {name}" in done.stderr for name in names)


def value_of(mode: Mode, name: str, draw: random.Random) -> int:
    """An errno or a signal for a fault at a call."""
    if mode == Mode.FAIL:
        likely = ["EIO"] if name in READS else ["EIO", "ENOSPC"] if name in WRITES else list(ERRORS)
        return ERRORS[draw.choice(likely)]
    if mode == Mode.FULL:
        return ERRORS["ENOSPC"]
    return int(draw.choice(ASKING)) if mode == Mode.SIGNAL else 0
