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
from .blueprint import Blueprint, passes_of
from .lower import GroupFunction
from .program import Group

__all__ = ["PassFunction", "ReducedFunction", "Totals"]

Statistics = Mapping[int, Sequence[Any]]  # what reductions have come to, by the number of the value


class Totals:
    """What consecutive tiles of a tensor come to, brought together while they arrive; few numbers are held, whatever
    the number of tiles.

    All tiles but the last have the same number of blocks, a power of two. So the result of each is a branch of the tree
    in which `combined` brings all blocks together, and neighbours of equal height make one that is higher.
    """

    def __init__(self, how: Sequence[str]) -> None:
        self.how = how
        self._kernel = HostKernel()
        self._branches: list[tuple[int, np.ndarray]] = []  # (tiles, terms), from the highest to the lowest

    def add(self, rows: np.ndarray) -> None:
        """The partial results of the next tile, float64 [blocks, terms]."""
        tiles, terms = 1, self._together(rows)
        while self._branches and self._branches[-1][0] == tiles:
            tiles, terms = 2 * tiles, self._together(np.stack([self._branches.pop()[1], terms]))
        self._branches.append((tiles, terms))

    def result(self) -> list[Any]:
        """The terms of all tiles."""
        terms: np.ndarray | None = None
        for _, branch in reversed(self._branches):
            terms = branch if terms is None else self._together(np.stack([branch, terms]))
        rows: Any = np.zeros((0, len(self.how))) if terms is None else terms[None]
        return combined(self._kernel, rows, self.how)

    def _together(self, rows: Any) -> np.ndarray:
        with np.errstate(all="ignore"):
            joined: Any = combined(self._kernel, rows, self.how)
            return np.stack(joined)


class ReducedFunction:
    """The functions of a group, one for each pass."""

    def __init__(self, group: Group, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self.reductions = blueprint.reductions
        known, self.first, count = passes_of(group, blueprint)
        self.passes = [PassFunction(group, blueprint, self, number, known) for number in range(count)]

    @property
    def num_traces(self) -> int:
        """How often any of them was traced and compiled so far."""
        return sum(function.num_traces for function in self.passes)

    def stage(self, value: int, number: int) -> int | None:
        """The stage of a reduction in a pass, None if it has none there."""
        stage = number - self.first[value]
        return stage if 0 <= stage < self.reductions[value].stages else None

    def totals(self, number: int) -> dict[int, Totals]:
        """What brings the tiles of a pass together, for each of its statistics."""
        stages = ((value, op, self.stage(value, number)) for value, op in self.reductions.items())
        return {value: Totals(op.how(stage)) for value, op, stage in stages if stage is not None}

    def finished(self, number: int, totals: Mapping[int, Totals], before: Statistics) -> dict[int, Sequence[Any]]:
        """What is known after a pass."""
        kernel = HostKernel()
        found = dict(before)
        with np.errstate(all="ignore"):
            for value, total in totals.items():
                stage = self.stage(value, number)
                assert stage is not None
                found[value] = self.reductions[value].finish(kernel, stage, total.result(), before.get(value))
        return found


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
