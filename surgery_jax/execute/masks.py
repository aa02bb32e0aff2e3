"""Masks that are computed in one pass over a component and used in others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Masks"]


class Masks:
    """Those of the tiles of one component, a bit for every element."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], tuple[np.ndarray, tuple[int, ...]]] = {}  # by value and number of the tile

    def remember(self, value: int, tile: int, mask: np.ndarray) -> None:
        """Hold the mask that a value is in a tile: bool, any shape."""
        self._held[value, tile] = np.packbits(mask.reshape(-1)), mask.shape

    def recall(self, values: Sequence[int], tile: int) -> list[np.ndarray]:
        """The masks that some values are in a tile, all of them held: bool, as they were."""
        found = []
        for value in values:
            bits, shape = self._held[value, tile]
            found.append(np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(shape))
        return found
