"""The threads of the library that multiplies and decomposes matrices for NumPy and SciPy.

Workers factor one matrix each. Threads of OpenBLAS inside of them would spin while they wait for each other, slow down
everything else on the machine, and make the last bits of results depend on the number of cores.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

__all__ = ["one_thread_each"]

_lock = threading.Lock()
_entered = 0
_before: list[int] = []


@contextmanager
def one_thread_each() -> Iterator[None]:
    """While any thread is inside, OpenBLAS computes in the thread that calls it; other libraries are left alone."""
    global _entered, _before
    with _lock:
        if _entered == 0:
            _before = [get() for get, _ in _controls()]
            for _, set_to in _controls():
                set_to(1)
        _entered += 1
    try:
        yield
    finally:
        with _lock:
            _entered -= 1
            if _entered == 0:
                for (_, set_to), count in zip(_controls(), _before, strict=True):
                    set_to(count)


@cache
def _controls() -> tuple[tuple[Callable[[], int], Callable[[int], object]], ...]:
    """How every loaded OpenBLAS is asked for its number of threads, and told one."""
    import scipy.linalg  # noqa: F401 - loads its own

    found = []
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        for path in sorted({line.split(maxsplit=5)[-1] for line in maps.splitlines() if "openblas" in line}):
            library = ctypes.CDLL(path)
            for prefix in ("scipy_openblas", "openblas"):
                for suffix in ("64_", ""):
                    with suppress(AttributeError):
                        get = getattr(library, f"{prefix}_get_num_threads{suffix}")
                        found.append((get, getattr(library, f"{prefix}_set_num_threads{suffix}")))
    return tuple(found)
