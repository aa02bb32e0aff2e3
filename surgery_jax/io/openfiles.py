"""How many files the process may have open: more while a run needs more, and then as many as before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["room_for_files"]

SPARE = 512  # files that inputs, libraries and the program around may have open besides

_lock = threading.Lock()
_needs: list[int] = []  # of the runs that are under way
_before = _raised = 0


@contextmanager
def room_for_files(count: int) -> Iterator[None]:
    """While inside, so many files may be open besides those of other runs, as far as the system allows."""
    with _lock:
        _needs.append(count)
        _adjust()
    try:
        yield
    finally:
        with _lock:
            _needs.remove(count)
            _adjust()


def _adjust() -> None:
    """Raise the limit of this process as far as is needed; put it back when nothing is, unless somebody else has
    changed it since."""
    import resource

    global _before, _raised
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    if not _raised or soft != _raised:
        _before, _raised = soft, 0
    wanted = SPARE + sum(_needs) if _needs else 0
    limit = max(_before, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
    if limit != soft:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            _raised = limit if limit > _before else 0
