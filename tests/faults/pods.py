#!/usr/bin/env python
"""Disturbs runs of three processes in every phase, and holds to it that all end soon, say why, and lose nothing.

    python tests/faults/pods.py               a few of the scenarios
    python tests/faults/pods.py --long        all of them
    python tests/faults/pods.py --only pause  those of one kind

The exit code is 1 if anything was wrong. `--report FILE` keeps the counts for each kind while they grow: called again
with the same file it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.account import Account
from pods import Ended, Pod, Stranger, wait_for, write_endless
from running import write_checkpoint

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
SIZE = 3
JOIN_S = 15  # for all to come, where one will not
AMPLE_S = 90  # where all will
LEAVE_S = 20  # for all to end once something has happened; those who are silent are missed after 25 more
STRANGERS = 300


@dataclass(frozen=True)
class Scenario:
    """What happens to which process, in which phase: `start` soon after all have been started, `meeting` while the last
    is missing, `reading` while they work, `course` at any time of a run that is short."""

    kind: str
    phase: str
    rank: int = 0
    what: str = ""  # the kind of strangers, or what differs
    round: int = 0

    def __str__(self) -> str:
        return " ".join(map(str, (self.kind, self.phase, self.rank, self.what, self.round)))


def scenarios() -> Iterator[Scenario]:
    """All of them."""
    for kind in SIGNALS:
        for rank in range(SIZE):
            if rank < SIZE - 1:
                yield Scenario(kind, "meeting", rank)
            yield Scenario(kind, "reading", rank)
            for round in range(2):
                yield Scenario(kind, "start", rank, round=round)
                yield Scenario(kind, "course", rank, round=round)
    for rank in range(SIZE):
        yield Scenario("pause", "course", rank)
        yield Scenario("freeze", "reading", rank)
    yield Scenario("pause", "meeting", 0)
    yield Scenario("pause", "meeting", 1)
    yield Scenario("freeze", "meeting", 0)
    for what in Stranger.KINDS:
        yield Scenario("strangers", "meeting", what=what)
    for what in ("plan", "override", "header", "option"):
        yield Scenario("difference", "start", 2, what)


class Stage:
    """A folder with the plans, and one scenario in it."""

    def __init__(self, folder: Path, seed: int, patience: float = 1.0) -> None:
        self.folder = folder
        self.patience = patience
        self.ample_s = patience * AMPLE_S
        self.random = random.Random(seed)
        self.wrong: list[str] = []
        write_endless(folder)
        generator = np.random.default_rng(seed)
        tensors = {f"w{number}": generator.standard_normal(200_000).astype(np.float32) for number in range(20)}
        write_checkpoint(folder / "model.safetensors", tensors)
        (folder / "elsewhere").mkdir()
        write_checkpoint(folder / "elsewhere" / "model.safetensors", {**tensors, "more": np.zeros(3)})
        for name, factor in (("short", 0.3), ("other", 0.31)):
            steps = [{"scale_": {"target": r"w\d+", "by": factor}}]
            plan = {"inputs": ["model.safetensors"], "transforms": steps, "output": "out.safetensors"}
            (folder / f"{name}.yaml").write_text(json.dumps(plan))
        command = [sys.executable, "-m", "surgery_jax", "run", "short.yaml", "--quiet", "--no-summary"]
        subprocess.run(command, cwd=folder, check=True)
        self.expected = self._digest()
        (folder / "out.safetensors").unlink()
        self.before = self._names()

    def _digest(self) -> str:
        return hashlib.sha256((self.folder / "out.safetensors").read_bytes()).hexdigest()

    def _names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def holds(self, is_true: object, otherwise: str) -> None:
        """Note what is wrong unless something is true."""
        if not is_true:
            self.wrong.append(otherwise)

    # -- playing ------------------------------------------------------------------------------------------------

    def play(self, scenario: Scenario) -> list[str]:
        """What was wrong."""
        self.wrong = []
        plan = self.folder / ("plan.yaml" if scenario.phase == "reading" else "short.yaml")
        patience = self.patience * JOIN_S if scenario.kind in (*SIGNALS, "freeze") else self.ample_s
        with Pod(SIZE, plan, "--join-timeout", patience, cwd=self.folder) as pod:
            try:
                getattr(self, f"_play_{'signal' if scenario.kind in SIGNALS else scenario.kind}")(pod, scenario)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            for rank, process in pod.processes.items():
                self._check_end(scenario, rank, process.poll(), pod.said(rank))
            codes = [process.poll() for process in pod.processes.values()]
        self._check_what_is_left(scenario, codes)
        return [f"{scenario}: {text}" for text in self.wrong]

    def _check_end(self, scenario: Scenario, rank: int, code: int | None, said: str) -> None:
        """No traceback, and an exit code that means something, but where Python itself was still on its way to us."""
        if (
            (scenario.kind, scenario.rank) == ("interrupt", rank)
            and "KeyboardInterrupt" in said
            and code in (1, 130, -2)
        ):
            return
        self.holds("Traceback" not in said, f"process {rank} wrote {said}")
        self.holds(code in (0, 2, 3, 130, 143, -9, -15, -2), f"process {rank} ended with {code}")

    def _check_what_is_left(self, scenario: Scenario, codes: list[int | None]) -> None:
        """The output is whole or not there. What is hidden stays only where a run has not come to its end."""
        left = self._names() - self.before
        if "out.safetensors" in left:
            self.holds(self._digest() == self.expected, "the output is not what it should be")
        self.holds("out.safetensors" in left or set(codes) != {0}, "no output, and nobody says so")
        hidden = left - {"out.safetensors"}
        self.holds(not hidden or set(codes) != {0}, f"{hidden} is left")
        if hidden:
            self._check_next_run(hidden)
            left = self._names() - self.before
        for name in left:
            path = self.folder / name
            if path.is_dir():
                subprocess.run(["rm", "-r", str(path)], check=True)
            else:
                path.unlink()

    def _check_next_run(self, hidden: set[str]) -> None:
        """The next run, or one that goes on, names what is left and gives what it should; then it is cleaned away."""
        how = self.random.choice(["--overwrite", "--resume"])
        command = [sys.executable, "-m", "surgery_jax", "run", "short.yaml", "--no-summary", "--overwrite", how]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        self.holds(done.returncode == 0, f"{how} ends with {done.returncode}: {done.stderr}")
        unnamed = [name for name in hidden & self._names() if name not in done.stderr]
        self.holds(not unnamed, f"{how} does not name {unnamed}: {done.stderr}")
        command = [sys.executable, "-m", "surgery_jax", "clean", "out.safetensors"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        self.holds(not hidden & self._names(), f"{hidden} is not cleaned away: {done.stdout}")
        self.holds(self._digest() == self.expected, f"{how} gives another output")

    def _reach(self, pod: Pod, scenario: Scenario) -> None:
        if scenario.phase == "meeting":
            pod.start(*range(SIZE - 1))
            wait_for(lambda: all("waiting for process 2" in pod.said(rank) for rank in range(SIZE - 1)), self.ample_s)
            return
        pod.start()
        if scenario.phase == "reading":
            wait_for(lambda: list(self.folder.glob(".out*")), self.ample_s)
            time.sleep(0.5)
        else:
            time.sleep(self.random.uniform(0, 1.5 if scenario.phase == "start" else 5))

    def _names_it(self, ended: Ended, rank: int) -> None:
        self.holds(ended.code == 3, f"exit code {ended.code} where process {rank} was lost: {ended.err}")
        self.holds(f"process {rank}" in ended.err, f"process {rank} is not named in {ended.err!r}")

    def _play_signal(self, pod: Pod, scenario: Scenario) -> None:
        self._reach(pod, scenario)
        was_over = pod.processes[scenario.rank].poll() is not None
        began = time.monotonic()
        if not was_over:
            pod.signal(scenario.rank, SIGNALS[scenario.kind])
        code = pod.end(scenario.rank, within_s=self.patience * LEAVE_S).code
        for rank in pod.processes:
            if rank == scenario.rank:
                continue
            # who had not met process 0 yet may still be starting, and then waits for it as long as it is asked to
            met = scenario.phase in ("meeting", "reading")
            ended = pod.end(rank, within_s=self.patience * (LEAVE_S + JOIN_S) if met else self.ample_s)
            if ended.code != 0 or code != 0:
                self.holds(not met or time.monotonic() - began < self.patience * LEAVE_S, "it took too long")
            if ended.code:
                self._names_it(ended, scenario.rank)

    def _play_pause(self, pod: Pod, scenario: Scenario) -> None:
        """Still for less time than is taken for the end of a process: the run succeeds."""
        self._reach(pod, scenario)
        pod.signal(scenario.rank, signal.SIGSTOP)
        time.sleep(5)
        pod.signal(scenario.rank, signal.SIGCONT)
        if scenario.phase == "meeting":
            pod.start(SIZE - 1)
        for ended in pod.ends(within_s=self.ample_s):
            self.holds(ended.code == 0, f"exit code {ended.code} after a pause: {ended.err}")

    def _play_freeze(self, pod: Pod, scenario: Scenario) -> None:
        """Still until all others have left: it must not wait for them."""
        self._reach(pod, scenario)
        pod.signal(scenario.rank, signal.SIGSTOP)
        others = [rank for rank in pod.processes if rank != scenario.rank]
        for rank in others:
            ended = pod.end(rank, within_s=25 + self.patience * LEAVE_S)
            if scenario.phase == "reading":
                self._names_it(ended, scenario.rank)
            self.holds(ended.code == 3, f"exit code {ended.code}")
        pod.signal(scenario.rank, signal.SIGCONT)
        ended = pod.end(scenario.rank, within_s=self.patience * LEAVE_S)
        self.holds(ended.code == 3, f"exit code {ended.code} of the one that stood still: {ended.err}")
        named = [rank for rank in range(SIZE) if rank != scenario.rank and f"process {rank}" in ended.err]
        self.holds(named, f"nobody is named in {ended.err!r}")

    def _play_strangers(self, pod: Pod, scenario: Scenario) -> None:
        self._reach(pod, scenario)
        strangers = [Stranger(pod.port, scenario.what) for _ in range(STRANGERS)]
        pod.start(SIZE - 1)
        for ended in pod.ends(within_s=self.ample_s):
            self.holds(ended.code == 0, f"exit code {ended.code} with strangers: {ended.err}")
        for stranger in strangers:
            with suppress(OSError):
                stranger.close()

    def _play_difference(self, pod: Pod, scenario: Scenario) -> None:
        pod.start(0, 1)
        name, words, cwd = {
            "plan": ("other.yaml", [], None),
            "override": ("transforms[0].scale_.by", ["transforms[0].scale_.by=7"], None),
            "header": ("model.safetensors", [], self.folder / "elsewhere"),
            "option": ("--memory", ["--memory", "1GiB"], None),
        }[scenario.what]
        pod.start(scenario.rank, more=words, cwd=cwd, plan=self.folder / name if name == "other.yaml" else None)
        for ended in pod.ends(within_s=self.ample_s):
            self.holds(ended.code == 2, f"exit code {ended.code} where {scenario.what} differs: {ended.err}")
            self.holds(f"process {scenario.rank}" in ended.err and name in ended.err, f"not named in {ended.err!r}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="all scenarios")
    parser.add_argument("--only", default="", help="a word that a scenario must have, such as `freeze` or `meeting`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience", type=float, default=1.0, help="how many times longer everything may take")
    parser.add_argument("--report", type=Path, help="a JSON file for the counts, or one to go on with")
    options = parser.parse_args()
    chosen = [one for one in scenarios() if options.only in str(one).split() or not options.only]
    if not options.long:
        chosen = random.Random(options.seed).sample(chosen, min(8, len(chosen)))
    about = {"seed": options.seed, "long": options.long, "only": options.only}
    account = Account("pods", options.report, about)
    with tempfile.TemporaryDirectory(prefix="pods-") as folder:
        stage = Stage(Path(folder), options.seed, options.patience)
        for scenario in chosen[account.tried.total() :]:
            wrong = stage.play(scenario)
            account.add(f"{scenario.kind}, {scenario.phase}", wrong)
            print(f"{scenario}: {'wrong' if wrong else 'ok'}", flush=True)
    account.close()
    print(account.told)
    return 1 if account.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
