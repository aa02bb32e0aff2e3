"""Executes a program: workers take one task after the other, read its inputs, compute, and write the results in place.

A worker does one task from beginning to end, so that reading, computing and writing of different tasks overlap without
queues between stages; the byte budget decides how many tasks are in flight.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np

from ..compile.blueprint import Blueprint
from ..compile.functions import Functions
from ..compile.lower import GroupFunction
from ..compile.pieces import Piece, cut
from ..compile.program import Component, Program
from ..compile.reduced import ReducedFunction
from ..compile.sharding import mesh_size
from ..compile.stacked import StackFunction
from ..core.errors import AssertionFailed, listing
from ..core.patterns import collapse
from ..graph.node import Source
from ..io.buffers import Budget, Files
from ..io.decoded import BlockCache, cache_bytes, decode
from ..io.encoded import EncodedFile
from ..io.outputs import OutputFile
from ..kit.made import Made
from ..numerics.blas import one_thread_each
from ..storage.identity import check_all, remembering
from .devices import local_devices
from .observers import Observer
from .reservations import (
    Limits,
    decode_needs,
    device_bytes,
    encode_needs,
    is_on_host,
    is_sharded,
    move_needs,
    piece_bytes,
    task_needs,
)
from .schedule import DecodeTask, MoveTask, Task, Tile, blueprints, plan_tasks
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
        program: Program,
        outputs: Sequence[OutputFile],
        *,
        limits: Limits,
        num_devices: int | None = None,
        observer: Observer | None = None,
        tick: Callable[[], object] | None = None,
        choose: Callable[[Sequence[Blueprint]], Sequence[Task]] | None = None,
        full: deque[EncodedFile] | None = None,
        functions: Functions | None = None,
    ) -> None:
        """`choose` gives the tasks to run; all of the program if there is none. `functions` are those that programs
        before have compiled. `tick` is called now and then by the thread that waits."""
        self.program = program
        self.outputs = outputs
        cached = cache_bytes(program, limits.memory)
        self.blocks = BlockCache(cached)
        self.budget = Budget(limits.memory - cached)
        self.num_workers = limits.workers
        self.observer = observer or Observer()
        self._tick = tick or self.observer.tick
        self.piece = piece_bytes(limits.memory, limits.workers)
        plans = blueprints(program, limits)
        self._needs = [task_needs(*both, self.piece) for both in zip(program.groups, plans, strict=True)]
        known = functions or Functions()
        self.functions = [known.of(group, plan) for group, plan in zip(program.groups, plans, strict=True)]
        self._sharded = {n for n, plan in enumerate(plans) if is_sharded(program.groups[n], plan, limits)}
        self._on_host = {n for n, plan in enumerate(plans) if is_on_host(program.groups[n], plan, limits)}
        self._sharing = threading.Lock()
        self._busy: Counter[int] = Counter()  # tasks by device, now
        self._given: Counter[int] = Counter()  # and so far
        self._device_limit = limits.device
        self._device_budgets: dict[int, Budget] = {}
        self.findings = Findings()
        self.files = Files()
        self._known = dict(program.symbolic.identities)  # what the input files were when their headers were read
        self.timeline = Timeline(self.observer)
        self.num_fallbacks = 0
        self._choose = choose
        self._full = deque() if full is None else full  # files that are to be encoded
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._users = 0  # of the descriptors
        # importing JAX takes a while, in which bytes can be moved and first inputs read
        starter = ThreadPoolExecutor(1)
        self._devices = starter.submit(local_devices, num_devices) if program.needs_device else None
        starter.shutdown(wait=False)

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
            self.files.close()
            for output in self.outputs:
                output.close()

    def run(self) -> None:
        """Do everything; all bytes are written when it returns.

        Interrupted, it waits for the tasks that are under way; interrupted once more, it leaves them alone.

        Raises:
            SurgeryError: the first thing that went wrong.
        """
        plans = [function.blueprint for function in self.functions]
        tasks = self._choose(plans) if self._choose is not None else plan_tasks(self.program, plans)
        pending = iter(tasks)
        # Not `join`: an interrupt in it makes Python take the thread for dead (bpo-45274), and nobody would wait.
        finished = [threading.Event() for _ in range(max(1, min(self.num_workers, len(tasks))))]
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
                    self._tick()
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
            budgets = [self.budget, *self._device_budgets.values()]
        for budget in budgets:
            budget.stop()
        self.blocks.stop()

    def _run(self, task: Task) -> None:
        if isinstance(task, MoveTask):
            with self.budget.reserve(move_needs(self.piece)) as buffers, self.timeline.stage("move"):
                self.outputs[task.moves[0].file].move(self.files, task.moves, *buffers)
            self.observer.advanced(task.nbytes)
        elif isinstance(task, DecodeTask):
            self._decode(task)
        else:
            self._run_tile(task)
        while self._full:
            self._seal()

    def _seal(self) -> None:
        try:
            file = self._full.popleft()
        except IndexError:  # another worker was faster
            return
        with self.budget.reserve(*encode_needs(file.size, file.workspace)) as (raw,), self.timeline.stage("encode"):
            file.seal(raw)

    def _decode(self, task: DecodeTask) -> None:
        with self.budget.reserve(*decode_needs(task.source.entry, self.piece)) as (bounce,):
            with self.timeline.stage("read"):
                raw = decode(task.source.entry, task.first, task.count)
                self.files.count(raw.nbytes)
            with self.timeline.stage("write"):
                for start, file, offset, nbytes in task.parts:
                    self.outputs[file].write(offset, raw[start : start + nbytes], bounce)
        self.observer.advanced(sum(part[3] for part in task.parts))

    # -- tiles --------------------------------------------------------------------------------------------------

    def _run_tile(self, tile: Tile) -> None:
        function = self.functions[tile.group]
        plan = function.blueprint
        with self.budget.reserve(*self._needs[tile.group]) as buffers:
            if isinstance(function, ReducedFunction):
                self._reduce(function, tile, buffers)
                return
            inputs = self._inputs(plan, tile, buffers)
            outputs = self._compute(function, tile, inputs, _numbers(tile, plan))
            with self.timeline.stage("write"):
                self._write(plan, tile, dict(zip(plan.leaving, outputs, strict=True)), buffers[-1])
            self._advance(plan, tile)

    def _reduce(self, function: ReducedFunction, tile: Tile, buffers: list[np.ndarray]) -> None:
        """Go over a component in parts, as often as its statistics need."""
        plan = function.blueprint
        ((component, _, size),) = tile.segments
        known: dict[int, Sequence[Any]] = {}
        for number, once in enumerate(function.passes):
            parts: dict[int, list[Any]] = {value: [] for value in once.active}
            for start in range(0, size, plan.rows):
                part = Tile(tile.group, ((component, start, min(plan.rows, size - start)),))
                inputs = self._inputs(plan, part, buffers)
                numbers = once.arguments(component.numbers, part.segments[0][2], known)
                outputs = dict(zip(once.leaving, self._compute(once, part, inputs, numbers), strict=True))
                for value in parts:
                    parts[value].append(outputs.pop(value))
                with self.timeline.stage("write"):
                    self._write(plan, part, outputs, buffers[-1])
                if number == 0:
                    self._advance(plan, part)
            known = function.finished(number, parts, known)
        self._tell(component, {value: np.array(found, np.float64) for value, found in known.items()}, buffers[-1])

    def _tell(self, component: Component, results: dict[int, np.ndarray], bounce: np.ndarray) -> None:
        """Put statistics where they are wanted."""
        for output in component.outputs:
            if output.value in results:
                array = results[output.value]
                for sink in output.sinks:
                    self.findings.add(sink, 0, array)
                for dest in output.dests:
                    for start, offset, nbytes in dest.parts(0, array.nbytes):
                        self.outputs[dest.file].write(offset, _bytes_of(array)[start : start + nbytes], bounce)

    def _inputs(self, plan: Blueprint, tile: Tile, buffers: list[np.ndarray]) -> list[np.ndarray]:
        """The inputs of a tile, in these buffers; what is beyond the end of the last segment is zero."""
        inputs = []
        with self.timeline.stage("read"):
            for index, spec in enumerate(plan.specs):
                width = spec.nbytes // plan.rows
                pieces: list[Piece] = []
                for component, start, count in tile.segments:
                    pieces += cut(component.inputs[index], start * width, count * width)
                buffer = buffers[index][: spec.nbytes]
                filled = self._fill(buffer, pieces, buffers[-1])
                buffer[filled:] = 0
                inputs.append(buffer.view(spec.dtype.numpy).reshape(spec.shape))
        return inputs

    def _advance(self, plan: Blueprint, tile: Tile) -> None:
        """Count the bytes of a tile as done."""
        rows = sum(count for _, _, count in tile.segments) - tile.seen
        self.observer.advanced(rows * sum(spec.nbytes for spec in plan.specs) // plan.rows)

    def _fill(self, target: np.ndarray, pieces: Sequence[Piece], scratch: np.ndarray) -> int:
        """Bring the bytes of pieces into a buffer and count them; neighbours in a file are read together."""
        at = 0
        run: tuple[str, int, int, int] | None = None  # (path, offset, begin, end) of what is to be read at once
        for piece in pieces:
            op = piece.node.op
            if isinstance(op, Source) and op.entry.extent is not None:
                for path, offset, nbytes in op.entry.extent.ranges(piece.start, piece.nbytes):
                    if run is not None and run[0] == path and run[1] + run[3] - run[2] == offset:
                        run = (run[0], run[1], run[2], at + nbytes)
                    else:
                        self._read(run, target, scratch)
                        run = (path, offset, at, at + nbytes)
                    at += nbytes
                continue
            if isinstance(op, Source):
                self.blocks.fill(op.entry, piece.start, target[at : at + piece.nbytes])
            else:
                _make(piece, target[at : at + piece.nbytes])
            at += piece.nbytes
        self._read(run, target, scratch)
        return at

    def _read(self, run: tuple[str, int, int, int] | None, target: np.ndarray, scratch: np.ndarray) -> None:
        if run is not None:
            self.files.read(run[0], run[1], target[run[2] : run[3]], scratch)

    # -- results ------------------------------------------------------------------------------------------------

    def _compute(
        self, function: GroupFunction | StackFunction, tile: Tile, inputs: list[np.ndarray], numbers: Any
    ) -> list[np.ndarray]:
        """What leaves a tile; the checks are settled."""
        with self.timeline.stage("compute"):
            result, mesh = self._on_devices(function, tile, inputs, numbers)
            if result is not None:
                outputs = [np.asarray(array) for array in result[0]]
                holds, guards = result[1][: len(function.checked)], result[1][len(function.checked) :]
            else:
                try:
                    with one_thread_each() if function.uses_lapack else nullcontext():
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
        self, function: GroupFunction | StackFunction, tile: Tile, inputs: list[np.ndarray], numbers: Any
    ) -> tuple[tuple[list[Any], list[bool]] | None, list[Any]]:
        """Outputs and verdicts, None if it is up to the host; and the devices over which one component was spread."""
        if self._devices is None or tile.group in self._on_host:
            return None, []
        devices = self._devices.result()
        mesh = devices[: mesh_size(len(devices))]
        if tile.group in self._sharded:
            assert isinstance(function, GroupFunction)
            with self._shared_by(mesh, function):
                return function.on_mesh(inputs, numbers, mesh), mesh
        if function.belongs_on_host(devices[0].platform):
            return None, []
        if isinstance(function, StackFunction):
            with self._room(mesh, function.device_bytes(len(mesh))):
                result = function.on_mesh(inputs, numbers, mesh)
        else:
            with self._least_busy(len(devices)) as which:
                with self._device_budget(which).reserve([], device_bytes(function.blueprint)):
                    result = function.on_device(inputs, numbers, devices[which])
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
                stack.enter_context(self._device_budget(number).reserve([], nbytes))
            yield

    def _device_budget(self, number: int) -> Budget:
        """The budget of one of the devices of this process, of which there may be any number."""
        with self._lock:
            found = self._device_budgets.setdefault(number, Budget(self._device_limit))
            if self._failure is not None:
                found.stop()
            return found

    @contextmanager
    def _shared_by(self, mesh: list[Any], function: GroupFunction) -> Iterator[None]:
        """Room for a part of a task on each of some devices. One such task at a time, since its parts wait for each
        other; where a CPU stands for several devices, each decomposes matrices in one thread."""
        assert function.layout is not None
        with self._sharing, self._room(mesh, function.layout.device_bytes(len(mesh))):
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

    def _write(self, plan: Blueprint, tile: Tile, outputs: dict[int, np.ndarray], bounce: np.ndarray) -> None:
        """Put outputs, by the number of the value, in their places; neighbours in a file are written together."""
        for index, value in enumerate(plan.leaving):
            if value not in outputs:
                continue
            flat = np.ascontiguousarray(outputs[value]).reshape(-1)
            width = flat.size // plan.rows  # elements of a row
            row_bytes = flat.nbytes // plan.rows
            parts: list[tuple[int, int, int, int]] = []  # (file, offset there, begin and end here)
            at = 0
            for component, start, count in tile.segments:
                output = component.outputs[index]
                # rows that the tile before has written are left alone: no byte is ever written by two workers
                first, begin, rows = start + tile.seen, at + tile.seen, count - tile.seen
                shift = (begin - first) * row_bytes  # from a byte of the value to its place in the buffer
                for dest in output.dests:
                    for start_byte, offset, nbytes in dest.parts(first * row_bytes, rows * row_bytes):
                        parts.append((dest.file, offset, start_byte + shift, start_byte + shift + nbytes))
                for sink in output.sinks:
                    self.findings.add(sink, first * width, flat[begin * width : (begin + rows) * width])
                at += count
            raw = _bytes_of(flat)
            for file, offset, begin, end in _joined(parts):
                self.outputs[file].write(offset, raw[begin:end], bounce)


def _make(piece: Piece, target: np.ndarray) -> None:
    """Bytes of a tensor that is made here."""
    op, dtype = piece.node.op, piece.node.spec.dtype
    assert isinstance(op, Made)
    op.put(piece.start // dtype.itemsize, target.view(dtype.numpy))


def _numbers(tile: Tile, plan: Blueprint) -> Any:
    """The numbers of a task: for a stack those of each component."""
    own = [component.numbers for component, _, _ in tile.segments]
    return own if plan.one is not None else own[0]


def _joined(parts: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Parts in the order of their places, neighbours joined."""
    found: list[tuple[int, int, int, int]] = []
    for file, offset, begin, end in sorted(parts):
        last = found[-1] if found else None
        if last is not None and last[0] == file and last[1] + last[3] - last[2] == offset and last[3] == begin:
            found[-1] = (file, last[1], last[2], end)
        else:
            found.append((file, offset, begin, end))
    return found


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
