"""Where the elements of an operand are in their tensor."""

from __future__ import annotations

import math
from typing import Any

from .kernel import Array, Kernel

__all__ = ["Numbering"]


class Numbering:
    """The number of every element of an operand: from `first` on, in row-major order."""

    def __init__(self, k: Kernel, first: Any, shape: tuple[int, ...]) -> None:
        """`first`: a whole number below 2**53, traced or not."""
        self._k, self._first, self._shape = k, first, shape

    def flat(self) -> Numbering:
        """The same, of the operand as one row."""
        return Numbering(self._k, self._first, (math.prod(self._shape),))

    def numbers(self) -> Array:
        """All of them: int64, of the shape of the operand."""
        first = self._k.xp.asarray(self._first, "float64").astype("int64")
        return self._k.xp.arange(math.prod(self._shape), dtype="int64").reshape(self._shape) + first

    def up_to(self, last: Any) -> Array:
        """Where they are at most `last`, a whole number below 2**53: bool, of the shape of the operand."""
        size = math.prod(self._shape)  # of a part: its own numbers have 32 bits, of which twice as many are compared
        narrow = "int32" if size < 2**31 else "int64"
        left = self._k.xp.asarray(last, "float64") - self._k.xp.asarray(self._first, "float64")
        left = self._k.at_most(self._k.at_least(left, -1.0), float(size)).astype(narrow)
        own = self._k.xp.arange(size, dtype=narrow).reshape(self._shape)
        return (own > left) == False  # noqa: E712
