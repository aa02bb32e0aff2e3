"""Since when a system has been running that keeps what was written: while it runs, bytes that a process has written are
there, on the disk or in memory, whatever becomes of the process."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["boot_of"]

# File systems whose pages the kernel itself keeps: what a daemon keeps can be lost with that.
_KEPT = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "nfs", "nfs4", "overlay", "tmpfs", "xfs", "zfs"}
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/mountinfo")


def boot_of(path: Path) -> bytes:
    """Another name whenever what was written to a file, and not brought to the disk, may be lost: that of the running
    kernel. Empty where nobody says so, or where it is not the kernel that keeps what was written."""
    with suppress(OSError):
        if _kind_of(os.path.realpath(path)) in _KEPT:
            return _BOOT.read_bytes().strip()
    return b""


def _kind_of(path: str) -> str | None:
    """The kind of the file system that a path lies in: that of the last of the longest mounts."""
    found: tuple[int, str] | None = None
    for line in os.fsdecode(_MOUNTS.read_bytes()).splitlines():
        left, _, right = line.partition(" - ")
        words = left.split(" ")
        if len(words) < 5 or not right:
            continue
        mount = words[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        is_within = mount == "/" or path == mount or path.startswith(mount + "/")
        if is_within and (found is None or len(mount) >= found[0]):
            found = len(mount), right.split(" ")[0]
    return found[1] if found is not None else None
