"""Flax's msgpack files (`flax.serialization`): nested maps with arrays as extension values.

Only the structure is parsed, never an array; an array is where its bytes begin. Leaves above 1 GiB are cut into chunks
as Flax does, and have several ranges in the file. What is no tensor (None, texts, empty maps, Python's complex numbers)
travels as text metadata, so that it is still there when the tree is written as msgpack again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ...core.errors import StorageError
from ...core.specs import Spec
from ..base import Checkpoint, Entry, Format, Layout
from ..files import File, first_bytes, paused_gc
from ..keys import join_keys, leaves_below
from .parsing import FORMAT, Parser
from .write import ARRAY, lay_tree

__all__ = ["FlaxFormat"]

_MAPS = (*range(0x81, 0x90), 0xDE, 0xDF)  # with at least one item
_EXTS = (0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9))


class FlaxFormat(Format):
    """Files `*.msgpack`."""

    name = FORMAT
    suffixes = (".msgpack",)
    writes_tensors = True
    folder_rank = 2

    def indexed_name(self, name: str) -> str:
        """An index of shards has slashes between the keys."""
        return join_keys(name.split("/"))

    def probe_file(self, path: Path) -> bool:
        """Whether it begins with a map whose first key is a short text and whose first value a map or an array, or
        with an array."""
        head = first_bytes(path, 300).ljust(300, b"\0")
        if head[0] in _EXTS:
            return ARRAY in head[1:6]
        if head[0] not in _MAPS:
            return False
        at = {0xDE: 3, 0xDF: 5}.get(head[0], 1)
        if 0xA0 <= head[at] < 0xC0:
            begin, length = at + 1, head[at] & 31
        elif head[at] == 0xD9:
            begin, length = at + 2, head[at + 1]
        else:
            return False
        key, after = head[begin : begin + length], head[begin + length]
        return 0 not in key and after in (*_MAPS, *_EXTS)

    def read_header(self, path: Path) -> Checkpoint:
        """The structure of a file. An array of its own has no name."""
        return _read_tree(path, "")

    def read_single(self, path: Path) -> tuple[str | None, Entry]:
        """An array of its own, or the only one of a tree."""
        found = _read(path)
        return (None, found) if isinstance(found, Entry) else super().read_single(path)

    def read_part(self, path: Path, prefix: str) -> Checkpoint:
        """As `part` does; of what is left out, that of the part is told."""
        return self.part(_read_tree(path, f"{prefix}."), prefix)

    def part(self, checkpoint: Checkpoint, prefix: str) -> Checkpoint:
        """Also its leaves that are no tensors."""
        found = super().part(checkpoint, prefix)
        return replace(found, metadata=leaves_below(checkpoint.metadata, prefix))

    def layout(
        self,
        path: Path,
        tensors: Sequence[tuple[str, Spec]],
        *,
        is_directory: bool,
        shard_bytes: int | None,
        metadata: Mapping[str, str],
    ) -> Layout:
        """One file: the tree that the names stand for."""
        return lay_tree(path, tensors, metadata)


# ---------------------------------------------------------------------------------------------------------- reading


def _read(path: Path, start: str = "") -> Checkpoint | Entry:
    """The tree of a file, or its only array; of what is left out, that is told whose names begin with `start`."""
    with paused_gc(), File(path) as file, file.mapped() as data:
        return Parser(path, data, file.size).read(start)


def _read_tree(path: Path, start: str) -> Checkpoint:
    found = _read(path, start)
    if isinstance(found, Entry):
        raise StorageError(
            "an array without a name is no checkpoint",
            where=str(path),
            hint="load it under a name: load: {path: ..., to: ...}",
        )
    return found
