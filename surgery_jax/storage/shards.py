"""Checkpoints of several files: the index on the way in and out, merging, and where to cut."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ..core.errors import StorageError, listing, nearest
from ..core.specs import Spec
from .base import Checkpoint, Entry
from .files import File, parse_json
from .places.found import place_of

__all__ = ["ANY_SHARD", "check_inside", "cut", "index_bytes", "is_name", "own_files", "read_index", "read_parts"]

_MAX_INDEX = 1 << 28  # bytes
_MAX_NAMES = 1 << 20  # ten times as many as the largest models have; each takes some 300 bytes of memory


def read_index(path: Path) -> dict[str, str]:
    """What an index says: the file of each tensor, checked to be the path of an existing file beside it.

    Raises:
        StorageError: it cannot be read, or a value is not such a path.
    """
    with File(path) as file:
        if file.size > _MAX_INDEX:
            raise StorageError(
                "the index is too long", where=str(path), expected=f"at most {_MAX_INDEX} bytes", found=str(file.size)
            )
        raw = file.at(0, file.size)
    if (count := raw.count(b":")) > _MAX_NAMES:
        raise StorageError(
            "the index is too long", where=str(path), expected=f"at most {_MAX_NAMES} names", found=str(count)
        )
    table = parse_json(raw, path, "the index")
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not names:
        raise StorageError("the index names no tensors", where=str(path), expected="an object 'weight_map'")
    checked: set[str] = set()
    place_of(str(path)).expect(
        str(path.parent / value) for value in dict.fromkeys(v for v in names.values() if isinstance(v, str))
    )
    for name, value in names.items():
        if not isinstance(value, str):
            raise StorageError(f"the file of {name!r} is not a text", where=str(path), found=repr(value)[:80])
        if value not in checked:
            check_inside(path, name, value)
            checked.add(value)
    return names


def check_inside(index: Path, name: str, value: str) -> None:
    """An index is a text from elsewhere: what it names must lie in its directory. A link that lies there is followed,
    for it is a file that the user has.

    Raises:
        StorageError: `value` is not the relative path of an existing file in the directory of `index`.
    """
    relative = PurePosixPath(value)
    is_inside = not relative.is_absolute() and ".." not in relative.parts
    if not value or not is_inside or value != value.strip() or not is_name(value):
        raise StorageError(
            f"the file of {name!r} is not a path inside of the directory",
            where=str(index),
            expected="a relative path without '..'",
            found=repr(value)[:120],
        )
    try:
        (index.parent / relative).stat()
    except OSError as error:
        raise StorageError(
            f"the file of {name!r} does not exist" if error.errno == errno.ENOENT else f"no file of {name!r}",
            where=str(index),
            found=f"no {value[:120]} in {index.parent}: {error.strerror}",
            hint="the checkpoint is incomplete: fetch the missing file",
        ) from None


def is_name(text: str) -> bool:
    """Whether a text can be the name of a file at all."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def read_parts(
    path: Path, files: Iterable[Path], read: Callable[[Path], Checkpoint], index: Mapping[str, str] | None, format: str
) -> Checkpoint:
    """One checkpoint of several files; with an index, what it says must be true.

    Raises:
        StorageError: a file cannot be read, two files hold one name, the index is wrong, or there is no tensor.
    """
    entries: dict[str, Entry] = {}
    holder: dict[str, Path] = {}
    metadata: Mapping[str, str] = {}
    left_out: dict[str, None] = {}
    parts = list(files)
    place_of(str(path)).expect(map(str, parts))
    for number, part in enumerate(parts):
        header = read(part)
        if number == 0:
            metadata = header.metadata
        if twice := holder.keys() & header.entries.keys():
            name = min(twice)
            raise StorageError(
                f"the tensor {name!r} is in two files",
                where=str(path),
                found=f"{holder[name].name} and {part.name}",
                hint=f"say which belong to the checkpoint, with a pattern or a file: {path}/{part.name}",
            )
        entries.update(header.entries)
        left_out.update(dict.fromkeys(header.left_out))
        holder.update(dict.fromkeys(header.entries, part))
    if index is not None:
        _check_index(path, index, holder)
    if not entries:
        raise StorageError("the checkpoint holds no tensors", where=str(path), found=listing(p.name for p in parts))
    return Checkpoint(str(path), format, entries, metadata, tuple(map(str, parts)), left_out=tuple(left_out)[:12])


def _check_index(path: Path, index: Mapping[str, str], holder: Mapping[str, Path]) -> None:
    files = {value: path / value for value in set(index.values())}
    for name, value in index.items():
        if name not in holder:
            near = nearest(name, holder)
            raise StorageError(
                f"the index names {name!r}, which is in none of its files",
                where=str(path),
                expected=f"the tensor in {value}",
                found=f"the most similar names: {listing(near)}",
            )
        if holder[name] != files[value]:
            raise StorageError(
                f"the index is wrong about {name!r}",
                where=str(path),
                expected=f"the tensor in {value}",
                found=f"it is in {holder[name].relative_to(path)}",
            )


ANY_SHARD = re.compile(r"(.+)-\d+(-of-\d+\.\w+)")  # how the shards of any checkpoint are named


def own_files(path: Path, index: str, files: Sequence[Path], own: re.Pattern[str]) -> list[Path]:
    """Which files of a directory are its checkpoint, and go when it is replaced: the index, which comes first, the
    files that it names, and those with names like ours (`own`).

    Without any of them it is the only file, or the shards of one name. Of several others nobody can tell what they are,
    so they stay.
    """
    is_indexed = (path / index).is_file()
    found = {file: None for file in files if own.fullmatch(file.name)}
    if is_indexed:
        # A broken index is replaced like a sound one; it names nothing to remove.
        with suppress(StorageError):
            found.update(dict.fromkeys(path / value for value in read_index(path / index).values()))
    elif not found:
        kinds = {match.groups() if (match := ANY_SHARD.fullmatch(file.name)) else file.name for file in files}
        found = dict.fromkeys(files) if len(kinds) == 1 else {}
    return [*([path / index] if is_indexed else []), *found]


def cut(tensors: Sequence[tuple[str, Spec]], limit: int) -> list[list[tuple[str, Spec]]]:
    """Tensors in order, a new shard whenever the next one would not fit; a larger one is a shard of its own."""
    shards: list[list[tuple[str, Spec]]] = [[]]
    used = 0
    for name, spec in tensors:
        if shards[-1] and used + spec.nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append((name, spec))
        used += spec.nbytes
    return shards


def index_bytes(files: Mapping[str, str], total_size: int) -> bytes:
    """The text of an index."""
    table = {"metadata": {"total_size": total_size}, "weight_map": dict(files)}
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()
