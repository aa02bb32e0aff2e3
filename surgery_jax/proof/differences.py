"""How tensors differ that should be the same, and what may be the cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..graph.node import Node, Source
from ..kit.operations import Varies
from ..storage.base import Entry
from ..storage.stored import blocks_of

__all__ = ["first_difference", "suspects", "varying"]


def suspects(then: Mapping[str, str], now: Mapping[str, str], other: str) -> Iterator[str]:
    """What computed that differs, a sentence each; if nothing does, that, and what else may be: `other`."""
    found = [f"{name}: {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name]]
    yield from found or [f"versions, processor and devices are the same: memory or disk may be at fault, or {other}"]


def varying(node: Node) -> Varies | None:
    """What a version may differ by between processors and backends, if anything that it comes from may: the largest
    tolerance of all these operations."""
    found: Varies | None = None
    seen: set[Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in seen or isinstance(current.op, Source):
            continue
        seen.add(current)
        stack += current.operands
        told = current.op.varies
        if told is not None and (found is None or told.tolerance > found.tolerance):
            found = told
    return found


def first_difference(one: Entry, other: Entry, tolerance: float) -> tuple[tuple[int, ...], bool]:
    """The index of the first element of two stored tensors of one kind that differs, and whether all that differ do so
    by no more than a part of the largest magnitude.

    Raises:
        StorageError: one of them cannot be read.
    """
    spec = one.spec
    width = max(spec.dtype.bits // 8, 1)
    first, at = -1, 0
    worst = largest = 0.0
    for left, right in zip(_pieces(one), _pieces(other), strict=False):
        a, b = np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8)
        off = np.flatnonzero(a != b)
        if off.size and first < 0:
            first = at + int(off[0])
        if tolerance and spec.dtype.array:
            x, y = (side.view(spec.dtype.numpy).astype(np.complex128) for side in (a, b))
            worst = max(worst, float(np.abs(x - y).max(initial=0)))
            largest = max(largest, float(np.abs(x).max(initial=0)))
        at += a.size
    index = np.unravel_index(max(first, 0) // width, spec.shape) if spec.shape else ()
    return tuple(map(int, index)), bool(tolerance) and worst <= tolerance * largest


def _pieces(entry: Entry) -> Iterator[bytes]:
    """The bytes of a tensor in pieces of one length, whatever its blocks are."""
    length, kept = 1 << 20, bytearray()
    for block in blocks_of(entry):
        kept += block
        while len(kept) >= length:
            yield bytes(kept[:length])
            del kept[:length]
    if kept:
        yield bytes(kept)
