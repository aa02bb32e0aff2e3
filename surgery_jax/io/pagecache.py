"""What of a file lies in the page cache, as the system tells (Linux 6.5 and later)."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["is_cached"]

CACHESTAT = 451  # the number of the system call, the same on all architectures of Linux
PAGE = 4096


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently"))


_syscall = ctypes.CDLL(None).syscall if sys.platform == "linux" else None


def is_cached(fd: int, offset: int, nbytes: int) -> bool:
    """Whether most of a range of an open file is in memory; yes where the system does not tell.

    Asking is cheap, and unlike a read that must not wait it does not make the system fetch anything.
    """
    if _syscall is None:
        return True
    wanted, found = _Range(offset, nbytes), _Counts()
    failed = _syscall(CACHESTAT, fd, ctypes.byref(wanted), ctypes.byref(found), 0)
    return bool(failed) or int(found.cache) * PAGE * 2 >= nbytes
