"""Files of an output before its first tensor byte: in their full length, with all bytes that are known."""

from __future__ import annotations

from .base import LaidFile
from .files import File
from .places.base import Writer
from .places.found import locate, place_of

__all__ = ["lay"]

_PART = 4 << 20  # bytes of a document that are copied at once


def lay(path: str, file: LaidFile) -> None:
    """Create a file in its full length, with the bytes that are known.

    Raises:
        OSError: its place refuses.
        StorageError: what it is a copy of cannot be read.
    """
    place = place_of(path)
    place.create(path, file.size)
    if file.fixed or file.source is not None:
        writer = place.target(path)
        try:
            for offset, data in file.fixed:
                writer.write(offset, data)
            if file.source is not None:
                _copy(file.source, writer, file.size)
        finally:
            writer.close()


def _copy(source: str, writer: Writer, size: int) -> None:
    with File(locate(source)) as file:
        for offset in range(0, size, _PART):
            writer.write(offset, file.at(offset, min(_PART, size - offset)))
