"""Executes a schedule: workers take one task after the other, read its inputs, compute, and write the results in place.

A worker does one task from beginning to end, so that reading, computing and writing of different tasks overlap without
queues between stages; the byte budget decides how many tasks are in flight.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..compile.blueprint import Blueprint
from ..compile.functions import Functions
from ..compile.reduced import ReducedFunction
from ..io.buffers import Budget
from ..io.decoded import decode
from ..io.encoded import EncodedFile
from ..io.outputs import OutputFile
from ..storage.identity import check_all, remembering
from .computing import Computing
from .filling import Inputs, shaped
from .hands import Hands
from .observers import Observer
from .reducing import Reducing
from .reservations import encode_needs
from .results import Results
from .schedule import Schedule
from .tasks import DecodeTask, MoveTask, Task, Tile
from .timeline import Timeline
from .verdicts import Findings

__all__ = ["Executor"]


class Executor:
    """Runs the tasks of one program, once; to be entered, which opens the outputs.

    All descriptors are closed by whoever is the last to leave: the caller, or a worker that outlasts the run because
    nobody had the patience to wait for it. None is closed while somebody may still use it, since the number of a closed
    one would soon stand for a file of somebody else.
    """

    def __init__(
        self,
        schedule: Schedule,
        outputs: Sequence[OutputFile],
        full: deque[EncodedFile],
        functions: Functions,
        observer: Observer,
        num_devices: int | None = None,
    ) -> None:
        """`full` gets the files that are to be encoded, and `functions` are those that programs before have compiled.
        `observer` is told what the workers do."""
        self.schedule = schedule
        self.outputs = outputs
        self.budget = Budget(schedule.memory)
        self._holding = Budget(schedule.held_inputs)
        self.observer = observer
        self.functions = [functions.of(work.group, work.blueprint) for work in schedule.groups]
        self.findings = Findings()
        self.timeline = Timeline(observer)
        self.inputs = Inputs(schedule.cached, schedule.repeated, schedule.held)
        self.computing = Computing(schedule, self.functions, num_devices, self.findings, self.timeline)
        self.results = Results(outputs, self.findings)
        self._hands = Hands(schedule.hands - 1, lambda: remembering(self._known))
        self._reducing = Reducing(self.inputs, self.computing, self.results, self._hands, self._advance)
        self._known = dict(schedule.program.symbolic.identities)  # what the inputs were when their headers were read
        self._full = full
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._users = 0  # of the descriptors

    @property
    def peak_buffer_bytes(self) -> int:
        """The most that buffers, decoded blocks and ranges have held."""
        return self.budget.peak + self.inputs.blocks.peak + self.inputs.held.peak

    def __enter__(self) -> Executor:
        """Raises StorageError: an output cannot be opened."""
        self._users = 1
        try:
            for output in self.outputs:
                output.open()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            is_last = self._users == 0
        if is_last:
            self._hands.close()
            self.inputs.files.close()
            for output in self.outputs:
                output.close()

    def run(self, tasks: Sequence[Task], tick: Callable[[], object]) -> None:
        """Do these tasks; all their bytes are written when it returns. Until then `tick` is called now and then.

        Interrupted, it waits for the tasks that are under way; interrupted once more, it leaves them alone.

        Raises:
            SurgeryError: the first thing that went wrong.
        """
        pending = iter(tasks)
        # Not `join`: an interrupt in it makes Python take the thread for dead (bpo-45274), and nobody would wait.
        finished = [threading.Event() for _ in range(max(1, min(self.schedule.limits.workers, len(tasks))))]
        threads = [
            threading.Thread(target=self._work, args=(pending, event), daemon=True, name=f"surgery-{number}")
            for number, event in enumerate(finished)
        ]
        try:
            for thread in threads:
                thread.start()
            for event in finished:
                is_finished = False
                while not is_finished:
                    is_finished = event.wait(0.2)
                    tick()
        except BaseException as interrupt:
            self._fail(interrupt)
            for thread, event in zip(threads, finished, strict=True):
                while thread.ident is not None and not event.wait(0.2):
                    pass  # a signal that another thread received is heard between two waits
            raise
        check_all(self._known)  # first: a changed input is the cause of whatever came of it
        if self._failure is not None:
            raise self._failure

    def _work(self, pending: Iterator[Task], finished: threading.Event) -> None:
        with self._lock:
            if self._users == 0:  # the run is over before this thread has come to work
                return
            self._users += 1
        with remembering(self._known):
            self._work_on(pending, finished)

    def _work_on(self, pending: Iterator[Task], finished: threading.Event) -> None:
        try:
            while self._failure is None:
                with self._lock:
                    task = next(pending, None)
                if task is None:
                    return
                self._run(task)
                self.observer.task_done(task)
        except BaseException as error:
            self._fail(error)
        finally:
            self._leave()
            finished.set()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is None:
                self._failure = error
        self.budget.stop()
        self._holding.stop()
        self.computing.stop()
        self.inputs.blocks.stop()
        self.inputs.held.stop()

    def _run(self, task: Task) -> None:
        held = self._holding.reserve([], self.schedule.holding(task))
        with held, self.budget.reserve(*self.schedule.needs(task)) as buffers:
            if isinstance(task, MoveTask):
                with self.timeline.stage("move"):
                    self.outputs[task.moves[0].file].move(self.inputs.files, task.moves, *buffers)
            elif isinstance(task, DecodeTask):
                self._decode(task, *buffers)
            else:
                self._run_tile(task, buffers)
        # of a component that is reduced, tiles are counted one by one
        if not (isinstance(task, Tile) and isinstance(self.functions[task.group], ReducedFunction)):
            self._advance(task)
        while self._full:
            self._seal()

    def _advance(self, task: Task) -> None:
        self.observer.advanced(self.schedule.advance(task))

    def _seal(self) -> None:
        try:
            file = self._full.popleft()
        except IndexError:  # another worker was faster
            return
        with self.budget.reserve(*encode_needs(file.size, file.workspace)) as (raw,), self.timeline.stage("encode"):
            file.seal(raw)

    def _decode(self, task: DecodeTask, bounce: np.ndarray) -> None:
        with self.timeline.stage("read"):
            raw = decode(task.source.entry, task.first, task.count)
            self.inputs.files.count(raw.nbytes)
        with self.timeline.stage("write"):
            for start, file, offset, nbytes in task.parts:
                self.outputs[file].write(offset, raw[start : start + nbytes], bounce)

    # -- tiles --------------------------------------------------------------------------------------------------

    def _run_tile(self, tile: Tile, buffers: list[np.ndarray]) -> None:
        function = self.functions[tile.group]
        if isinstance(function, ReducedFunction):
            self._reducing.run(function, self.schedule.groups[tile.group], tile, buffers)
            return
        plan = function.blueprint
        inputs = shaped(plan, self._read(plan, tile, buffers))
        outputs = self.computing.outputs(function, tile, inputs, _numbers(tile, plan))
        with self.timeline.stage("write"):
            self.results.put(plan, tile, dict(zip(plan.leaving, outputs, strict=True)), buffers[-1])

    def _read(self, plan: Blueprint, tile: Tile, buffers: list[np.ndarray]) -> list[np.ndarray]:
        with self.timeline.stage("read"):
            return self.inputs.of(plan, tile.segments, buffers)


def _numbers(tile: Tile, plan: Blueprint) -> Any:
    """The numbers of a task: for a stack those of each component."""
    own = [component.numbers for component, _, _ in tile.segments]
    return own if plan.one is not None else own[0]
