"""The arrays of an Orbax checkpoint, in files of their own or together in a key-value store (OCDBT)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ...core.errors import StorageError
from ..base import Entry
from ..places.base import Identity
from ..places.found import is_local, locate, place_of
from ..shards import is_name
from .entries import FoundArray, OpenArray, entries_of
from .tree import MANIFEST, Leaf
from .values import HeldValue, in_memory, read_all, read_store
from .zarr import METADATA, UnknownDtype, ZarrArray, parse_array

if TYPE_CHECKING:
    import tensorstore

__all__ = ["entries_apart", "entries_together"]

_MOST_ASKED = 1 << 16  # chunks of an array of which each is asked for


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


def _open_stored(
    version: int,
    store: Mapping[str, object],
    context: tensorstore.Context | None,
    has_holes: bool,
    keys: Iterable[str],
) -> tensorstore.TensorStore:
    """An array of this machine, which TensorStore reads by itself."""
    return _open(version, store, context or _plain(), has_holes)


def _open_fetched(
    version: int, described: bytes, places: Mapping[str, HeldValue], has_holes: bool, keys: Iterable[str]
) -> tensorstore.TensorStore:
    """An array of which only these chunks are there: they are read, and decoded in memory."""
    context = _context()
    there = [key for key in keys if key in places]
    values = read_all([places[key] for key in there])
    in_memory({METADATA[version - 2]: described} | dict(zip(there, values, strict=True)), context)
    return _open(version, {"driver": "memory"}, context, has_holes)


def _open(
    version: int, store: Mapping[str, object], context: tensorstore.Context, has_holes: bool
) -> tensorstore.TensorStore:
    import tensorstore

    spec = {"driver": "zarr" if version == 2 else "zarr3", "kvstore": store, "fill_missing_data_reads": has_holes}
    return tensorstore.open(spec, context=context, read=True, open=True).result()


def _directory(path: Path) -> dict[str, object]:
    return {"driver": "file", "path": f"{path.resolve()}/"}


def entries_apart(
    item: Path, leaves: Sequence[Leaf], has_holes: bool, others: list[tuple[str, str]], used: set[str]
) -> dict[str, Entry]:
    """Arrays that are directories of files, which `used` is told; those that are no tensors here go to `others`."""
    arrays: dict[str, FoundArray] = {}
    files_of = _files_by_array(item, leaves, used)
    for leaf in leaves:
        relative = PurePosixPath(leaf.stored)
        if not leaf.stored or not is_name(leaf.stored) or relative.is_absolute() or ".." in relative.parts:
            raise StorageError(
                f"the directory of {leaf.name!r} is not one inside of the checkpoint",
                where=str(item),
                found=repr(leaf.stored)[:120],
            )
        places = files_of(leaf)
        version = _version(places)
        if version is None:
            raise _missing(item, leaf.name, f"{item / leaf.stored}/{METADATA[0]} or {METADATA[1]}")
        where, _, size, _ = places.pop(METADATA[version - 2])
        raw = HeldValue(where, 0, min(size, 1 << 21)).read()
        array = _parsed(leaf, raw, version, locate(where), others)
        if array is None:
            continue
        if is_local(item):
            opened: OpenArray = partial(_open_stored, version, _directory(item / leaf.stored), None)
        else:
            opened = partial(_open_fetched, version, raw, places)
        arrays[leaf.name] = FoundArray(array, places, opened, locate(where))
    return entries_of(arrays, has_holes)


def _files_by_array(item: Path, leaves: Sequence[Leaf], used: set[str]) -> Callable[[Leaf], dict[str, HeldValue]]:
    """What gives the files of an array by their key. Of another place than the local one all are asked for at once."""
    if is_local(item):
        return lambda leaf: _files_below(item / leaf.stored)
    place = place_of(str(item))
    sizes = place.below(str(item)) if place.lists else _sizes_asked(item, leaves)
    below = _by_array(leaves, sizes)
    place.expect(f"{item}/{leaf.stored}/{METADATA[_version(below.get(leaf.stored, ())) == 3]}" for leaf in leaves)

    used.update(f"{item}/{name}" for name in sizes)

    def found(leaf: Leaf) -> dict[str, HeldValue]:
        names = {key: f"{leaf.stored}/{key}" for key in below.get(leaf.stored, ())}
        return {key: HeldValue(f"{item}/{name}", 0, sizes[name]) for key, name in names.items()}

    return found


def _sizes_asked(item: Path, leaves: Sequence[Leaf]) -> dict[str, int]:
    """The files of arrays and their sizes, where only single names can be asked for."""

    def there(names: Sequence[str]) -> dict[str, int]:
        found = place_of(str(item)).identities([f"{item}/{name}" for name in names])
        for identity in found:
            if isinstance(identity, OSError) and identity.errno != errno.ENOENT:
                raise identity
        return {name: one.size for name, one in zip(names, found, strict=True) if isinstance(one, Identity)}

    described = there([f"{leaf.stored}/{name}" for leaf in leaves for name in METADATA])
    chunks: list[str] = []
    for name, size in described.items():
        stored, _, kind = name.rpartition("/")
        raw = HeldValue(f"{item}/{name}", 0, size).read()
        with suppress(UnknownDtype):
            array = parse_array(raw, 2 + METADATA.index(kind), item / name)
            if array.num_chunks > _MOST_ASKED:
                raise StorageError(
                    "a web server would have to be asked for too many chunks of an array",
                    where=str(item / name),
                    expected=f"at most {_MOST_ASKED}",
                    found=str(array.num_chunks),
                    hint="fetch the checkpoint, and read the local directory",
                )
            chunks += (f"{stored}/{key}" for key in array.keys())
    return described | there(chunks)


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


def _files_below(folder: Path) -> dict[str, HeldValue]:
    """The files of an array by their key. A link is the file that it leads to."""
    found: dict[str, HeldValue] = {}
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
                found[prefix + entry.name] = HeldValue(entry.path, 0, status.st_size)
            else:
                raise StorageError("not a regular file", where=entry.path, expected="a chunk of an array")
    return found


def entries_together(
    item: Path, leaves: Sequence[Leaf], has_holes: bool, others: list[tuple[str, str]], used: set[str]
) -> dict[str, Entry]:
    """The same of arrays in an OCDBT store."""
    values = read_store(item, used)
    below = _by_array(leaves, values)
    base = {"driver": "ocdbt", "base": _directory(item), "cache_pool": "cache_pool#ocdbt"} if is_local(item) else None
    context = _context() if base is not None else None
    arrays: dict[str, FoundArray] = {}
    for leaf in leaves:
        places = {key: values[f"{leaf.stored}/{key}"] for key in below.get(leaf.stored, ())}
        version = _version(places)
        if version is None:
            raise _missing(item, leaf.name, f"{leaf.stored}/{METADATA[0]} or {METADATA[1]} in {MANIFEST}")
        raw = places.pop(METADATA[version - 2]).read()
        where = item / leaf.stored / METADATA[version - 2]
        array = _parsed(leaf, raw, version, where, others)
        if array is None:
            continue
        if base is not None:
            opened: OpenArray = partial(_open_stored, version, {**base, "path": f"{leaf.stored}/"}, context)
        else:
            opened = partial(_open_fetched, version, raw, places)
        arrays[leaf.name] = FoundArray(array, places, opened, where)
    return entries_of(arrays, has_holes)


def _version(files: Container[str]) -> int | None:
    """The version of an array with these files."""
    return next((number for number, name in ((2, METADATA[0]), (3, METADATA[1])) if name in files), None)


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
