"""Folders that keep from run to run what would take time to find again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(kind: str) -> Path | None:
    """A folder that only this user can write, since what lies there is trusted; None if there cannot be one.

    `SURGERY_JAX_CACHE` names another folder for what is compiled, within which the other kinds have theirs, or is
    `off`.
    """
    wanted = os.environ.get("SURGERY_JAX_CACHE")
    if wanted == "off":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = f"{base}/surgery_jax/{kind}" if not wanted else wanted if kind == "compiled" else f"{wanted}/{kind}"
    try:
        folder = Path(chosen).expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # no home, or not writable
        return None
    private = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if private and os.access(folder, os.W_OK) else None
