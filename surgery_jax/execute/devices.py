"""JAX as this program uses it: which devices, where compiled functions are kept, and traces of what devices do."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["device_trace", "local_devices"]


def local_devices(count: int | None = None) -> list[Any]:
    """The first `count` devices of this process, all by default; compiled functions are kept between runs."""
    import jax

    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        folder = _cache_folder()
        if folder is not None:
            config.update("jax_compilation_cache_dir", str(folder))
            config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return list(jax.local_devices()[:count])


def _cache_folder() -> Path | None:
    """A folder that only this user can write, since what lies there is executed; None if there cannot be one.

    `SURGERY_JAX_CACHE` names another folder, or is `off`.
    """
    wanted = os.environ.get("SURGERY_JAX_CACHE")
    if wanted == "off":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(wanted or f"{base}/surgery_jax/compiled").expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # no home, or not writable
        return None
    private = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if private and os.access(folder, os.W_OK) else None


@contextmanager
def device_trace(folder: str | None) -> Iterator[None]:
    """Let JAX record what the devices do, if a folder is given."""
    if folder is None:
        yield
        return
    import jax

    with jax.profiler.trace(folder, create_perfetto_trace=True):
        yield
