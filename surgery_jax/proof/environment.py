"""What computed: versions of packages, processor and devices."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["versions"]

PACKAGES = ("surgery_jax", "jax", "jaxlib", "numpy", "scipy")


def versions(*, with_devices: bool) -> dict[str, str]:
    """By name, what a result may depend on; the kinds of devices only where something is computed with JAX."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    found |= {"python": platform.python_version(), "blas": _blas(), "processor": _processor()}
    found["devices"] = _devices() if with_devices else "none"
    return found


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
    import jax

    kinds = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    return ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
