"""Tensors whose packed bytes lie in a file in several parts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter

__all__ = ["Parts", "ranges"]

Parts = tuple[tuple[int, int], ...]  # (byte of the tensor, its offset in the file), ascending by byte


def ranges(offset: int, rest: Parts, start: int, nbytes: int) -> Sequence[tuple[int, int]]:
    """(offset, length) in the file of a range of a tensor that begins at `offset` and goes on as `rest` says."""
    if not rest:
        return ((offset + start, nbytes),)
    found, at, end = [], bisect_right(rest, start, key=itemgetter(0)), start + nbytes
    while start < end:
        begin, place = rest[at - 1] if at else (0, offset)
        stop = min(end, rest[at][0]) if at < len(rest) else end
        found.append((place + start - begin, stop - start))
        start, at = stop, at + 1
    return found
