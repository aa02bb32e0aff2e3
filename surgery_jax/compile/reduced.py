"""Groups with statistics over all elements of a tensor: a function for every time that the elements are gone over.

A value that needs statistics can be computed when these are known, so the operations of a group fall into passes over
the elements. What leaves the group is written, or checked, in the first pass that can compute it. The statistics of a
pass are brought together by `execute` and are arguments of the next one, so that one function serves tensors of all
sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..kit.reduction import Reduction, combined
from ..numerics.kernels import HostKernel
from .blueprint import Blueprint
from .lower import GroupFunction
from .program import Group

__all__ = ["PassFunction", "ReducedFunction"]

Statistics = Mapping[int, Sequence[Any]]  # what reductions have come to, by the number of the value


class ReducedFunction:
    """The functions of a group, one for each pass."""

    def __init__(self, group: Group, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        known = [0] * len(blueprint.specs)  # the pass in which each value can be computed
        self.first: dict[int, int] = {}  # the first pass of each reduction, by the number of its value
        self.reductions: dict[int, Reduction] = {}
        for eqn in blueprint.eqns:
            begin = max((known[arg] for arg in eqn.args), default=0)
            if isinstance(eqn.op, Reduction):
                self.first[len(known)], self.reductions[len(known)] = begin, eqn.op
                begin += eqn.op.stages
            known += [begin] * len(eqn.specs)
        wanted = [known[value] - (value in self.reductions) for value in (*blueprint.leaving, *_checked(group))]
        self.passes = [PassFunction(group, blueprint, self, number, known) for number in range(max(wanted) + 1)]

    @property
    def num_traces(self) -> int:
        """How often any of them was traced and compiled so far."""
        return sum(function.num_traces for function in self.passes)

    def stage(self, value: int, number: int) -> int | None:
        """The stage of a reduction in a pass, None if it has none there."""
        stage = number - self.first[value]
        return stage if 0 <= stage < self.reductions[value].stages else None

    def finished(self, number: int, parts: Mapping[int, Sequence[Any]], before: Statistics) -> dict[int, Sequence[Any]]:
        """What is known after a pass, from the partial results of all tiles in their order."""
        kernel = HostKernel()
        found = dict(before)
        with np.errstate(all="ignore"):
            for value, op in self.reductions.items():
                stage = self.stage(value, number)
                if stage is not None:
                    how = op.how(stage)
                    rows: Any = np.concatenate([np.zeros((0, len(how))), *parts[value]])
                    found[value] = op.finish(kernel, stage, combined(kernel, rows, how), before.get(value))
        return found


def _checked(group: Group) -> list[int]:
    return [value for value, _ in group.sample.checks]


class PassFunction(GroupFunction):
    """One pass. What leaves a tile are partial results of its blocks, and what can be written for the first time.

    It is called as the function of any group is, with more numbers (`arguments`).
    """

    def __init__(
        self, group: Group, blueprint: Blueprint, whole: ReducedFunction, number: int, known: Sequence[int]
    ) -> None:
        super().__init__(group, blueprint)
        self.number = number
        self.reductions = whole.reductions
        self.stages = {value: whole.stage(value, number) for value in whole.reductions}
        self.active = [value for value, stage in self.stages.items() if stage is not None]
        self.known = known
        self.given = [value for value in whole.reductions if whole.first[value] < number]  # begun, or finished
        self.num_numbers = len(group.sample.numbers)
        own = [value for value in blueprint.leaving if value not in whole.reductions and known[value] == number]
        self.leaving = (*own, *self.active)
        self.checked = [value for value in self.checked if known[value] == number]

    def arguments(self, numbers: Sequence[float], count: int, before: Statistics) -> tuple[float, ...]:
        """The numbers of a call: those of the operations, how many elements of the tile are there, and what the passes
        before have come to."""
        told = (float(x) for value in self.given for x in before[value])
        return (*numbers, float(count), *told)

    def threshold(self, numbers: tuple[float, ...]) -> int | None:
        """As for any group; statistics are no small numbers."""
        return super().threshold(numbers[: self.num_numbers])

    def _evaluate(self, kernel: Any, values: list[Any], numbers: Iterator[Any]) -> list[Any]:
        given = list(numbers)
        own, rest = iter(given[: self.num_numbers]), iter(given[self.num_numbers :])
        count = next(rest)
        before = {value: [next(rest) for _ in self._terms_before(value)] for value in self.given}
        for eqn in self.eqns:
            op = eqn.op.with_numbers(own)
            arrays = [values[arg] for arg in eqn.args]
            at = len(values)
            if isinstance(op, Reduction):
                stage = self.stages[at]
                if stage is not None:
                    values.append(op.partial(kernel, stage, before.get(at), count, *arrays))
                else:
                    values.append(kernel.xp.stack(before[at]) if at in before else None)
            elif self.known[at] > self.number:
                values += [None] * len(eqn.specs)
            else:
                values += self._results(kernel, op, arrays, len(eqn.specs))
        return values

    def _terms_before(self, value: int) -> tuple[str, ...]:
        """As many words as a reduction has given numbers before this pass."""
        op, stage = self.reductions[value], self.stages[value]
        return op.how(op.stages - 1 if stage is None else stage - 1)
