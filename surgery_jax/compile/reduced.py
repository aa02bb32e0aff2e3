"""Groups with statistics over all elements of a tensor: a function for every time that the elements are gone over.

A value that needs statistics can be computed when these are known, so the operations of a group fall into passes over
the elements. What leaves the group is written, or checked, in the first pass that can compute it. The statistics of a
pass are brought together by `execute` and are arguments of the next one, so that one function serves tensors of all
sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..kit.numbering import Numbering
from ..kit.operations import TensorOp
from ..kit.reduction import BLOCK, Reduction
from ..numerics.host_kernel import HostKernel
from .apart import SortedApart
from .blueprint import Blueprint, passes_of
from .lower import GroupFunction, raw
from .program import Group
from .totals import TileRows, Totals

__all__ = ["PassFunction", "ReducedFunction"]

# Elements that NumPy goes over at once: few enough that what they come to stays near a core, and so many that threads
# which take Python's lock between two steps seldom wait for it. With a quarter of this two were slower than one.
AT_ONCE = 64 * BLOCK

# Elements of all components together from which on what sorts rows is compiled for a CPU.
WORTH_COMPILING = 1 << 22

Statistics = Mapping[int, Sequence[Any]]  # what reductions have come to, by the number of the value


class ReducedFunction:
    """The functions of a group, one for each pass."""

    def __init__(self, group: Group, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self.reductions = blueprint.reductions
        known, self.first, count = passes_of(group, blueprint)
        begun = [op for value, op in self.reductions.items() if self.first[value] == 0]
        is_early = all(op.stride(0) == 1 for op in begun) and not any(known[value] for value, _ in group.sample.checks)
        self.checking = 0 if is_early else count - 1  # the pass that checks: one that is about all elements anyway
        self.passes: list[PassFunction] = []
        wanted: frozenset[int] = frozenset()  # by the passes after it
        for number in reversed(range(count)):
            once = PassFunction(group, blueprint, self, number, count, known, wanted)
            self.passes.insert(0, once)
            wanted |= once.needed

    @property
    def num_traces(self) -> int:
        """How often any of them was traced and compiled so far."""
        return sum(function.num_traces for function in self.passes)

    def stage(self, value: int, number: int) -> int | None:
        """The stage of a reduction in a pass, None if it has none there."""
        stage = number - self.first[value]
        return stage if 0 <= stage < self.reductions[value].stages else None

    def totals(self, number: int, before: Statistics, size: int) -> dict[int, Totals | TileRows]:
        """What brings the tiles of a pass together, for each of its statistics that are not settled; `size`: rows of
        the component."""
        kernel = HostKernel()
        found: dict[int, Totals | TileRows] = {}
        for value, op in self.reductions.items():
            stage = self.stage(value, number)
            if stage is None or op.is_settled(stage, before.get(value)):
                continue
            width, how = len(op.how(stage)), op.gathered(stage)
            if how == "rows":
                found[value] = TileRows(width, op.thinned(stage, size * self.blueprint.width))
            else:
                found[value] = Totals(partial(op.together, kernel, stage), width, are_counts=how == "sum")
        return found

    def is_needless(self, number: int, totals: Mapping[int, Totals | TileRows]) -> bool:
        """Whether nothing leaves or is checked in a pass, and its statistics are settled."""
        once = self.passes[number]
        return not totals and not once.checked and len(once.leaving) == len(once.active)

    def reaches(self, number: int, before: Statistics, start: int, count: int) -> bool:
        """Whether a pass has anything to do with so many rows from row `start` on."""
        once = self.passes[number]
        return bool(once.checked) or len(once.leaving) > len(once.active) or bool(once.reaching(before, start, count))

    def finished(
        self, number: int, totals: Mapping[int, Totals | TileRows], before: Statistics, numbers: Sequence[float]
    ) -> dict[int, Sequence[Any]]:
        """What is known after a pass of a component with these numbers."""
        kernel = HostKernel()
        found = dict(before)
        remaining = iter(numbers)
        at = len(self.blueprint.specs)
        with np.errstate(all="ignore"):
            for eqn in self.blueprint.eqns:
                op, stage = eqn.op.with_numbers(remaining), self.stage(at, number) if at in self.reductions else None
                if at in totals and stage is not None:
                    assert isinstance(op, Reduction)
                    found[at] = op.finish(kernel, stage, totals[at].result(), before.get(at))
                at += len(eqn.specs)
        return found


class PassFunction(GroupFunction):
    """One pass. What leaves a tile are partial results of its blocks, and what can be written for the first time;
    one of them checks. Of values that are remembered a pass is given those that were known before it, after
    its inputs, and those that it is the first one to know leave it for the passes that need them.

    It is called as the function of any group is, with more numbers (`arguments`).
    """

    def __init__(
        self,
        group: Group,
        blueprint: Blueprint,
        whole: ReducedFunction,
        number: int,
        count: int,
        known: Sequence[int],
        wanted: frozenset[int],
    ) -> None:
        """`known`: the pass in which each value can be computed; `wanted`: values that passes after this one need."""
        super().__init__(group, blueprint)
        self.number = number
        self.reductions = whole.reductions
        self.stages = {value: whole.stage(value, number) for value in whole.reductions}
        self.active = [value for value, stage in self.stages.items() if stage is not None]
        self.given = [value for value in whole.reductions if whole.first[value] < number]  # begun, or finished
        self.num_numbers = len(group.sample.numbers)
        self.known_before = {value for value in blueprint.remembered if known[value] < number}
        self.remembered = [v for v in blueprint.remembered if known[v] == number and v in wanted]
        own = [value for value in blueprint.leaving if value not in whole.reductions and known[value] == number]
        self.leaving = (*own, *self.active, *self.remembered)
        self.checked = self.checked if number == whole.checking else []
        self.needed = self._needed(frozenset(self.active))
        self.recalled = sorted(self.known_before & self.needed)
        size = blueprint.rows * blueprint.width
        computed = [(at, op) for at, op, _ in self._operations() if self._is_computed(at)]
        # a statistic that is about few elements decides only where nothing else goes over all of them
        is_about_few = any(self.reductions[value].is_fast_at(self._stage(value)) for value in self.active)
        self.is_fast_on_host = (is_about_few and not self.remembered) or any(
            op.is_fast_on_host or size < op.host_below for _, op in computed
        )
        self._apart = self._sorted_apart([op for _, op in computed], sum(one.size for one in group.components))
        # if all that is wanted are samples, nothing else is computed
        strides = {self.reductions[value].stride(self._stage(value)) for value in self.active}
        is_alone = self.flat and len(self.leaving) == len(self.active) and not self.checked
        has_places = any(op.needs_places for at, op in computed if at not in self.reductions)
        self.stride = min(strides, default=1) if is_alone and not has_places and len(strides) == 1 else 1
        self._live: dict[frozenset[int], frozenset[int]] = {}  # what is needed by the statistics that are live
        self._done = self._done_after()

    def _sorted_apart(self, computed: Sequence[TensorOp], total: int) -> SortedApart | None:
        """How a CPU does the pass if it sorts rows and is worth compiling; None if it does not or is not. It goes over
        so many elements and does these operations."""
        is_about_rows = self.exact and not self.flat and all(op.sorts for op in computed if op.is_fast_on_host)
        is_left = any(self.reductions[value].is_fast_at(self._stage(value)) for value in self.active)
        if not any(op.sorts for op in computed) or not is_about_rows or is_left or total < WORTH_COMPILING:
            return None
        options = self.compiler_options("cpu") | {"xla_cpu_multi_thread_eigen": False}  # tiles have threads enough
        return SortedApart(self.traced, options, self.blueprint)

    def belongs_on_host(self, platform: str) -> bool:
        return super().belongs_on_host(platform) and self._apart is None

    def _stage(self, value: int) -> int:
        """The stage of a statistic that is active in this pass."""
        stage = self.stages[value]
        assert stage is not None
        return stage

    def _needed(self, live: frozenset[int]) -> frozenset[int]:
        """The values that what leaves, what is checked and what is reduced are made of; of the statistics, those that
        are `live`."""
        found = {*live, *(value for value in self.leaving if value not in self.active), *self.checked}
        at = len(self.blueprint.value_specs())
        for eqn in reversed(self.eqns):
            at -= len(eqn.specs)
            is_wanted = not found.isdisjoint(range(at, at + len(eqn.specs)))
            if is_wanted and self.stages.get(at, 0) is not None and at not in self.known_before:
                found.update(eqn.args)
        return frozenset(found)

    def _done_after(self) -> list[set[int]]:
        """By operation, the values that nobody wants any more after it."""
        wanted = {*self.leaving, *self.checked}
        wanted.update(arg for at, op, args in self._operations() if at in self.checked for arg in args)  # for messages
        found: list[set[int]] = []
        for eqn in reversed(self.eqns):
            found.insert(0, set(eqn.args) - wanted)
            wanted.update(eqn.args)
        return found

    def reaching(self, before: Statistics, start: int, count: int) -> frozenset[int]:
        """The statistics that are not settled and that so many rows from row `start` on may change."""
        width, found = self.blueprint.width, []
        for value in self.active:
            op, stage, known = self.reductions[value], self._stage(value), before.get(value)
            if not op.is_settled(stage, known) and op.reaches(stage, known, start * width, count * width):
                found.append(value)
        return frozenset(found)

    def _operations(self) -> Iterator[tuple[int, TensorOp, Sequence[int]]]:
        """Every operation, with the number of its first value, and its operands."""
        at = len(self.specs)
        for eqn in self.eqns:
            yield at, eqn.op, eqn.args
            at += len(eqn.specs)

    def _is_computed(self, value: int) -> bool:
        """Whether the operation of a value is done in this pass; what is known is not."""
        return value in self.needed and self.stages.get(value, 0) is not None and value not in self.known_before

    def arguments(self, numbers: Sequence[float], start: int, count: int, before: Statistics) -> tuple[float, ...]:
        """The numbers of a call: those of the operations, with which element of the tensor the tile begins, how many
        elements of it are there, and what the passes before have come to."""
        told = (float(x) for value in self.given for x in before[value])
        return (*numbers, float(start), float(count), *told)

    def threshold(self, numbers: tuple[float, ...]) -> int | None:
        """As for any group; statistics are no small numbers."""
        return super().threshold(numbers[: self.num_numbers])

    def on_device(
        self, inputs: Sequence[Any], numbers: tuple[float, ...], device: Any, is_exact: bool = False
    ) -> tuple[list[Any], list[bool]] | None:
        if self._apart is None or device.platform != "cpu":
            result = super().on_device(inputs, numbers, device, is_exact)
        else:
            result = self._on_processor(self._apart, inputs, numbers, device, is_exact)
        if result is None:
            return None
        outputs, verdicts = result
        pairs = zip(self.leaving, outputs, strict=True)
        return [self.reductions[v].received(self._stage(v), x) if v in self.active else x for v, x in pairs], verdicts

    def _on_processor(
        self, apart: SortedApart, inputs: Sequence[Any], numbers: tuple[float, ...], device: Any, is_exact: bool
    ) -> tuple[list[Any], list[bool]] | None:
        """As `on_device`, where NumPy sorts."""
        import jax

        with jax.enable_x64(True):
            bits = [] if is_exact else self._bits(numbers, device.platform)
            if bits is None:
                return None
            return apart.on_device(raw(inputs, self.specs), partial(self._of_rows, numbers), bits, device)

    def _of_rows(self, numbers: Sequence[float], begin: int, end: int) -> list[float]:
        """The numbers of a call for some rows of a tile, given those for all."""
        at = self.num_numbers
        start, there = numbers[at], numbers[at + 1]
        return [*numbers[:at], start + begin, min(max(there - begin, 0.0), float(end - begin)), *numbers[at + 2 :]]

    def on_host(self, inputs: Sequence[Any], numbers: Sequence[float]) -> tuple[list[Any], list[Any]]:
        """As for any group, a part of the tile after the other, so that what is computed stays in the caches; of each
        only what matters."""
        rows, at = self.blueprint.rows, self.num_numbers
        start, before = numbers[at], self._before(iter(numbers[at + 2 :]))
        is_counted = any(self._is_added(value) for value in self.active)  # in long tables for each part
        step = max(AT_ONCE // (1 if is_counted else 4) * self.stride // self.blueprint.width, 1)
        outputs: list[list[Any]] = [[] for _ in self.leaving]
        masks: list[list[Any]] = [[] for _ in self.checked]
        for first in range(0, rows, step):
            begin, end = self._reached(before, int(start), first, min(first + step, rows))
            live = self.reaching(before, int(start) + begin, end - begin)
            if begin == end:
                continue
            given = iter(self._of_rows(numbers, begin, end))
            with np.errstate(all="ignore"):
                values = self._computed(HostKernel(), [x[begin:end] for x in inputs], given, live)
            for found, value in zip(outputs, self.leaving, strict=True):
                if value in self.active and value not in live:
                    continue
                if value in self.active and self._is_added(value) and found:
                    found[0] += values[value].sum(0)
                else:
                    found.append(values[value])
            for found, value in zip(masks, self.checked, strict=True):
                found.append(values[value])
        return list(map(self._joined, self.leaving, outputs)), list(map(np.concatenate, masks))

    def _reached(self, before: Statistics, start: int, begin: int, end: int) -> tuple[int, int]:
        """The rows from `begin` to `end` of a tile, without blocks at either end that nothing in this pass is about."""
        if self.checked or len(self.leaving) > len(self.active):
            return begin, end
        block = max(BLOCK // self.blueprint.width, 1)
        while begin < end and not self.reaching(before, start + begin, min(block, end - begin)):
            begin = min(begin + block, end)
        while begin < end and not self.reaching(before, start + max(begin, end - block), min(block, end - begin)):
            end = max(begin, end - block)
        return begin, end

    def _is_added(self, value: int) -> bool:
        """Whether partial results of an active statistic are added up."""
        return self.reductions[value].gathered(self._stage(value)) == "sum"

    def _joined(self, value: int, parts: list[Any]) -> Any:
        """What parts of a tile came to, of which there may be none if it is a statistic."""
        return np.concatenate(parts) if parts else np.zeros((0, len(self.reductions[value].how(self._stage(value)))))

    def _evaluate(self, kernel: Any, values: list[Any], numbers: Iterator[Any]) -> list[Any]:
        return self._computed(kernel, values, numbers, frozenset(self.active))

    def _computed(self, kernel: Any, inputs: list[Any], numbers: Iterator[Any], live: frozenset[int]) -> list[Any]:
        """All values that are wanted; of the statistics those that are `live`, nothing of others."""
        given = list(numbers)
        own, rest = iter(given[: self.num_numbers]), iter(given[self.num_numbers :])
        start, count = next(rest), next(rest)
        before = self._before(rest)
        if live not in self._live:
            self._live[live] = self._needed(live)
        needed = self._live[live]
        inputs = [x[:: self.stride] for x in inputs]
        recalled = dict(zip(self.recalled, inputs[len(self.specs) :], strict=True))
        values = inputs[: len(self.specs)]
        first = kernel.xp.asarray(start, "float64") * float(self.blueprint.width)
        places = Numbering(kernel, first, values[0].shape if values else (self.blueprint.rows,))
        for eqn, done in zip(self.eqns, self._done, strict=True):
            op = eqn.op.with_numbers(own)
            at = len(values)
            arrays = [values[arg] for arg in eqn.args]
            if op.needs_places:
                arrays.append(places)
            if isinstance(op, Reduction):
                if at in live:
                    is_padded = all(arg < len(self.specs) for arg in eqn.args)  # what is beyond the end of inputs is 0
                    values.append(self._partial(kernel, op, at, before.get(at), count, arrays, is_padded))
                else:
                    is_known = self.stages[at] is None and at in before and at in needed
                    values.append(kernel.xp.stack(before[at]) if is_known else None)
            elif at in recalled:
                values.append(recalled[at])
            elif needed.isdisjoint(range(at, at + len(eqn.specs))):
                values += [None] * len(eqn.specs)
            else:
                values += self._results(kernel, op, arrays, len(eqn.specs))
            for value in done:  # so that what is computed next may lie where it did, in the caches
                values[value] = None
        return values

    def _before(self, told: Iterator[Any]) -> dict[int, list[Any]]:
        """What the passes before have come to, from the last numbers of a call."""
        return {value: [next(told) for _ in range(self._given_before(value))] for value in self.given}

    def _partial(
        self, kernel: Any, op: Reduction, value: int, before: Any, count: Any, arrays: Sequence[Any], is_padded: bool
    ) -> Any:
        """Partial results of a statistic."""
        stage = self._stage(value)
        if not self.flat:
            found = op.partial_by_rows(kernel, stage, before, count, *arrays)
        else:
            step = op.stride(stage)
            if step > 1:
                count = (kernel.xp.asarray(count).astype("int64") + (step - 1)) // step
                arrays = arrays if self.stride > 1 else [x if isinstance(x, Numbering) else x[::step] for x in arrays]
            found = op.partial(kernel, stage, before, count, *arrays, is_padded=is_padded)
        return op.received(stage, found) if isinstance(kernel, HostKernel) else found

    def _given_before(self, value: int) -> int:
        """How many numbers a reduction has given before this pass."""
        op, stage = self.reductions[value], self.stages[value]
        return op.given(op.stages - 1 if stage is None else stage - 1)
