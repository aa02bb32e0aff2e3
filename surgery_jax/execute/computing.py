"""The computing of tasks: on a device, on several at once, or in NumPy, each within the memory of its devices."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np

from ..compile.functions import Function
from ..compile.lower import GroupFunction
from ..compile.reduced import ReducedFunction
from ..compile.sharding import mesh_size
from ..compile.stacked import StackFunction
from ..core.cores import usable_cores
from ..core.errors import AssertionFailed, listing
from ..core.patterns import collapse
from ..io.buffers import Budget
from ..numerics.blas import one_thread_each
from .devices import has_only_processors, local_devices, settle
from .reservations import device_bytes
from .schedule import Schedule
from .tasks import Tile
from .timeline import Timeline
from .verdicts import Findings

__all__ = ["Computing", "Exactness"]


class Exactness:
    """Whether devices compute exactly with the inputs of one tile, that is gone over several times."""

    def __init__(self) -> None:
        self.holds: bool | None = None  # None: not known yet


class Computing:
    """The devices of a run, what they hold, and what came of the checks of tasks."""

    def __init__(
        self,
        schedule: Schedule,
        functions: Sequence[Function],
        num_devices: int | None,
        findings: Findings,
        timeline: Timeline,
    ) -> None:
        """`functions` are those of the groups."""
        self.findings = findings
        self.timeline = timeline
        self.num_fallbacks = 0
        self._places = [group.place for group in schedule.groups]
        self._limit = schedule.limits.device
        self._budgets: dict[int, Budget] = {}
        self._busy: Counter[int] = Counter()  # tasks by device, now
        self._given: Counter[int] = Counter()  # and so far
        self._sharing = threading.Lock()
        self._cores = threading.Semaphore(usable_cores())  # more threads in NumPy only take them from each other
        self._lock = threading.Lock()
        self._is_stopped = False
        self._devices: Future[list[Any]] | None = None
        if schedule.program.needs_device and ("jax" in sys.modules or needs_jax(schedule, functions)):
            # importing JAX takes a while, in which bytes can be moved and first inputs read
            starter = ThreadPoolExecutor(1)
            self._devices = starter.submit(local_devices, num_devices)
            starter.shutdown(wait=False)
        elif schedule.program.needs_device:
            settle()

    def stop(self) -> None:
        """Wake and refuse everyone who waits: the run has failed."""
        with self._lock:
            self._is_stopped = True
            budgets = list(self._budgets.values())
        for budget in budgets:
            budget.stop()

    def outputs(
        self,
        function: GroupFunction | StackFunction,
        tile: Tile,
        inputs: list[np.ndarray],
        numbers: Any,
        exactness: Exactness | None = None,
    ) -> list[np.ndarray]:
        """What leaves a tile; the checks are settled."""
        with self.timeline.stage("compute"):
            result, mesh = self._on_devices(function, tile, inputs, numbers, exactness or Exactness())
            if result is not None:
                outputs = [np.asarray(array) for array in result[0]]
                holds, guards = result[1][: len(function.checked)], result[1][len(function.checked) :]
            else:
                try:
                    with self._cores, one_thread_each() if function.uses_lapack else nullcontext():
                        outputs, masks = function.on_host(inputs, numbers)
                    holds, guards = [bool(np.all(mask)) for mask in masks], []
                except np.linalg.LinAlgError:
                    guards = [False]
        if not all(guards):
            broken = function.first_broken(inputs, numbers) if isinstance(function, StackFunction) else 0
            component = tile.segments[broken][0]
            names = listing(collapse(component.labels), 12) if component.labels else "a computed tensor"
            raise AssertionFailed(
                f"cannot be factored: {names} holds NaN or infinity",
                where=component.origins[-1],
                hint="find it with assert: { equal: { left: name, right: name, eps: 0 } }",
            )
        if not all(holds):
            self._explain(function, tile, inputs, numbers, result is None, mesh)
        return outputs

    def _on_devices(
        self,
        function: GroupFunction | StackFunction,
        tile: Tile,
        inputs: list[np.ndarray],
        numbers: Any,
        exactness: Exactness,
    ) -> tuple[tuple[list[Any], list[bool]] | None, list[Any]]:
        """Outputs and verdicts, None if it is up to the host; and the devices over which one component was spread."""
        if self._devices is None or self._places[tile.group] == "host":
            return None, []
        devices = self._devices.result()
        mesh = devices[: mesh_size(len(devices))]
        if self._places[tile.group] == "mesh":
            assert isinstance(function, GroupFunction)
            with self._shared_by(mesh, function):
                return function.on_mesh(inputs, numbers, mesh), mesh
        if exactness.holds is False or function.belongs_on_host(devices[0].platform):
            return None, []
        if isinstance(function, StackFunction):
            with self._room(mesh, function.device_bytes(len(mesh))):
                result = function.on_mesh(inputs, numbers, mesh)
        else:
            with self._least_busy(len(devices)) as which:
                with self._budget(which).reserve([], device_bytes(function.blueprint)):
                    result = function.on_device(inputs, numbers, devices[which], is_exact=exactness.holds is True)
        exactness.holds = result is not None
        if result is None:
            with self._lock:
                self.num_fallbacks += 1
        return result, []

    @contextmanager
    def _least_busy(self, count: int) -> Iterator[int]:
        """One of the first `count` devices: the one with the fewest tasks, of equals the one that had fewest so far."""
        with self._lock:
            which = min(range(count), key=lambda device: (self._busy[device], self._given[device]))
            self._busy[which] += 1
            self._given[which] += 1
        try:
            yield which
        finally:
            with self._lock:
                self._busy[which] -= 1

    @contextmanager
    def _room(self, devices: list[Any], nbytes: int) -> Iterator[None]:
        """So many bytes of each of the first devices."""
        with ExitStack() as stack:
            for number in range(len(devices)):
                stack.enter_context(self._budget(number).reserve([], nbytes))
            yield

    def _budget(self, number: int) -> Budget:
        """The budget of one of the devices of this process, of which there may be any number."""
        with self._lock:
            found = self._budgets.setdefault(number, Budget(self._limit))
            if self._is_stopped:
                found.stop()
            return found

    @contextmanager
    def _shared_by(self, mesh: list[Any], function: GroupFunction) -> Iterator[None]:
        """Room for a part of a task on each of some devices. One such task at a time, since its parts wait for each
        other; where a CPU stands for several devices, each decomposes matrices in one thread."""
        assert function.partition is not None
        with self._sharing, self._room(mesh, function.partition.device_bytes(len(mesh))):
            with one_thread_each() if mesh[0].platform == "cpu" else nullcontext():
                yield

    def _explain(
        self,
        function: GroupFunction | StackFunction,
        tile: Tile,
        inputs: list[np.ndarray],
        numbers: Any,
        on_host: bool,
        mesh: list[Any],
    ) -> None:
        """Find out where checks failed."""
        if isinstance(function, StackFunction):
            masks = function.masks(inputs, numbers, on_host)
        else:
            with self._shared_by(mesh, function) if mesh else nullcontext():
                masks = function.masks(inputs, numbers, on_host, mesh)
        for value, (mask, measure) in zip(function.checked, masks, strict=True):
            mask, measure = mask.reshape(-1), measure.reshape(-1)
            width = mask.size // function.blueprint.rows
            at = 0
            for component, start, count in tile.segments:
                part = slice((at + tile.seen) * width, (at + count) * width)
                for check in dict(component.checks)[value]:
                    self.findings.fail(check, mask[part], measure[part], (start + tile.seen) * width)
                at += count


def needs_jax(schedule: Schedule, functions: Sequence[Function]) -> bool:
    """Whether JAX must be imported, to compute or to know of devices: not where NumPy is the better way on a processor
    for all that would be computed on one, and there can be no other device. `functions` are those of the groups."""
    places = [group.place for group in schedule.groups]
    on_devices = [function for function, place in zip(functions, places, strict=True) if place != "host"]
    if "mesh" in places or schedule.limits.devices is not None:
        return bool(on_devices)
    return not all(map(_belongs_on_processor, on_devices)) or (bool(on_devices) and not has_only_processors())


def _belongs_on_processor(function: Function) -> bool:
    passes = function.passes if isinstance(function, ReducedFunction) else [function]
    return all(once.belongs_on_host("cpu") for once in passes)
