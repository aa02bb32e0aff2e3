"""Digests of files that were hashed before: known by what the file is, never by its name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.caches import cache_folder
from ..storage.identity import Identity
from .rolling import FileDigest

__all__ = ["Remembered"]

LEAST = 1 << 20  # bytes of a file that it pays to remember
VERSION = 1


class Remembered:
    """Digests by identity: device, inode, size and times of change. A file that was written to is another one."""

    def __init__(self) -> None:
        self._folder = cache_folder("digests")

    def get(self, identity: Identity, marks: Sequence[int]) -> FileDigest | None:
        """What is known of a file; None if it is not known with these marks."""
        path = self._path(identity)
        if path is None:
            return None
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            told = json.loads(path.read_bytes())
            if told["version"] == VERSION and told["identity"] == _plain(identity):
                found: Mapping[str, Any] = dict(told["marks"])
                kept = tuple(str(found[str(at)]) for at in marks)
                if all(len(text) == 64 for text in (told["sha256"], *kept)):
                    return FileDigest(told["sha256"], identity.size, kept)
        return None

    def put(self, identity: Identity, found: FileDigest, marks: Sequence[int]) -> None:
        """Remember a digest. What cannot be remembered is found again."""
        path = self._path(identity)
        if path is None:
            return
        told = {
            "version": VERSION,
            "identity": _plain(identity),
            "sha256": found.sha256,
            "marks": [[str(at), mark] for at, mark in zip(marks, found.marks, strict=True)],
        }
        part = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
        try:
            part.write_text(json.dumps(told), encoding="utf-8")
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink()

    def _path(self, identity: Identity) -> Path | None:
        if self._folder is None or identity.size < LEAST:
            return None
        return self._folder / f"{hashlib.sha256(repr(_plain(identity)).encode()).hexdigest()[:32]}.json"


def _plain(identity: Identity) -> list[Any]:
    return [list(identity.file), identity.size, list(identity.version)]
