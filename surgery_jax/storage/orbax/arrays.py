"""The arrays of an Orbax checkpoint, in files of their own or together in a key-value store (OCDBT)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ...core.errors import StorageError
from ..base import Entry
from ..files import File
from ..shards import is_name
from .entries import entry_of
from .tree import MANIFEST, Leaf
from .zarr import METADATA, UnknownDtype, ZarrArray, parse_array

if TYPE_CHECKING:
    import tensorstore

__all__ = ["entries_apart", "entries_together"]


def _context() -> tensorstore.Context:
    """One for each reading of headers: what is kept of a store that is read there is not that of another one, which may
    have come to the same place since."""
    import tensorstore

    return tensorstore.Context(
        {"cache_pool": {"total_bytes_limit": 0}, "cache_pool#ocdbt": {"total_bytes_limit": 1 << 25}}
    )


@cache
def _plain() -> tensorstore.Context:
    """One that keeps nothing of what it reads."""
    return _context()


def _open(
    version: int, store: Mapping[str, object], context: tensorstore.Context | None, has_holes: bool
) -> tensorstore.TensorStore:
    import tensorstore

    spec = {"driver": "zarr" if version == 2 else "zarr3", "kvstore": store, "fill_missing_data_reads": has_holes}
    return tensorstore.open(spec, context=context or _plain(), read=True, open=True).result()


def _directory(path: Path) -> dict[str, object]:
    return {"driver": "file", "path": f"{path.resolve()}/"}


def entries_apart(
    item: Path, leaves: Sequence[Leaf], has_holes: bool, others: list[tuple[str, str]]
) -> dict[str, Entry]:
    """Arrays that are directories of files; those that are no tensors here go to `others`."""
    entries: dict[str, Entry] = {}
    base = _directory(item)
    for leaf in leaves:
        relative = PurePosixPath(leaf.stored)
        if not leaf.stored or not is_name(leaf.stored) or relative.is_absolute() or ".." in relative.parts:
            raise StorageError(
                f"the directory of {leaf.name!r} is not one inside of the checkpoint",
                where=str(item),
                found=repr(leaf.stored)[:120],
            )
        files = _files_below(item / leaf.stored)
        version = next((number for number, name in ((2, METADATA[0]), (3, METADATA[1])) if name in files), None)
        if version is None:
            raise _missing(item, leaf.name, f"{item / leaf.stored}/{METADATA[0]} or {METADATA[1]}")
        path, size = files.pop(METADATA[version - 2])
        with File(Path(path)) as file:
            raw = file.at(0, min(size, 1 << 21))
        array = _parsed(leaf, raw, version, Path(path), others)
        if array is None:
            continue
        opened = partial(_open, version, {**base, "path": f"{base['path']}{leaf.stored}/"}, None)
        entries[leaf.name] = entry_of(array, files, has_holes, opened, Path(path))
    return entries


def _parsed(leaf: Leaf, raw: bytes, version: int, where: Path, others: list[tuple[str, str]]) -> ZarrArray | None:
    """The description of an array; None if it is no tensor here, which `others` then tells."""
    try:
        return parse_array(raw, version, where)
    except UnknownDtype as error:
        others.append((leaf.name, f"an array of {error}"))
        return None


def _missing(item: Path, name: str, expected: str) -> StorageError:
    return StorageError(
        f"the array of {name!r} is missing",
        where=str(item),
        expected=expected,
        hint="the checkpoint is damaged or incomplete: fetch it again",
    )


def _files_below(folder: Path) -> dict[str, tuple[str, int]]:
    """The files of an array by their key. A link is the file that it leads to."""
    found: dict[str, tuple[str, int]] = {}
    seen: set[tuple[int, int]] = set()  # links may lead round and round
    pending = [("", str(folder))]
    while pending:
        prefix, place = pending.pop()
        try:
            entries = list(os.scandir(place))
        except FileNotFoundError:
            return found
        for entry in entries:
            status = entry.stat()
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    pending.append((f"{prefix}{entry.name}/", entry.path))
            elif stat.S_ISREG(status.st_mode):
                found[prefix + entry.name] = entry.path, status.st_size
            else:
                raise StorageError("not a regular file", where=entry.path, expected="a chunk of an array")
    return found


def entries_together(
    item: Path, leaves: Sequence[Leaf], has_holes: bool, others: list[tuple[str, str]]
) -> dict[str, Entry]:
    """Arrays in an OCDBT store."""
    base = {"driver": "ocdbt", "base": _directory(item), "cache_pool": "cache_pool#ocdbt"}
    try:
        return _from_store(item, leaves, has_holes, base, others)
    except StorageError:
        raise
    except Exception as error:  # of TensorStore, which raises ValueError and OSError for whatever is wrong
        raise StorageError(
            "the store of the arrays cannot be read",
            where=str(item / MANIFEST),
            found=str(error).split(" [")[0][:300],
            hint="the checkpoint is damaged, or a part 'ocdbt.process_N' of it is missing: fetch it again",
        ) from None


def _from_store(
    item: Path, leaves: Sequence[Leaf], has_holes: bool, base: Mapping[str, object], others: list[tuple[str, str]]
) -> dict[str, Entry]:
    import tensorstore

    context = _context()
    store = tensorstore.KvStore.open(dict(base), context=context).result()
    below = _by_array(leaves, [key.decode("utf-8", "surrogateescape") for key in store.list().result()])
    reads: list[tuple[Leaf, int, tensorstore.Future[tensorstore.KvStore.ReadResult]]] = []
    for leaf in leaves:
        keys = below.get(leaf.stored, {})
        version = next((number for number, name in ((2, METADATA[0]), (3, METADATA[1])) if name in keys), None)
        if version is None:
            raise _missing(item, leaf.name, f"{leaf.stored}/{METADATA[0]} or {METADATA[1]} in {MANIFEST}")
        reads.append((leaf, version, store.read(f"{leaf.stored}/{METADATA[version - 2]}")))
    entries: dict[str, Entry] = {}
    for leaf, version, read in reads:
        where = item / leaf.stored / METADATA[version - 2]
        array = _parsed(leaf, read.result().value, version, where, others)
        if array is None:
            continue
        keys = below[leaf.stored]
        del keys[METADATA[version - 2]]
        opened = partial(_open, version, {**base, "path": f"{leaf.stored}/"}, context)
        entries[leaf.name] = entry_of(array, keys, has_holes, opened, where)
    return entries


def _by_array(leaves: Iterable[Leaf], keys: Iterable[str]) -> dict[str, dict[str, None]]:
    """The keys of a store by the array they belong to: the longest one, since a key of the tree may hold slashes."""
    names = {leaf.stored for leaf in leaves}
    found: dict[str, dict[str, None]] = {}
    for key in keys:
        at = key.rfind("/")
        while at >= 0 and key[:at] not in names:
            at = key.rfind("/", 0, at)
        if at >= 0:
            found.setdefault(key[:at], {})[key[at + 1 :]] = None
    return found
