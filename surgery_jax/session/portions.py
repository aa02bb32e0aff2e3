"""How the jobs of a batch are divided among tasks: by bytes, and so that few of them read the same.

All tasks find the same division, each for itself, from the sizes of files alone. What several jobs read is counted once
for a task that has them all; jobs that read the same lie next to each other, and the tasks get stretches of that row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["JobLoad", "cost", "divide"]


@dataclass(frozen=True, slots=True)
class JobLoad:
    """A job: the bytes of its inputs, by path. It also computes and writes about as much as its largest input has."""

    inputs: Mapping[str, int]

    @property
    def own(self) -> int:
        """Bytes that no other job saves it; at least 1, so that jobs without inputs are spread as well."""
        return max(1, *self.inputs.values(), 1)


def cost(loads: Iterable[JobLoad]) -> int:
    """Bytes of all that one task has to do for some jobs: each input once, and what they compute and write."""
    inputs: dict[str, int] = {}
    total = 0
    for load in loads:
        inputs.update(load.inputs)
        total += load.own
    return total + sum(inputs.values())


def divide(loads: Sequence[JobLoad], count: int) -> list[list[int]]:
    """The numbers of the jobs of each of `count` tasks, in the order in which they are best done. Every job is in
    exactly one of them.

    The most that a task has to do is as little as stretches of the row allow. Where dealing out jobs one by one, the
    largest first, is more even, and all tasks together read no more then, it is done.
    """
    row = _row(loads)
    limits = range(max(map(cost, ([load] for load in loads)), default=0), cost(loads) + 1)
    limit = limits[bisect_left(limits, True, key=lambda limit: _stretches(loads, row, limit, count) is not None)]
    stretches = _stretches(loads, row, limit, count)
    assert stretches is not None  # one task does all within the last limit
    dealt = _dealt(loads, row, count)
    some, other = ([cost(loads[number] for number in share) for share in shares] for shares in (dealt, stretches))
    is_better = sum(some) <= sum(other) and sorted(some, reverse=True) < sorted(other, reverse=True)
    return dealt if is_better else stretches


def _row(loads: Sequence[JobLoad]) -> list[int]:
    """All jobs, those that read the same next to each other: what saves most when it is read once comes first."""
    readers = Counter(path for load in loads for path in load.inputs)
    sizes = {path: size for load in loads for path, size in load.inputs.items()}
    shared = sorted((path for path in sizes if readers[path] > 1), key=lambda at: -sizes[at] * (readers[at] - 1))
    ranks = {path: rank for rank, path in enumerate(shared)}
    keys = [sorted(ranks[path] for path in load.inputs if path in ranks) for load in loads]
    return sorted(range(len(loads)), key=lambda number: (not keys[number], keys[number], number))


def _stretches(loads: Sequence[JobLoad], row: Sequence[int], limit: int, count: int) -> list[list[int]] | None:
    """The row cut so that no task has more to do than the limit, and none is idle as long as there are jobs; None if
    that takes more tasks."""
    shares: list[list[int]] = [[]]
    done, inputs = 0, set[str]()
    for at, number in enumerate(row):
        load = loads[number]
        more = load.own + sum(size for path, size in load.inputs.items() if path not in inputs)
        left = count - len(shares)  # tasks that have nothing so far
        if shares[-1] and (done + more > limit or len(row) - at <= left):
            if not left:
                return None
            shares.append([])
            done, inputs, more = 0, set(), cost([load])
        shares[-1].append(number)
        done += more
        inputs.update(load.inputs)
    return shares + [[] for _ in range(count - len(shares))]


def _dealt(loads: Sequence[JobLoad], row: Sequence[int], count: int) -> list[list[int]]:
    """Each job for the task that has least to do with it, the largest first."""
    shares: list[list[int]] = [[] for _ in range(count)]
    done = [0] * count
    inputs: list[set[str]] = [set() for _ in range(count)]
    places = {number: place for place, number in enumerate(row)}
    for number in sorted(row, key=lambda number: -cost([loads[number]])):
        load = loads[number]
        after = [
            have + load.own + sum(size for path, size in load.inputs.items() if path not in known)
            for have, known in zip(done, inputs, strict=True)
        ]
        best = after.index(min(after))
        done[best] = after[best]
        shares[best].append(number)
        inputs[best].update(load.inputs)
    return [sorted(share, key=places.__getitem__) for share in shares]
