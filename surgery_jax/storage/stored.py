"""The bytes of a stored tensor, in the order of its elements, however it is stored."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.errors import StorageError
from .base import Entry
from .files import File
from .places.found import locate

__all__ = ["Readers", "blocks_of"]

KEPT = 32  # files that a reader has open at once


class Readers:
    """Files that are open for reading, those that were asked for last; a context that closes them."""

    def __init__(self) -> None:
        self._opened: dict[str, File] = {}

    def of(self, path: str) -> File:
        """A file, open.

        Raises:
            StorageError: it cannot be opened.
        """
        found = self._opened.pop(path, None)
        if found is None:
            if len(self._opened) >= KEPT:
                self._opened.pop(next(iter(self._opened))).close()
            found = File(locate(path))
        self._opened[path] = found
        return found

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._opened:
            self._opened.popitem()[1].close()


def blocks_of(
    entry: Entry, start: int = 0, nbytes: int | None = None, readers: Readers | None = None
) -> Iterator[memoryview]:
    """The packed row-major little-endian bytes of a tensor from byte `start` on, in blocks, each valid until the next.

    Raises:
        StorageError: it cannot be read.
    """
    end = entry.spec.nbytes if nbytes is None else start + nbytes
    if entry.extent is None:
        yield from _decoded(entry, start, end)
    elif readers is not None:
        for path, offset, length in entry.extent.ranges(start, end - start):
            yield from readers.of(path).blocks(offset, length)
    else:
        with Readers() as own:
            yield from blocks_of(entry, start, end - start, own)


def _decoded(entry: Entry, start: int, end: int) -> Iterator[memoryview]:
    import numpy as np

    assert entry.blocks is not None
    bits = entry.spec.dtype.bits
    while start < end:
        first, count = entry.blocks.around(start * 8 // bits)
        begin = first * bits // 8
        data = np.ascontiguousarray(entry.blocks.read(first, count)).reshape(-1).view(np.uint8)
        stop = min(end, (first + count) * bits // 8)
        if data.nbytes < stop - begin:
            raise StorageError("a tensor is shorter than its header says", found=f"{data.nbytes} bytes")
        yield data.data[start - begin : stop - begin]
        start = stop
