"""Writes down what is finished, in the hidden directories of the outputs, so that another run can go on with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..execute.left import is_looked_at
from ..execute.observers import Observer, Pass
from ..storage.companions import sync
from ..storage.journal import Finished, Journal, Range

if TYPE_CHECKING:
    from ..execute.tasks import Task
    from ..io.outputs import Written
    from ..storage.publish import Staging
    from ..storage.stages import Stage

__all__ = ["Journals"]

SYNC_S = 5.0  # of work after which it is brought to the disk
SHARE = 0.1  # of the time that this may take


@dataclass(eq=False)
class _OutputJournal:
    """The journal of one output."""

    stage: Stage
    journal: Journal
    lock: threading.Lock = field(default_factory=threading.Lock)
    touched: set[str] = field(default_factory=set)  # places of files, since the last mark
    is_rooted: bool = False  # whether its directories are on the disk

    def add(self, done: Finished, places: Sequence[str]) -> None:
        """A task is done that wrote to these places."""
        with self.lock:
            self.journal.add(done)
            self.touched.update(places)

    def bring_to_disk(self) -> None:
        """All that is noted so far, and then say so.

        Raises:
            OSError: that failed; nothing is said.
        """
        with self.lock:
            length, touched, self.touched = self.journal.length, self.touched, set()
        if not touched:
            return
        try:
            for place in sorted(touched):
                sync(Path(place))
            if not self.is_rooted:
                sync(self.stage.path / "head")
                directories = [path for path in self.stage.new.rglob("*") if path.is_dir()]
                for path in (*directories, self.stage.new, self.stage.path, self.stage.path.parent):
                    sync(path)
                self.is_rooted = True
        except OSError:
            with self.lock:
                self.touched |= touched
            raise
        with self.lock:
            self.journal.mark(length)


class Journals(Observer):
    """Notes every task that is done, with the ranges that it wrote, and from time to time brings all that to the disk,
    if outputs are to be there at all before they appear."""

    def __init__(self, is_synced: bool) -> None:
        self._is_synced = is_synced
        self._outputs: list[_OutputJournal] = []
        self._places: dict[str, tuple[_OutputJournal, int]] = {}
        self._own = threading.local()
        self._work: Pass | None = None
        self._numbers: dict[Any, int] | None = None  # of checks and sinks; None where they are of several plans
        self._is_one = True
        self._syncing: threading.Thread | None = None
        self._ended = threading.Event()
        self._last = time.monotonic()

    def begin(self, stagings: Sequence[Staging], rank: int, is_one: bool) -> None:
        """Keep the journals of this process for these outputs: of one plan, or of several, whose findings cannot be
        told apart. Where one cannot be kept there is none."""
        self._is_one = is_one
        for staging in stagings:
            if staging.stage is not None:
                with suppress(OSError):
                    output = _OutputJournal(staging.stage, Journal(staging.stage.journal(rank)))
                    self._outputs.append(output)
                    for index in range(len(staging.layout.files)):
                        self._places[staging.place(index)] = output, index

    def pass_begins(self, work: Pass) -> None:
        self._work = work if self._outputs and work.is_last else None
        if self._work is not None and self._is_one:
            from ..execute.verdicts import numbered  # with NumPy, which what only checks a plan does without

            self._numbers = numbered(work.schedule.program.symbolic)
            work.findings.remember()
        self._last = time.monotonic()

    def written(self, what: Written) -> None:
        known = self._places.get(what.place)
        if known is None or not what.nbytes:
            return
        output, file = known
        ranges: list[tuple[_OutputJournal, str, Range]] = vars(self._own).setdefault("ranges", [])
        ranges.append((output, what.place, (file, what.offset, what.nbytes)))

    def task_done(self, task: Task) -> None:
        ranges = vars(self._own).pop("ranges", [])
        if self._work is None:
            return
        key, found = "", b""
        if is_looked_at(task) and self._numbers is not None:
            symbolic = self._work.schedule.program.symbolic
            key, found = self._work.schedule.key(task), self._work.findings.taken().pack(symbolic, self._numbers)
        for output in dict.fromkeys([*([self._outputs[0]] if key else []), *(entry[0] for entry in ranges)]):
            own = [entry for entry in ranges if entry[0] is output]
            is_first = output is self._outputs[0]
            done = Finished(tuple(entry[2] for entry in own), False, key * is_first, found * is_first)
            output.add(done, [entry[1] for entry in own])

    def tick(self) -> None:
        if self._is_synced and self._work is not None and self._syncing is None:
            if time.monotonic() - self._last > SYNC_S:
                self._syncing = threading.Thread(target=self._sync, daemon=True, name="journals")
                self._syncing.start()

    def _sync(self) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            began = time.monotonic()
            self._bring_to_disk()
            pause = max(SYNC_S, (time.monotonic() - began) / SHARE)

    def _bring_to_disk(self) -> None:
        for output in self._outputs:
            with suppress(OSError):  # it is tried again, and if the disk has failed the run will
                output.bring_to_disk()

    def close(self, is_kept: bool) -> None:
        """Nothing more is done. If it is kept for another run, it is brought to the disk."""
        self._ended.set()
        if self._syncing is not None:
            self._syncing.join()
        if is_kept and self._is_synced:
            self._bring_to_disk()
        for output in self._outputs:
            with output.lock:  # a worker that outlasts the run may be about to note something
                output.journal.close()
        self._outputs.clear()
        self._places.clear()
        self._work, self._numbers, self._syncing = None, None, None
        self._ended = threading.Event()
