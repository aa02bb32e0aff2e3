"""Byte geometry: a version as consecutive byte ranges of stored, made and computed tensors.

Rename, copy, contiguous slices, split, concat, stack and reshape are arithmetic on such ranges; what comes from a file
this way is moved by the storage layer and never enters JAX.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, count
from typing import NamedTuple

from ..graph.node import Node
from ..kit.structure import MAX_RUNS, Structure, View

__all__ = ["Geometry", "Interleaved", "Piece"]


class Piece(NamedTuple):
    """`nbytes` bytes of a node from byte `start` on. The node is no structural one, unless it must be gathered."""

    node: Node
    start: int
    nbytes: int


MIN_BLOCK = 512  # bytes written at once where the blocks of a tensor are written by themselves
MIN_INTERLEAVED = 32 << 20  # bytes of a tensor for which that is done: below, it is put together in memory
PART_BYTES = 32 << 20  # of a permuted tensor that is worked on at once
MIN_PART_BLOCK = 4096  # bytes written at once of such a part


class Interleaved(NamedTuple):
    """A whole node whose bytes are cut into blocks of so many bytes, with those of others between them."""

    node: Node
    block: int


class Geometry:
    """The pieces of nodes, each found once."""

    def __init__(self) -> None:
        self.parts: dict[Node, list[Interleaved] | None] = {}  # what was found to be interleaved, or not
        self._known: dict[Node, tuple[Piece, ...]] = {}
        self._numbers = count(1 << 48)

    def pieces(self, node: Node) -> tuple[Piece, ...]:
        """The packed bytes of a node in order."""
        found = self._known.get(node)
        if found is None and not isinstance(node.op, Structure):
            nbytes = node.spec.nbytes
            found = self._known[node] = (Piece(node, 0, nbytes),) if nbytes else ()
        if found is None:
            for ancestor in _structural(node, self._known):
                self._known[ancestor] = self._find(ancestor)
            found = self._known[node]
        return found

    def _find(self, node: Node) -> tuple[Piece, ...]:
        whole = (Piece(node, 0, node.spec.nbytes),) if node.spec.nbytes else ()
        if not isinstance(node.op, Structure):
            return whole
        runs = node.op.runs(*(operand.spec for operand in node.operands))
        if runs is None:
            return whole
        bits = node.spec.dtype.bits
        if any(start * bits % 8 or length * bits % 8 for _, start, length in runs):
            return whole  # a packed type cut inside a byte
        found: list[Piece] = []
        sources = [_Cutter(self._known[operand]) for operand in node.operands]
        for operand, start, length in runs:
            for piece in sources[operand].cut(start * bits // 8, length * bits // 8):
                last = found[-1] if found else None
                if last is not None and last.node is piece.node and last.start + last.nbytes == piece.start:
                    found[-1] = Piece(last.node, last.start, last.nbytes + piece.nbytes)
                else:
                    found.append(piece)
        return tuple(found) if len(found) <= max(2 * MAX_RUNS, len(runs)) else whole

    def interleaved(self, piece: Piece) -> list[Interleaved] | None:
        """What a piece consists of that is a large joined, stacked or permuted tensor: computed nodes whose blocks come
        in turn, so that they need not be in memory together. None for any other."""
        node = piece.node
        if piece.nbytes < max(node.spec.nbytes, MIN_INTERLEAVED) or not node.spec.dtype.array:
            return None
        if node not in self.parts and isinstance(node.op, Structure):
            self.parts[node] = self._permuted(node, node.op) if node.op.axes_order else self._joined(node)
        return self.parts.get(node)

    def _joined(self, node: Node) -> list[Interleaved] | None:
        """Operands of which each is one computed node."""
        assert isinstance(node.op, Structure)
        lengths = node.op.interleaved(*(operand.spec for operand in node.operands))
        if lengths is None or min(lengths) * node.spec.dtype.itemsize < MIN_BLOCK:
            return None
        found = []
        for operand, length in zip(node.operands, lengths, strict=True):
            first, *others = self.pieces(operand)
            if others or first.nbytes < first.node.spec.nbytes or self.is_input(first.node):
                return None
            found.append(Interleaved(first.node, length * node.spec.dtype.itemsize))
        return found

    def _permuted(self, node: Node, op: Structure) -> list[Interleaved] | None:
        """The same permutation of some rows of its source at a time, if these are read and not computed."""
        (source,) = node.operands
        total, place = source.spec.shape[0], (op.axes_order or ()).index(0)
        rows = max(PART_BYTES * total // source.spec.nbytes, 1)
        row = math.prod(node.spec.shape[place + 1 :]) * node.spec.dtype.itemsize
        if rows * 2 > total or place == 0 or rows * row < MIN_PART_BLOCK or not self.is_input(source):
            return None
        found = []
        for start in range(0, total, rows):
            length = min(rows, total - start)
            axes = ((start, 1, length), *((0, 1, other) for other in source.spec.shape[1:]))
            part = self._make(op, self._make(View(axes, (False,) * len(axes)), source))
            found.append(Interleaved(part, length * row))
        return found

    def _make(self, op: Structure, operand: Node) -> Node:
        """A node that is not in the graph; its number follows all of those."""
        return Node(next(self._numbers), op, (operand,), 0, op.infer(operand.spec)[0], operand.origin)

    def is_input(self, node: Node) -> bool:
        """Whether a node's bytes come from files and made tensors alone."""
        if not isinstance(node.op, Structure):
            return node.spec.size == 0 or node.kind in ("read", "make")
        return all(piece.node.kind in ("read", "make") for piece in self.pieces(node))


class _Cutter:
    """Ranges of consecutive pieces."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.ends = list(accumulate(piece.nbytes for piece in pieces))

    def cut(self, start: int, nbytes: int) -> list[Piece]:
        """The pieces of a byte range."""
        found = []
        at = bisect_right(self.ends, start)
        while nbytes > 0:
            piece = self.pieces[at]
            skip = start - (self.ends[at] - piece.nbytes)
            take = min(piece.nbytes - skip, nbytes)
            found.append(Piece(piece.node, piece.start + skip, take))
            start, nbytes, at = start + take, nbytes - take, at + 1
        return found


def cut(pieces: Sequence[Piece], start: int, nbytes: int) -> list[Piece]:
    """The pieces of a byte range of consecutive pieces."""
    if len(pieces) == 1:
        return [Piece(pieces[0].node, pieces[0].start + start, nbytes)] if nbytes else []
    return _Cutter(pieces).cut(start, nbytes)


def _structural(node: Node, known: dict[Node, tuple[Piece, ...]]) -> list[Node]:
    """A node and the structural ancestors its pieces follow from, operands first; without recursion, plans can
    be long."""
    order: list[Node] = []
    stack = [(node, False)]
    seen = set()
    while stack:
        current, done = stack.pop()
        if done:
            order.append(current)
        elif current not in known and current not in seen:
            seen.add(current)
            stack.append((current, True))
            if isinstance(current.op, Structure):
                stack.extend((operand, False) for operand in current.operands)
    return order
