"""Tensors whose packed bytes lie in several places, of one file or of several."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import TypeVar

__all__ = ["Parts", "ranges", "run_length"]

F = TypeVar("F", str, int)  # a file: its path, or its number among those of an output
Parts = tuple[tuple[int, F, int], ...]  # (byte of the tensor, file of it and what follows, offset there), by byte


def ranges(file: F, offset: int, rest: Parts[F], start: int, nbytes: int) -> Sequence[tuple[F, int, int]]:
    """(file, offset, length) of the bytes of a range of a tensor that begins at a place and goes on as `rest` says."""
    if not rest:
        return ((file, offset + start, nbytes),)
    found, at, end = [], bisect_right(rest, start, key=itemgetter(0)), start + nbytes
    while start < end:
        begin, place, where = rest[at - 1] if at else (0, file, offset)
        stop = min(end, rest[at][0]) if at < len(rest) else end
        found.append((place, where + start - begin, stop - start))
        start, at = stop, at + 1
    return found


def run_length(rest: Parts[F], start: int) -> int | None:
    """How many bytes from byte `start` of a tensor on lie together; None: all that follow."""
    at = bisect_right(rest, start, key=itemgetter(0))
    return rest[at][0] - start if at < len(rest) else None
