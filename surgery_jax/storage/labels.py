"""Which run has made a file or a directory, said by itself: in an extended attribute, which is renamed with it.

A label holds what the head of a stage holds, but for what passes over the data have found, and the size and time of
change of its file, or a digest of those of all files of a directory that the run has made: of what was written to
since, or of a copy with other times, it says nothing. Where the file system keeps no such attributes, or the label is
too long for it, there is none.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..core.digests import digest, encoded
from .stages import parsed

__all__ = ["label", "label_directory", "labelled"]

_NAME = "user.surgery_jax.run"
_MOST = 16 << 20  # bytes of an untrusted label that are unpacked


def label(path: Path, head: Mapping[str, object]) -> None:
    """Let a file that is complete say that the run with this head has made it."""
    _label(path, head, {"state": _state(path)})


def label_directory(path: Path, head: Mapping[str, object], built: Path, names: Sequence[str]) -> None:
    """Let a directory say that the run with this head has made the files of these names in it. They are complete, and
    lie in the directory `built` until they appear."""
    with suppress(OSError):
        _label(path, head, {"names": list(names), "state": _states(built, names)})


def _label(path: Path, head: Mapping[str, object], more: Mapping[str, object]) -> None:
    if sys.platform == "linux":
        said = {name: value for name, value in head.items() if name != "answers"} | dict(more)
        with suppress(OSError):
            os.setxattr(path, _NAME, zlib.compress(json.dumps(said).encode(), 9))


def labelled(path: Path) -> dict[str, object]:
    """The head of the run that has made a file or directory; nothing if it has no label, or was changed since."""
    if sys.platform == "linux":
        with suppress(OSError, ValueError, zlib.error):
            said = parsed(zlib.decompressobj().decompress(os.getxattr(path, _NAME), _MOST))
            if said.get("state") == (_states(path, _names(said)) if path.is_dir() else _state(path)):
                return said
    return {}


def _names(said: Mapping[str, object]) -> list[str]:
    """The files of a labelled directory.

    Raises:
        ValueError: it names none.
    """
    names = said.get("names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError
    return names


def _states(root: Path, names: Sequence[str]) -> str:
    return digest(encoded([[name, *_state(root / name)] for name in names])).hex()


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
