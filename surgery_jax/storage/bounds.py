"""Bounds for what a file from elsewhere says of itself, so that a small file cannot ask for a large memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..core.dtypes import DType
from ..core.specs import format_bytes

__all__ = ["MAX_NDIM", "Allowance", "TooLarge", "is_possible"]

MAX_NDIM = 64  # what NumPy can hold
_LEAST, _PER_BYTE = 16 << 20, 24  # the objects of a sound table take about 10, in a distributed checkpoint 16
_MOST = 384 << 20


class TooLarge(ValueError):
    """What a file says would take more memory than is sound for its length."""


class Allowance:
    """The memory that may be taken for the objects that a table of some bytes describes."""

    __slots__ = ("left", "nbytes")

    def __init__(self, nbytes: int, most: int = _MOST) -> None:
        """For a table of `nbytes` bytes; at most `most` bytes."""
        self.nbytes = nbytes
        self.left = min(_LEAST + _PER_BYTE * nbytes, most)

    def spend(self, count: int) -> None:
        """Take `count` bytes.

        Raises:
            TooLarge: they are not there any more.
        """
        self.left -= count
        if self.left < 0:
            size = format_bytes(self.nbytes)
            raise TooLarge(f"its values take far more memory than those of a sound table of {size}")


def is_possible(shape: Sequence[int], dtype: DType) -> bool:
    """Whether a tensor can have this shape. An empty one says nothing through its bytes: without a bound its other
    axes could be anything."""
    return len(shape) <= MAX_NDIM and math.prod(filter(None, shape)) * dtype.bits < 1 << 63
