"""What the tiles of a tensor come to together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["TileRows", "Totals"]


class Totals:
    """What consecutive tiles of a tensor come to, brought together while they arrive; few numbers are held, whatever
    the number of tiles.

    All tiles but the last have the same number of blocks, a power of two. So the result of each is a branch of the tree
    in which `combined` brings all blocks together, and neighbours of equal height make one that is higher. Of counts,
    which are long tables and whole numbers, the order does not matter: they are one branch.
    """

    def __init__(self, together: Callable[[Any], Sequence[Any]], width: int, *, are_counts: bool = False) -> None:
        """`together` makes one row of several, each of so many terms."""
        self._join, self._width, self._are_counts = together, width, are_counts
        self._branches: list[tuple[int, np.ndarray]] = []  # (tiles, terms), from the highest to the lowest

    def add(self, rows: np.ndarray) -> None:
        """The partial results of the next tile, float64 [blocks, terms]."""
        tiles, terms = 1, self._together(rows)
        while self._branches and (self._are_counts or self._branches[-1][0] == tiles):
            tiles, terms = 2 * tiles, self._together(np.stack([self._branches.pop()[1], terms]))
        self._branches.append((tiles, terms))

    def result(self) -> Sequence[Any]:
        """The terms of all tiles."""
        terms: np.ndarray | None = None
        for _, branch in reversed(self._branches):
            terms = branch if terms is None else self._together(np.stack([branch, terms]))
        return self._join(np.zeros((0, self._width)) if terms is None else terms[None])

    def _together(self, rows: Any) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(self._join(rows), np.float64)


class TileRows:
    """Partial results of the tiles of a tensor, one below the other; of so many rows one is kept."""

    def __init__(self, width: int, every: int) -> None:
        self._every = every
        self._rows = [np.zeros((0, width))]

    def add(self, rows: np.ndarray) -> None:
        """Those of the next tile, float64 [n, width]."""
        self._rows.append(np.array(rows[:: self._every], np.float64))

    def result(self) -> Any:
        """All of them."""
        return np.concatenate(self._rows)
