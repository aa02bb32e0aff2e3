"""Components that are gone over in tiles, as often as their statistics need, by several threads at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..compile.reduced import PassFunction, ReducedFunction
from .computing import Computing, Exactness
from .filling import Inputs, shaped
from .hands import Hands, InTurn
from .recalled import Recalled
from .results import Results
from .schedule import GroupSchedule
from .tasks import Tile
from .timeline import Timeline

__all__ = ["Reducing"]


class Reducing:
    """What all components that are gone over have in common."""

    def __init__(
        self, inputs: Inputs, computing: Computing, results: Results, hands: Hands, advanced: Callable[[Tile], None]
    ) -> None:
        """`advanced` is called with every tile that was gone over for the first time."""
        self.inputs, self.computing, self.results, self.hands = inputs, computing, results, hands
        self.advanced = advanced

    @property
    def timeline(self) -> Timeline:
        """When which stage was at work."""
        return self.computing.timeline

    def run(self, function: ReducedFunction, work: GroupSchedule, tile: Tile, buffers: Sequence[np.ndarray]) -> None:
        """Go over a component, in the buffers that its task reserves."""
        ((component, _, size),) = tile.segments
        once = _Component(self, function, work, tile, buffers)
        known: dict[int, Sequence[Any]] = {}
        for number in range(len(function.passes)):
            totals = function.totals(number, known, size)
            if not function.is_needless(number, totals):
                once.go_over(number, totals, known)
                known = function.finished(number, totals, known, component.numbers)
        results = {value: np.array(found, np.float64) for value, found in known.items()}
        self.results.tell(component, results, buffers[-1])


class _Component:
    """One component, and what is held of it from pass to pass."""

    def __init__(
        self,
        common: Reducing,
        function: ReducedFunction,
        work: GroupSchedule,
        tile: Tile,
        buffers: Sequence[np.ndarray],
    ) -> None:
        self._common, self._function = common, function
        self._plan = work.blueprint
        self._group = tile.group
        ((self._component, _, self._size),) = tile.segments
        self._num_hands = work.num_hands(self._component)
        count = len(self._plan.specs)
        self._held = buffers[:count] if work.is_held(self._component) else None
        self._own = [  # of each hand: for the inputs of a tile, if they are not held, and a piece for writing
            buffers[count + hand : count + hand + 1]
            if self._held is not None
            else buffers[hand * (count + 1) :][: count + 1]
            for hand in range(self._num_hands)
        ]
        self._recalled = Recalled()
        self._exactness = [Exactness() for _ in range(-(-self._size // self._plan.rows))]
        self._filled: set[int] = set()  # tiles whose inputs are held

    def go_over(self, number: int, totals: Mapping[int, Any], known: Mapping[int, Sequence[Any]]) -> None:
        """One pass over all tiles with which it has anything to do."""
        once = self._function.passes[number]
        tiles = [at for at in range(len(self._exactness)) if self._reaches(number, known, at)]

        def gather(partials: Mapping[int, np.ndarray]) -> None:
            for value, partial in partials.items():
                totals[value].add(partial)

        gathered = InTurn[Mapping[int, np.ndarray]](tiles, gather)

        def do(at: int, hand: int) -> None:
            outputs = self._computed(once, at, known, self._own[hand])
            partials = {value: outputs.pop(value) for value in once.active}
            gathered.put(at, {value: partials[value] for value in totals})
            with self._common.timeline.stage("write"):
                self._common.results.put(self._plan, self._tile(at), outputs, self._own[hand][-1])
            if number == 0:
                self._common.advanced(self._tile(at))

        self._common.hands.each(tiles, do, self._num_hands)

    def _tile(self, at: int) -> Tile:
        start = at * self._plan.rows
        return Tile(self._group, ((self._component, start, min(self._plan.rows, self._size - start)),))

    def _reaches(self, number: int, known: Mapping[int, Sequence[Any]], at: int) -> bool:
        ((_, start, count),) = self._tile(at).segments
        return self._function.reaches(number, known, start, count)

    def _computed(
        self, once: PassFunction, at: int, known: Mapping[int, Sequence[Any]], own: Sequence[np.ndarray]
    ) -> dict[int, np.ndarray]:
        """What a pass makes of a tile, by value; what passes after it need is kept."""
        tile = self._tile(at)
        ((component, start, count),) = tile.segments
        inputs = self._read(tile, at, own) + self._recalled.recall(once.recalled, at)
        numbers = once.arguments(component.numbers, start, count, known)
        found = self._common.computing.outputs(once, tile, inputs, numbers, self._exactness[at])
        outputs = dict(zip(once.leaving, found, strict=True))
        for value in once.remembered:
            self._recalled.remember(value, at, outputs.pop(value))
        return outputs

    def _read(self, tile: Tile, at: int, own: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inputs of a tile, which one hand at a time asks for; those that are held are read once."""
        specs, buffers = self._plan.specs, own
        if self._held is not None:
            places = zip(specs, self._held, strict=True)
            buffers = [*(held[at * spec.nbytes :][: spec.nbytes] for spec, held in places), own[-1]]
        if at not in self._filled:
            with self._common.timeline.stage("read"):
                self._common.inputs.of(self._plan, tile.segments, buffers)
        if self._held is not None:
            self._filled.add(at)
        return shaped(self._plan, buffers[: len(specs)])
