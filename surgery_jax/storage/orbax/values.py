"""Where the values of a key-value store of TensorStore (OCDBT) lie, in files of any place.

TensorStore's own drivers know some places only, find other credentials there, and do not tell when a file changes. So
the nodes of the tree are read here like any header, and handed to TensorStore one by one to be decoded; the values are
then ranges of files. Those that must be decoded themselves go to it the same way, in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict, cast
from urllib.parse import unquote

from ...core.errors import StorageError
from ..files import File
from ..places.found import is_local, locate
from ..shards import is_name
from .tree import MANIFEST

if TYPE_CHECKING:
    import tensorstore

__all__ = ["HeldValue", "in_memory", "read_all", "read_store"]

_AT_ONCE = 32  # values that are read at the same time

_MAX_NODE = 1 << 28  # bytes, as stored
_MAX_HEIGHT = 256  # of a tree, as the format has it


class _Row(TypedDict):
    key: bytes
    location: NotRequired[str]  # of a node
    subtree_common_prefix: NotRequired[bytes]
    inline_value: NotRequired[bytes]
    indirect_value: NotRequired[str]


class _StoredNode(TypedDict):
    height: int
    entries: list[_Row]


class _Root(TypedDict):
    location: NotRequired[str]


class _Version(TypedDict):
    root: _Root


class _Manifest(TypedDict):
    versions: list[_Version]


class HeldValue(NamedTuple):
    """A value: `nbytes` bytes of a file from `offset` on, or `inline` the bytes themselves."""

    path: str
    offset: int
    nbytes: int
    inline: bytes | None = None

    def read(self) -> bytes:
        """All of it.

        Raises:
            StorageError: it cannot be read.
        """
        if self.inline is not None:
            return self.inline
        with File(locate(self.path)) as file:
            file.check_range(self.offset, self.nbytes)
            return file.at(self.offset, self.nbytes)


def read_all(values: Sequence[HeldValue]) -> list[bytes]:
    """Several values; of a place where each is a request, several at the same time.

    Raises:
        StorageError: one cannot be read.
    """
    if len(values) < 2 or is_local(values[0].path):
        return [value.read() for value in values]
    # not the threads that wait for servers: a long value is several requests, which these are to answer meanwhile
    with ThreadPoolExecutor(min(_AT_ONCE, len(values)), "surgery-value") as threads:
        contexts = [copy_context() for _ in values]  # what is remembered of files, for each of them
        return list(threads.map(lambda context, value: context.run(value.read), contexts, values))


def in_memory(values: Mapping[str, bytes], context: tensorstore.Context) -> tensorstore.KvStore:
    """A store of these values, which is gone with its context."""
    import tensorstore

    store = tensorstore.KvStore.open({"driver": "memory"}, context=context).result()
    for key, value in values.items():
        store.write(key, value).result()
    return store


def read_store(item: Path, used: set[str]) -> dict[str, HeldValue]:
    """All values of the store in a directory, by key; `used` gets the files that they and the tree are in.

    Raises:
        StorageError: it is damaged, or a part of it is missing.
    """
    numbered = sorted(item.glob("manifest.[0-9]*"))[-1:]  # where there is one for every version
    manifest = cast(_Manifest, _dumped(item, {path.name: _whole(path) for path in [item / MANIFEST, *numbered]}))
    values: dict[str, HeldValue] = {}
    try:
        root = manifest["versions"][-1]["root"]
        pending = [(root["location"], b"", _MAX_HEIGHT)] if "location" in root else []
        while pending:
            location, prefix, height = pending.pop()
            used.add(_place(item, location).path)
            node = _node(item, location)
            if node["height"] >= height:
                raise _damaged(item, f"a node of height {node['height']} below one of {height}")
            for row in node["entries"]:
                key = prefix + row["key"]
                if "location" in row:
                    pending.append((row["location"], prefix + row["subtree_common_prefix"], node["height"]))
                    continue
                name = key.decode("utf-8", "surrogateescape")
                if "inline_value" in row:
                    values[name] = HeldValue(str(item / MANIFEST), 0, len(row["inline_value"]), row["inline_value"])
                else:
                    values[name] = _place(item, row["indirect_value"])
    except (KeyError, IndexError, TypeError) as error:
        raise _damaged(item, f"{type(error).__name__}: {error}") from None
    used.update(value.path for value in values.values())
    return values


def _whole(path: Path) -> bytes:
    with File(path) as file:
        if file.size > _MAX_NODE:
            raise StorageError("the manifest is too long", where=str(path), found=f"{file.size} bytes")
        return file.at(0, file.size)


def _node(item: Path, location: str) -> _StoredNode:
    """A node of the tree, whose own references are told as from the store."""
    held = _place(item, location)
    if held.nbytes > _MAX_NODE:
        raise _damaged(item, f"a node of {held.nbytes} bytes")
    base = location.split(":", 2)[1]
    name = f"btreenode:{base}:node:0:{held.nbytes}"
    return cast(_StoredNode, _dumped(item, {f"{unquote(base)}node": held.read()}, name))


def _place(item: Path, location: str) -> HeldValue:
    """What a reference means: `value:<directory>:<file>:<offset>:<bytes>`."""
    try:
        _, base, rest = location.split(":", 2)
        path, offset, nbytes = rest.rsplit(":", 2)
        name = PurePosixPath(unquote(base) + unquote(path))
        held = HeldValue(str(item / name), int(offset), int(nbytes))
    except ValueError:
        raise _damaged(item, location[:200]) from None
    if name.is_absolute() or ".." in name.parts or not is_name(str(name)):
        raise StorageError("a value is not inside of the store", where=str(item), found=location[:200])
    return held


def _dumped(item: Path, files: Mapping[str, bytes], node: str | None = None) -> object:
    """What TensorStore says of a manifest or a node that is all there is of a store."""
    import tensorstore

    context = tensorstore.Context()
    try:
        return tensorstore.ocdbt.dump(in_memory(files, context), node, context=context).result()
    except Exception as error:  # TensorStore raises ValueError and OSError for whatever is wrong
        raise _damaged(item, str(error).split(" [")[0][:300]) from None


def _damaged(item: Path, found: str) -> StorageError:
    return StorageError(
        "the store of the arrays cannot be read",
        where=str(item / MANIFEST),
        found=found,
        hint="the checkpoint is damaged, or a part 'ocdbt.process_N' of it is missing: fetch it again",
    )
