"""The inputs of tasks: bytes of files, of decoded blocks and of tensors that are made, brought into buffers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate

import numpy as np

from ..compile.blueprint import Blueprint
from ..compile.pieces import Piece, cut
from ..graph.node import Node, Source
from ..io.buffers import OpenFiles
from ..io.decoded import BlockCache
from ..io.held import HeldRanges
from ..kit.made import Made
from ..storage.base import Extent
from .tasks import Segment

__all__ = ["Inputs", "shaped"]

_SHORT = 256 << 10  # bytes: shorter ranges are rather read with their neighbours, in one request, than held


class Inputs:
    """Where inputs come from: files, and the blocks of tensors that must be decoded. Both count what is read."""

    def __init__(self, cached: int, repeated: Collection[Node] = (), held: int = 0) -> None:
        """`cached`: bytes for decoded blocks. `repeated` are tensors that several tasks read, which are held in so many
        bytes; the page cache should have them as well, in case that they must go before their time."""
        self.files = OpenFiles()
        self._repeated = repeated
        self.blocks = BlockCache(cached)
        self.held = HeldRanges(held)

    @property
    def num_bytes(self) -> int:
        """Bytes read, copied or decoded so far."""
        return self.files.num_bytes + self.blocks.num_bytes

    def of(self, plan: Blueprint, segments: Sequence[Segment], buffers: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inputs of some rows in the first of these buffers, so many tiles of them as the rows need, of which the
        last may have too few: what is beyond the end is zero. The last buffer is one to read through."""
        rows = sum(count for _, _, count in segments)
        tiles = -(-rows // plan.rows)
        inputs = []
        for index, spec in enumerate(plan.specs):
            width = spec.nbytes // plan.rows
            pieces: list[Piece] = []
            for component, start, count in segments:
                pieces += cut(component.inputs[index], start * width, count * width)
            buffer = buffers[index][: tiles * spec.nbytes]
            filled = self._fill(buffer, pieces, buffers[-1])
            buffer[filled:] = 0
            inputs.append(buffer)
        return inputs

    def _fill(self, target: np.ndarray, pieces: Sequence[Piece], scratch: np.ndarray | None) -> int:
        """Bring the bytes of pieces into a buffer and count them; neighbours in a file are read together."""
        at = 0
        if self._repeated and any(piece.node in self._repeated for piece in pieces):
            scratch = None
        run: tuple[str, int, int, int] | None = None  # (path, offset, begin, end) of what is to be read at once
        runs: list[tuple[str, int, int, int]] = []
        for piece in pieces:
            op = piece.node.op
            if isinstance(op, Source) and op.entry.extent is not None:
                if self.held.limit and piece.nbytes >= _SHORT and piece.node in self._repeated:
                    self._fill_held(op.entry.extent, piece, target[at : at + piece.nbytes])
                    at += piece.nbytes
                    continue
                for path, offset, nbytes in op.entry.extent.ranges(piece.start, piece.nbytes):
                    # what is made or held may lie between two neighbours of a file
                    if run is not None and run[3] == at and (run[0], run[1] + at - run[2]) == (path, offset):
                        run = (run[0], run[1], run[2], at + nbytes)
                    else:
                        runs += [] if run is None else [run]
                        run = (path, offset, at, at + nbytes)
                    at += nbytes
                continue
            if isinstance(op, Source):
                self.blocks.fill(op.entry, piece.start, target[at : at + piece.nbytes])
            else:
                _make(piece, target[at : at + piece.nbytes])
            at += piece.nbytes
        runs += [] if run is None else [run]
        self._read(((path, offset, target[begin:end]) for path, offset, begin, end in runs), scratch)
        return at

    def _read(self, parts: Iterable[tuple[str, int, np.ndarray]], scratch: np.ndarray | None) -> None:
        """Fill buffers from files, each from an offset on."""
        wanted: dict[str, list[tuple[int, np.ndarray]]] = {}
        for path, offset, target in parts:
            wanted.setdefault(path, []).append((offset, target))
        for path, ranges in wanted.items():
            self.files.read_several(path, ranges, scratch)

    def _fill_held(self, extent: Extent, piece: Piece, target: np.ndarray) -> None:
        """Bytes of a tensor that other tasks want as well."""
        ranges = tuple(extent.ranges(piece.start, piece.nbytes))
        ends = list(accumulate(nbytes for _, _, nbytes in ranges))
        parts = [
            (path, offset, target[end - nbytes : end]) for (path, offset, nbytes), end in zip(ranges, ends, strict=True)
        ]
        self.held.fill(ranges, target, lambda: self._read(parts, None))


def shaped(plan: Blueprint, buffers: Sequence[np.ndarray], tile: int = 0) -> list[np.ndarray]:
    """The inputs of tile number `tile` of those that buffers hold."""
    return [
        buffer[tile * spec.nbytes : (tile + 1) * spec.nbytes].view(spec.dtype.numpy).reshape(spec.shape)
        for spec, buffer in zip(plan.specs, buffers, strict=True)
    ]


def _make(piece: Piece, target: np.ndarray) -> None:
    """Bytes of a tensor that is made here."""
    op, dtype = piece.node.op, piece.node.spec.dtype
    assert isinstance(op, Made)
    op.put(piece.start // dtype.itemsize, target.view(dtype.numpy))
