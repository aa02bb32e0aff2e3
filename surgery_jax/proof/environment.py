"""What computed: versions of packages, processor and devices."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.discover import version_of
from ..execute.devices import has_only_processors

__all__ = ["device_kinds", "kinds_told", "versions"]

PACKAGES = ("surgery_jax", "jax", "jaxlib", "numpy", "scipy")


def versions(*, with_devices: bool) -> dict[str, str]:
    """By name, what a result may depend on; the kinds of devices only where something is computed with JAX."""
    found = {name: known for name in PACKAGES if (known := version_of(name)) is not None}
    found |= {"python": platform.python_version(), "blas": _blas(), "processor": _processor()}
    found["devices"] = _devices() if with_devices else "none"
    return found


def device_kinds() -> set[str]:
    """The kinds of devices. JAX, which takes a second to import, is asked only if it may know of another one than the
    processor."""
    return {"cpu cpu"} if "jax" not in sys.modules and has_only_processors() else kinds_told(_devices())


def kinds_told(devices: str) -> set[str]:
    """The kinds of devices that a receipt tells."""
    return {kind.rpartition("× ")[2] for kind in devices.split(", ")}


def _blas() -> str:
    """The libraries of linear algebra that NumPy and, if it was needed, SciPy were built with."""
    told = []
    for name in ("numpy", "scipy"):
        config: Any = getattr(sys.modules.get(f"{name}.__config__"), "CONFIG", {})
        blas = config.get("Build Dependencies", {}).get("blas", {})
        if blas:
            told.append(f"{name}: {blas.get('name', '?')} {blas.get('version', '?')}")
    return ", ".join(told) or "unknown"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return f"{platform.machine()} {value.strip()}"
    return f"{platform.machine()} {platform.processor()}".strip()


def _devices() -> str:
    if "jax" not in sys.modules and has_only_processors() and not _are_several():
        return "1 × cpu cpu"
    import jax

    kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))


def _are_several() -> bool:
    """Whether JAX may be told to take a processor for several devices."""
    return bool(os.environ.get("JAX_NUM_CPU_DEVICES")) or "device_count" in os.environ.get("XLA_FLAGS", "")
