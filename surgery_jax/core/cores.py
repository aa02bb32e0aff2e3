"""How many cores this process may use."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["count_cores", "usable_cores"]

_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@cache
def usable_cores() -> int:
    """The cores that this process may use, at least one: fewer than the machine has where its affinity or the limits of
    a container say so. What is found first counts to the end, so that all that is planned by it agrees."""
    return count_cores(_GROUPS, _OWN_GROUP)


def count_cores(groups: Path, own_group: Path) -> int:
    """The same, as it is now: `groups` is where control groups (version 2) are mounted, `own_group` says which is that
    of this process."""
    found = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min([found, *_quotas(groups, own_group)]))


def _quotas(groups: Path, own_group: Path) -> list[int]:
    """Cores that the group of this process and those above it may keep busy; a part of one counts as one."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        lines = own_group.read_text().splitlines()
        name = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
        # in a container the name may be one outside of it, which cannot be seen
        for place in (groups / name, *(groups / name).parents):
            with suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = map(int, (place / "cpu.max").read_text().split())
                found.append(-(-quota // period))
            if place == groups:
                break
    return found
