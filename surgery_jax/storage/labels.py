"""Which run has made a file, said by the file itself: in an extended attribute, which is renamed with it.

A label holds what the head of a stage holds, but for what passes over the data have found, and the size and time of
change of its file: of one that was written to since, or of a copy with another time, it says nothing. Where the file
system keeps no such attributes, or the label is too long for it, a file has none.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .stages import parsed

__all__ = ["label", "labelled"]

_NAME = "user.surgery_jax.run"
_MOST = 16 << 20  # bytes of an untrusted label that are unpacked


def label(path: Path, head: Mapping[str, object]) -> None:
    """Let a file that is complete say that the run with this head has made it."""
    if sys.platform == "linux":
        said = {name: value for name, value in head.items() if name != "answers"} | {"state": _state(path)}
        with suppress(OSError):
            os.setxattr(path, _NAME, zlib.compress(json.dumps(said).encode(), 9))


def labelled(path: Path) -> dict[str, object]:
    """The head of the run that has made a file; nothing if it has no label, or was changed since."""
    if sys.platform == "linux":
        with suppress(OSError, zlib.error):
            said = parsed(zlib.decompressobj().decompress(os.getxattr(path, _NAME), _MOST))
            if said.get("state") == _state(path):
                return said
    return {}


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
