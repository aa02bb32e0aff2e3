"""Values that are computed in one pass over a component and used in others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Recalled"]


class Recalled:
    """Those of the tiles of one component; of masks a bit for every element."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], tuple[np.ndarray, tuple[int, ...] | None]] = {}  # by value, number of tile

    def remember(self, value: int, tile: int, found: np.ndarray) -> None:
        """Hold what a value is in a tile: any shape."""
        is_mask = found.dtype == bool
        held = np.packbits(found.reshape(-1)) if is_mask else found
        self._held[value, tile] = held, found.shape if is_mask else None

    def recall(self, values: Sequence[int], tile: int) -> list[np.ndarray]:
        """What some values are in a tile, all of them held."""
        found = []
        for value in values:
            held, shape = self._held[value, tile]
            if shape is not None:
                held = np.unpackbits(held, count=int(np.prod(shape))).view(bool).reshape(shape)
            found.append(held)
        return found
