"""An observer as somebody else would write one: digests of all that is written, and a journal of all that happens."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

from surgery_jax import Observer
from surgery_jax.execute.observers import Appearing, Pass
from surgery_jax.execute.report import Account
from surgery_jax.execute.tasks import Task
from surgery_jax.graph.roots import Assertion
from surgery_jax.io.outputs import Written


class Listener(Observer):
    """`digests`: of every written range, by file and offset, with its length. `events`: their names, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.keys: list[str] = []
        self.bytes = [0, 0]  # to get through, and through
        self.digests: dict[tuple[str, int], tuple[int, str]] = {}
        self._lock = threading.Lock()

    def pass_begins(self, work: Pass) -> None:
        self.work = work
        self.bytes[0] += work.nbytes
        self.events.append("last pass" if work.is_last else "first pass")

    def advanced(self, nbytes: int) -> None:
        with self._lock:
            self.bytes[1] += nbytes

    def task_done(self, task: Task) -> None:
        self.keys.append(self.work.schedule.key(task))

    def written(self, what: Written) -> None:
        data = what.data
        if data is None:  # the kernel copied it
            with Path(what.place).open("rb") as stream:
                stream.seek(what.offset)
                data = stream.read(what.nbytes)
        with self._lock:
            assert (what.path, what.offset) not in self.digests
            self.digests[what.path, what.offset] = what.nbytes, hashlib.sha256(data).hexdigest()

    def pass_ends(self, account: Account | None) -> None:
        self.events.append("failed" if account is None else "done")

    def settled(self, assertion: Assertion, holds: bool, why: str) -> None:
        self.events.append(f"step {assertion.step}: {holds}")

    def appearing(self, plans: Sequence[Appearing]) -> None:
        self.events.append(f"{len(plans)} appearing")

    def appeared(self, plan: Appearing) -> None:
        self.events.append("appeared")
