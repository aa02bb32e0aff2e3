"""Blocks of tensors that must be decoded: how many bytes that takes, and a cache for tiles that share blocks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..compile.program import Program
from ..core.specs import Spec
from ..graph.node import Source
from ..storage.base import Entry

if TYPE_CHECKING:
    import numpy

__all__ = ["BlockCache", "block_bytes", "cache_bytes", "covering", "decode"]

Key = tuple[int, int]  # (identity of the blocks of a tensor, first element)


def block_bytes(entry: Entry) -> int:
    """Memory that decoding the largest block of a tensor takes, result included."""
    assert entry.blocks is not None
    return entry.blocks.factor * Spec((min(entry.blocks.length, entry.spec.size),), entry.spec.dtype).nbytes


def decode(entry: Entry, first: int, count: int) -> numpy.ndarray:
    """The bytes of consecutive elements of one block."""
    import numpy as np

    assert entry.blocks is not None
    return np.ascontiguousarray(entry.blocks.read(first, count)).reshape(-1).view(np.uint8)


def covering(entry: Entry, start: int, nbytes: int) -> Iterator[tuple[int, int, int, int]]:
    """The blocks that hold bytes [start, start + nbytes) of a tensor: first element, number of elements, and the range
    of bytes of the block that is wanted."""
    assert entry.blocks is not None
    bits, end = entry.spec.dtype.bits, start + nbytes
    while start < end:
        first, count = entry.blocks.around(start * 8 // bits)
        begin = first * bits // 8
        stop = min(end, (first + count) * bits // 8)
        yield first, count, start - begin, stop - begin
        start = stop


def cache_bytes(program: Program, memory_bytes: int) -> int:
    """The share of the budget for blocks that are computed with: enough for the largest, a quarter where there is room.

    Tiles are smaller than blocks, and several workers are at one block: decoding it for each anew would cost most of
    the time.
    """
    largest = 0
    for group in program.groups:
        for component in group.components:
            for pieces in component.inputs:
                for piece in pieces:
                    entry = piece.node.op.entry if isinstance(piece.node.op, Source) else None
                    if entry is not None and entry.blocks is not None:
                        largest = max(largest, block_bytes(entry))
    return max(largest, memory_bytes // 4) if largest else 0


class BlockCache:
    """Decoded blocks, the latest ones, never more than `limit` bytes of them and of decoding."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.peak = 0
        self.num_bytes = 0  # decoded so far
        self._used = 0
        self._blocks: dict[Key, numpy.ndarray] = {}  # in the order of their use
        self._decoding: set[Key] = set()
        self._changed = threading.Condition()
        self._broken = False

    def fill(self, entry: Entry, start: int, target: numpy.ndarray) -> None:
        """Copy the bytes of a tensor from `start` on into a buffer."""
        at = 0
        for first, count, begin, end in covering(entry, start, target.nbytes):
            target[at : at + end - begin] = self._block(entry, first, count)[begin:end]
            at += end - begin

    def _block(self, entry: Entry, first: int, count: int) -> numpy.ndarray:
        assert entry.blocks is not None
        key = (id(entry.blocks), first)
        need = entry.blocks.factor * Spec((count,), entry.spec.dtype).nbytes
        with self._changed:
            self._changed.wait_for(lambda: self._broken or key not in self._decoding)
            found = self._blocks.pop(key, None)
            if found is not None:
                self._blocks[key] = found
                return found
            self._decoding.add(key)
            self._changed.wait_for(lambda: self._broken or self._make_room(need))
            if self._broken:
                raise InterruptedError
            self._used += need
            self.peak = max(self.peak, self._used)
        block = None
        try:
            block = decode(entry, first, count)
            return block
        finally:
            with self._changed:
                self._used -= need
                self._decoding.remove(key)
                if block is not None:
                    self.num_bytes += block.nbytes
                    self._blocks[key] = block
                    self._used += block.nbytes
                self._changed.notify_all()

    def _make_room(self, need: int) -> bool:
        while self._used + need > self.limit and self._blocks:
            self._used -= self._blocks.pop(next(iter(self._blocks))).nbytes
        return self._used + need <= self.limit

    def stop(self) -> None:
        """Wake and refuse everyone who waits: the run has failed."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()
