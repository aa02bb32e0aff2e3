"""Groups with statistics over all elements of a tensor: a function for every time that the elements are gone over.

What is written and checked leaves the group the first time. The statistics of a stage are brought together by
`execute` and are arguments of the next one, so that one function serves tensors of all sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..ops.reduction import BLOCK, Reduction, combined
from .blueprint import Blueprint
from .kernels import HostKernel
from .lower import GroupFunction
from .program import Group

__all__ = ["ReducedFunction", "tile_length"]

Statistics = Mapping[int, Sequence[Any]]  # what stages have come to, by the number of the value


def tile_length(length: int) -> int:
    """Elements of a tile of about so many that has whole blocks."""
    return max(length // BLOCK, 1) * BLOCK


class ReducedFunction:
    """The functions of a group, one for each stage."""

    def __init__(self, group: Group, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        at = len(blueprint.specs)
        self.reductions: dict[int, Reduction] = {}  # by the number of their value
        for eqn in blueprint.eqns:
            if isinstance(eqn.op, Reduction):
                self.reductions[at] = eqn.op
            at += len(eqn.specs)
        count = max(op.stages for op in self.reductions.values())
        self.stages = [StageFunction(group, blueprint, self.reductions, stage) for stage in range(count)]

    @property
    def num_traces(self) -> int:
        """How often any of them was traced and compiled so far."""
        return sum(stage.num_traces for stage in self.stages)

    def finished(self, stage: int, parts: Mapping[int, Sequence[Any]], before: Statistics) -> dict[int, Sequence[Any]]:
        """What is known after a stage, from the partial results of all tiles in their order."""
        kernel = HostKernel()
        found = dict(before)
        with np.errstate(all="ignore"):
            for value, op in self.reductions.items():
                if stage < op.stages:
                    how = op.how(stage)
                    rows = np.concatenate([np.zeros((0, len(how))), *parts[value]])
                    found[value] = op.finish(kernel, stage, combined(kernel, rows, how), before.get(value))
        return found


class StageFunction(GroupFunction):
    """One stage. What leaves a tile are partial results of its blocks, and in the first stage what is written.

    It is called as the function of any group is, with more numbers (`arguments`).
    """

    def __init__(self, group: Group, blueprint: Blueprint, reductions: Mapping[int, Reduction], stage: int) -> None:
        super().__init__(group, blueprint)
        self.stage = stage
        self.active = {value: op for value, op in reductions.items() if stage < op.stages}
        self.num_numbers = len(group.sample.numbers)
        written = [value for value in blueprint.leaving if value not in reductions] if stage == 0 else []
        self.leaving = (*written, *self.active)
        self.checked = self.checked if stage == 0 else []

    def arguments(self, numbers: Sequence[float], count: int, before: Statistics) -> tuple[float, ...]:
        """The numbers of a call: those of the operations, how many elements of the tile are there, and what the stage
        before came to."""
        told = (float(x) for value in self.active for x in before.get(value, ()))
        return (*numbers, float(count), *told)

    def threshold(self, numbers: tuple[float, ...]) -> int | None:
        """As for any group; statistics are no small numbers."""
        return super().threshold(numbers[: self.num_numbers])

    def _evaluate(self, kernel: Any, values: list[Any], numbers: Iterator[Any]) -> list[Any]:
        given = list(numbers)
        own, rest = iter(given[: self.num_numbers]), iter(given[self.num_numbers :])
        count = next(rest)
        before = {
            value: [next(rest) for _ in op.how(self.stage - 1)] if self.stage else None
            for value, op in self.active.items()
        }
        for eqn in self.eqns:
            op = eqn.op.with_numbers(own)
            arrays = [values[arg] for arg in eqn.args]
            if isinstance(op, Reduction):
                at = len(values)
                values.append(op.partial(kernel, self.stage, before[at], count, *arrays) if at in self.active else None)
            else:
                values += self._results(kernel, op, arrays, len(eqn.specs))
        return values
