"""Bytes of files that were written or copied a moment ago, read again to be hashed: without filling the page cache."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import closing

from ..io.needs import PAGE
from ..io.pagecache import is_cached
from ..storage.places.base import Reader, Writer, fill
from ..storage.places.found import place_of

__all__ = ["blocks", "read_back", "show"]

BLOCK = 1 << 20  # bytes that are read at once

See = Callable[[memoryview], object]


def blocks(offset: int, nbytes: int, most: int) -> Iterator[tuple[int, int]]:
    """A range (offset, bytes) of a file as ranges of at most so many bytes."""
    while nbytes > 0:
        yield offset, min(nbytes, most)
        offset, nbytes = offset + most, nbytes - most


def read_back(place: str, offset: int, nbytes: int, see: See) -> None:
    """Show bytes of a file that is being written, block by block.

    Raises:
        OSError: it cannot be read.
    """
    with closing(place_of(place).target(place)) as writer:
        show(writer, place, offset, nbytes, see)


def show(file: Reader | Writer, path: str, offset: int, nbytes: int, see: See) -> None:
    """Show bytes of an open file block by block: past the page cache if it has not got them, since bringing them there
    takes several times as long as reading them.

    Raises:
        OSError: it cannot be read.
    """
    done = 0
    if file.descriptor is not None and nbytes >= BLOCK and not is_cached(file.descriptor, offset, nbytes):
        direct = place_of(path).open_direct(path)
        if direct is not None:
            with closing(direct):
                done = _show_direct(direct, offset, nbytes, see)
    buffer = memoryview(bytearray(min(nbytes - done, BLOCK)))
    for at, count in blocks(offset + done, nbytes - done, BLOCK):
        fill(file, at, buffer[:count])
        see(buffer[:count])


def _show_direct(file: Reader, offset: int, nbytes: int, see: See) -> int:
    """Show bytes from the beginning as far as they can be read past the page cache; how many these are."""
    buffer = memoryview(mmap.mmap(-1, BLOCK + 2 * PAGE))  # whole pages, as such reading wants them
    done = 0
    for at, count in blocks(offset, nbytes, BLOCK):
        skip = at % PAGE
        try:
            found = file.read_into(at - skip, buffer[: -(-(skip + count) // PAGE) * PAGE])
        except OSError:
            break
        if found < skip + count:
            break
        see(buffer[skip : skip + count])
        done += count
    return done
