"""What a result must say about the machine, and no more: no names, no paths."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

PACKAGES = ("surgery_jax", "jax", "jaxlib", "numpy")
ASK = "import importlib.metadata as m, platform as p, sys; print(p.python_version(), *map(m.version, sys.argv[1:]))"


def describe(work: Path, brainsurgery: Path | None) -> dict[str, object]:
    """The machine that runs this program, for files in `work`."""
    return {
        "cpu": _first(r"^model name\s*:\s*(.+)$", "/proc/cpuinfo") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "file_system": _file_system(work),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        **_brainsurgery(brainsurgery),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _first(pattern: str, path: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return None
    return found and found[1].strip()


def _file_system(path: Path) -> str:
    """The type of the file system with the longest mount point above `path`."""
    types = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ", 1)
        types[Path(before.split()[4])] = after.split()[0]
    resolved = path.resolve()
    return next(types[place] for place in (resolved, *resolved.parents) if place in types)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _brainsurgery(command: Path | None) -> dict[str, str]:
    if command is None:
        return {}
    names = ("brainsurgery", "torch")
    asked = subprocess.run(
        [command.with_name("python"), "-c", ASK, *names], check=True, capture_output=True, text=True
    ).stdout.split()
    return dict(zip(("brainsurgery_python", "brainsurgery", "brainsurgery_torch"), asked, strict=True))
