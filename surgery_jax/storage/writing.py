"""The one place where bytes go to a file at a position: a system may take fewer than it was given."""

from __future__ import annotations

import errno
import os

__all__ = ["write_at"]


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`, contiguous bytes, from an offset on, however often that takes.

    Raises:
        OSError: the operating system refuses, or takes no more.
    """
    rest = memoryview(data)
    while rest.nbytes:
        count = os.pwrite(descriptor, rest, offset)
        if count == 0:
            raise OSError(errno.EIO, "the system takes no more bytes")
        rest, offset = rest[count:], offset + count
