"""Orbax checkpoints: a directory with a table of the tree, and one zarr array per leaf, in files of its own or together
in a key-value store (OCDBT).

The tree is read from `_METADATA`, shapes and places from the metadata of the arrays. What a tree of named tensors
cannot say (lists, kinds of leaves, texts, empty containers, kinds of random keys) travels as one text in the metadata
of the checkpoint, so that writing it again gives the same tree.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from ..core.errors import PlanError, StorageError, listing
from ..core.ranges import Parts
from ..core.specs import Spec, parse_size
from .base import Checkpoint, Entry, Format, LaidFile, Layout, no_part
from .files import File, parse_json, storage_error
from .keys import MAX_DEPTH, join_keys, nest, split_name
from .leftovers import in_words
from .shards import check_inside
from .zarr import (
    METADATA,
    UnknownDtype,
    ZarrArray,
    chunk_of,
    chunks,
    describe,
    encode_chunk,
    entry_of,
    parse_array,
)

__all__ = ["OrbaxFormat"]

_TREE = "_METADATA"
_STEP = ("_CHECKPOINT_METADATA", "orbax.checkpoint")  # what a finished step, or a checkpoint by itself, has
_COMMIT = "commit_success.txt"
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a directory that is being written
_STRINGS = "_strings.json"
_MANIFEST = "manifest.ocdbt"
_KEYS = "array_metadatas"
_OWN = (_TREE, *_STEP, _COMMIT, _STRINGS, "_sharding", _KEYS, _MANIFEST, "d")
_MAX_TABLE = 1 << 29  # bytes; the table of a million leaves has half of that
_NOTE = "orbax"  # the key of the metadata of a checkpoint


class OrbaxFormat(Format):
    """Directories that Orbax writes: `StandardCheckpointer`, `CheckpointManager`, `ocp.save`."""

    name = "orbax"
    writes_files = False
    writes_directories = True
    options: ClassVar[Mapping[str, str]] = {
        "chunk": "largest chunk of an array, such as 64MB (default), or none; chunks are cut along the leading axis",
        "compression": "none (default) or zstd, of every chunk",
    }

    def __init__(self, chunk_bytes: int | None = 64 << 20, compression: str = "none") -> None:
        """As the options say; `chunk_bytes` None does not cut."""
        self.chunk_bytes = chunk_bytes
        self.compression = compression

    def configured(self, options: Mapping[str, str]) -> OrbaxFormat:
        """With the sizes and words of a plan."""
        super().configured(options)
        compression = options.get("compression", self.compression)
        if compression not in _COMPRESSORS:
            raise PlanError(
                f"unknown compression {compression!r}", expected=f"one of {', '.join(_COMPRESSORS)}", found=compression
            )
        chunk = parse_size(options["chunk"]) if "chunk" in options else self.chunk_bytes
        return OrbaxFormat(chunk, compression)

    def probe_directory(self, path: Path) -> bool:
        """Whether it is a checkpoint or a step, or holds nothing but steps."""
        if any((path / name).is_file() for name in (_TREE, *_STEP)):
            return True
        names = [entry for entry in path.iterdir() if entry.name[0] not in "._"]
        return bool(names) and all(entry.is_dir() for entry in names) and bool(_choices(path))

    def stale(self, path: Path) -> list[Path]:
        """The tables and arrays of a checkpoint that is the directory itself."""
        if not self.probe_directory(path):
            return []
        own = [path / name for name in _OWN] + sorted(path.glob("ocdbt.process_*"))
        arrays = (entry for entry in sorted(path.iterdir()) if any((entry / name).is_file() for name in METADATA))
        items = (entry for entry in sorted(path.iterdir()) if (entry / _TREE).is_file())
        return [entry for entry in dict.fromkeys([*own, *arrays, *items]) if entry.exists()]

    def read_header(self, path: Path) -> Checkpoint:
        """The tree of the only item of the only step, or of the one that the path names."""
        return self._read(path, "")

    def read_part(self, path: Path, prefix: str) -> Checkpoint:
        """Of the leaves of the part alone."""
        return self.part(self._read(path, prefix), prefix)

    def _read(self, path: Path, prefix: str) -> Checkpoint:
        if not path.is_dir():
            raise StorageError("an Orbax checkpoint is a directory", where=str(path))
        try:
            _check_name(path, path.resolve())
            item = _find(path)
            _check_committed(item)
            return _read_item(path, item, prefix)
        except OSError as error:
            raise storage_error(error, path, "read it") from None

    def layout(
        self,
        path: Path,
        tensors: Sequence[tuple[str, Spec]],
        *,
        is_directory: bool,
        shard_bytes: int | None,
        metadata: Mapping[str, str],
    ) -> Layout:
        """One file per chunk, of the layout of `StandardCheckpointer`, which every release of Orbax reads."""
        _check_no_steps(path)
        note = _Note.of(metadata)
        written = _Written(str(path), tensors, note)
        files: list[LaidFile] = []
        places: dict[str, tuple[int, int]] = {}
        rest: dict[str, Parts[int]] = {}
        arrays: dict[str, bytes] = {}
        compressor = _COMPRESSORS[self.compression]
        for name, spec in tensors:
            chunk = chunk_of(spec, self.chunk_bytes)
            described = describe(spec, chunk, compressor)
            stored = written.stored[name]
            arrays[stored] = described
            encode = None if compressor is None else partial(encode_chunk, described, chunk)
            parts = []
            for begin, key, size in chunks(spec, chunk):
                parts.append((begin, len(files), 0))
                size = size if encode is None else min(size, spec.nbytes - begin)
                files.append(LaidFile(f"{stored}/{key}", size, encode=encode))
            places[name] = parts[0][1:] if parts else (0, 0)
            if len(parts) > 1:
                rest[name] = tuple(parts[1:])
        tables = written.tables({key: value for key, value in metadata.items() if key != _NOTE})

        def finish(root: Path) -> None:
            for stored, described in arrays.items():
                (root / stored).mkdir(exist_ok=True)
                (root / stored / METADATA[0]).write_bytes(described)
            for name, content in tables.items():
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_bytes(content)

        return Layout(tuple(files), places, True, finish, rest)

    def part(self, checkpoint: Checkpoint, prefix: str) -> Checkpoint:
        """Also what the tree has there beside tensors."""
        found = super().part(checkpoint, prefix)
        return replace(found, metadata=_Note.of(checkpoint.metadata).below(prefix).metadata())


# ------------------------------------------------------------------------------------------------ steps and items


def _find(path: Path) -> Path:
    if (path / _TREE).is_file():
        return path
    found = _choices(path)
    if len(found) == 1:
        return found[0]
    if found:
        names = [str(choice.relative_to(path)) for choice in found]
        raise StorageError(
            "the directory holds several checkpoints",
            where=str(path),
            expected="one of them",
            found=listing(names, 12),
            hint=f"say which: {path / names[-1]}",
        )
    unfinished = [entry.name for entry in path.iterdir() if _UNFINISHED in entry.name]
    raise StorageError(
        "the directory holds no finished checkpoint" if unfinished else "the checkpoint has no table of its tree",
        where=str(path),
        expected=f"a file {_TREE}, in it or in a directory of a step or an item",
        found=listing(unfinished or sorted(entry.name for entry in path.iterdir())),
    )


def _choices(path: Path) -> list[Path]:
    """The items in a directory, or if there are none those of the steps in it."""
    below = _finished(path)
    items = [entry for entry in below if (entry / _TREE).is_file()]
    if not items:
        steps = [entry for entry in below if any((entry / name).is_file() for name in _STEP)]
        items = [item for step in steps for item in _finished(step) if (item / _TREE).is_file()]
    return sorted(items, key=_by_number)


def _finished(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if _UNFINISHED not in entry.name and entry.is_dir()]


def _check_no_steps(path: Path) -> None:
    """A checkpoint beside the steps of a `CheckpointManager` would hide them."""
    if not path.is_dir() or any((path / name).is_file() for name in (_TREE, *_STEP)):
        return
    steps = [choice for choice in _choices(path) if choice.parent != path]
    if steps:
        raise StorageError(
            "the directory holds steps of a CheckpointManager",
            where=str(path),
            found=listing(str(step.relative_to(path)) for step in steps),
            hint=f"name a step or an item, such as {steps[-1]}",
        )


def _by_number(path: Path) -> tuple[Any, ...]:
    """Steps in the order of their numbers: `ckpt_9/items` before `ckpt_10/items`."""
    digits = "".join(character for character in path.parent.name + path.name if character.isdigit())
    return (int(digits[:18] or 0), str(path))


def _check_name(item: Path, place: Path) -> None:
    """On a disk Orbax renames a directory last, and so judges by its name."""
    if _UNFINISHED in place.name:
        final = place.name.split(_UNFINISHED)[0]
        raise StorageError(
            "the checkpoint was never finished: its directory has the name of a temporary one",
            where=str(item),
            expected=f"{final}, the name that Orbax gives it last, and {_COMMIT} in it by newer releases",
            found=f"{place.name}, {'with' if (place / _COMMIT).is_file() else 'without'} {_COMMIT}",
            hint=f"take another step; if you know that it is complete, rename it to {final}",
        )


def _check_committed(item: Path) -> None:
    """Whether Orbax finished it. What was written in place, as in a bucket, has its last name from the beginning: there
    the marker counts, or that the time of the end is told."""
    absolute = item.resolve()
    places = [absolute, absolute.parent]
    for place in places:
        _check_name(item, place)
    has_marker = any((place / _COMMIT).is_file() for place in places)
    step = next((place for place in places if (place / _STEP[0]).is_file()), None)
    if has_marker or step is None:
        return
    table = _read_table(step / _STEP[0], "the table of the step")
    if isinstance(table, dict) and table.get("init_timestamp_nsecs") and not table.get("commit_timestamp_nsecs"):
        raise StorageError(
            "the checkpoint was begun and never finished, or not copied as a whole",
            where=str(item),
            expected=f"a file {_COMMIT}, or a time 'commit_timestamp_nsecs' in {_STEP[0]}",
            found="neither",
            hint=f"fetch it again; if you know that it is complete, make an empty file {step / _COMMIT}",
        )


# ----------------------------------------------------------------------------------------------------------- tree


@dataclass
class _Note:
    """What the tree has beside tensors, by name: the text that travels as metadata."""

    lists: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)  # of leaves that are no arrays, such as scalars
    texts: dict[str, str] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)  # containers without leaves, and None
    random: dict[str, str] = field(default_factory=dict)  # implementations of random keys
    custom: Any = None  # what the user of Orbax put beside the tree
    step: Any = None  # the same of the step, where it is not all texts

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> _Note:
        """The note that a checkpoint carries; an empty one if it carries none, or something else under its key."""
        try:
            held: dict[str, Any] = json.loads(metadata.get(_NOTE, "{}"))
            known: dict[str, Any] = {
                key: value for key, value in held.items() if key in _TYPES and isinstance(value, _TYPES[key])
            }
        except (AttributeError, ValueError, RecursionError):
            return cls()
        return cls(**known)

    def below(self, prefix: str) -> _Note:
        """The note of a branch of the tree."""
        start = f"{prefix}."

        def kept(table: Mapping[str, str]) -> dict[str, str]:
            return {name[len(start) :]: word for name, word in table.items() if name.startswith(start)}

        lists = [name[len(start) :] for name in self.lists if name.startswith(start)]
        return _Note(lists, kept(self.kinds), kept(self.texts), kept(self.empty), kept(self.random))

    def metadata(self) -> dict[str, str]:
        """Nothing for a tree of nested dictionaries of arrays."""
        held = {key: value for key, value in vars(self).items() if value}
        return {_NOTE: json.dumps(held, separators=(",", ":"), sort_keys=True)} if held else {}


_COMPRESSORS: dict[str, Mapping[str, Any] | None] = {"none": None, "zstd": {"id": "zstd", "level": 1}}
_TYPES: dict[str, type[Any]] = {
    "lists": list,
    "kinds": dict,
    "texts": dict,
    "empty": dict,
    "random": dict,
    "custom": object,
}


class _Leaf:
    """An array of the tree: its name here and that of its directory."""

    __slots__ = ("name", "stored")

    def __init__(self, name: str, stored: str) -> None:
        self.name = name
        self.stored = stored


def _read_table(path: Path, what: str) -> Any:
    with File(path) as file:
        if file.size > _MAX_TABLE:
            raise StorageError(
                f"{what} is too long", where=str(path), expected=f"at most {_MAX_TABLE} bytes", found=str(file.size)
            )
        return parse_json(file.at(0, file.size), path, what)


def _read_item(path: Path, item: Path, prefix: str) -> Checkpoint:
    """The checkpoint of an item, or of the branch `prefix` of its tree, under full names."""
    table = _read_table(item / _TREE, "the table of the tree")
    if (item / "_sharding").is_file():
        _read_table(item / "_sharding", "the table of shardings")
    leaves, note = _tree(item / _TREE, table, f"{prefix}." if prefix else "")
    if prefix and not leaves:
        raise no_part(str(path), prefix, (leaf.name for leaf in _tree(item / _TREE, table, "")[0]))
    metadata, note.step = _step_metadata(item)
    texts = _read_table(item / _STRINGS, "the table of texts") if (item / _STRINGS).is_file() else {}
    for name, stored in note.texts.items():
        text = texts.get(stored) if isinstance(texts, dict) else None
        if not isinstance(text, str):
            raise StorageError(f"the text of {name!r} is missing", where=str(item / _STRINGS))
        note.texts[name] = text
    by_stored = {leaf.stored: leaf.name for leaf in leaves}
    note.random = {by_stored[key]: kind for key, kind in _random_kinds(item).items() if key in by_stored}
    has_holes = table.get("store_array_data_equal_to_fill_value") is not True
    is_together = (item / _MANIFEST).is_file()
    others: list[tuple[str, str]] = []
    read = _entries_together if is_together else _entries_apart
    entries = read(item, leaves, has_holes, others)
    told = in_words((name[len(prefix) + 1 :] if prefix else name, word) for name, word in others)
    if not entries:
        raise StorageError("the checkpoint holds no tensors", where=str(path), found="; ".join(told) or None)
    files = tuple(_files(str(item)))
    return Checkpoint(str(path), OrbaxFormat.name, entries, metadata | note.metadata(), files, left_out=told)


def _files(folder: str) -> list[str]:
    """All files below a directory, in the order of their names."""
    with os.scandir(folder) as entries:
        found = sorted((entry.path, entry.is_dir()) for entry in entries)
    return [path for place, is_folder in found for path in (_files(place) if is_folder else [place])]


def _step_metadata(item: Path) -> tuple[dict[str, str], Any]:
    """What the user put beside the whole checkpoint: texts by name, or something else."""
    for place in (item, item.parent):
        if (place / _STEP[0]).is_file():
            table = _read_table(place / _STEP[0], "the table of the step")
            found = table.get("custom_metadata") if isinstance(table, dict) else None
            if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
                return {key: value for key, value in found.items() if key != _NOTE}, None
            return {}, found
    return {}, None


def _tree(where: Path, table: Any, start: str) -> tuple[list[_Leaf], _Note]:
    """The leaves and all that is no leaf, from the table of a checkpoint, as far as names begin with `start`."""
    note = _Note()
    leaves: list[_Leaf] = []
    rows = table.get("tree_metadata") if isinstance(table, dict) else None
    if not isinstance(rows, dict):
        raise StorageError("the table of the tree is not one", where=str(where), expected="an object 'tree_metadata'")
    note.custom = table.get("custom_metadata")
    seen: dict[str, str] = {}
    lists: dict[str, None] = {}
    for shown, row in rows.items():
        try:
            keys = [(part["key"], part["key_type"]) for part in row["key_metadata"]]
            kind, is_empty = row["value_metadata"]["value_type"], row["value_metadata"]["skip_deserialize"]
        except (KeyError, TypeError):
            raise _refusal(where, shown, "a row of the tree is not complete", repr(row)) from None
        if not all(type(key) is str and word in (1, 2) for key, word in keys) or type(kind) is not str:
            raise _refusal(where, shown, "a row of the tree is not understood", repr(row))
        if not 1 <= len(keys) <= MAX_DEPTH:
            raise _refusal(where, shown, "a leaf without a name, or too deep", f"{len(keys)} keys")
        words = [key for key, _ in keys]
        name, stored = join_keys(words), ".".join(words)
        if not name.startswith(start):
            continue
        if seen.setdefault(stored, shown) != shown or name in note.empty:
            raise StorageError(
                "two leaves have the same name when their keys are joined",
                where=str(where),
                found=f"{seen[stored]} and {shown}",
            )
        lists.update({join_keys(words[:at]): None for at, (_, word) in enumerate(keys) if word == 1 and at})
        if is_empty:
            note.empty[name] = kind
        elif kind == "string":
            note.texts[name] = stored
        else:
            leaves.append(_Leaf(name, stored))
            if kind not in ("jax.Array", "np.ndarray"):  # which are written alike
                note.kinds[name] = kind
    note.lists = list(lists)
    return leaves, note


def _refusal(where: Path, shown: str, problem: str, found: str) -> StorageError:
    return StorageError(f"{problem}: {shown[:120]}", where=str(where), found=found[:120])


def _random_kinds(item: Path) -> dict[str, str]:
    """The implementations of random keys, which are stored as plain numbers, by the name of their directory."""
    found: dict[str, str] = {}
    for path in sorted((item / _KEYS).glob("process_*")):
        table = _read_table(path, "the table of arrays")
        try:
            for row in table["array_metadatas"]:
                more = row["array_metadata"]["ext_metadata"]
                if more:
                    found[str(row["array_metadata"]["param_name"])] = str(more["random_key_impl"])
        except (KeyError, TypeError) as error:
            raise StorageError("the table of arrays is not one", where=str(path), found=repr(error)[:120]) from None
    return found


# --------------------------------------------------------------------------------------------------------- arrays


@cache
def _context() -> Any:
    import tensorstore

    return tensorstore.Context(
        {"cache_pool": {"total_bytes_limit": 0}, "cache_pool#ocdbt": {"total_bytes_limit": 1 << 25}}
    )


def _open(version: int, store: Mapping[str, Any], has_holes: bool) -> Any:
    import tensorstore

    spec = {"driver": "zarr" if version == 2 else "zarr3", "kvstore": store, "fill_missing_data_reads": has_holes}
    return tensorstore.open(spec, context=_context(), read=True, open=True).result()


def _directory(path: Path) -> dict[str, Any]:
    return {"driver": "file", "path": f"{path.resolve()}/"}


def _entries_apart(
    item: Path, leaves: Sequence[_Leaf], has_holes: bool, others: list[tuple[str, str]]
) -> dict[str, Entry]:
    """Arrays that are directories of files; those that are no tensors here go to `others`."""
    entries: dict[str, Entry] = {}
    base = _directory(item)
    for leaf in leaves:
        relative = PurePosixPath(leaf.stored)
        if not leaf.stored or "\0" in leaf.stored or relative.is_absolute() or ".." in relative.parts:
            raise StorageError(
                f"the directory of {leaf.name!r} is not one inside of the checkpoint",
                where=str(item),
                found=repr(leaf.stored),
            )
        folder = item / leaf.stored
        if os.path.realpath(folder) != f"{base['path']}{leaf.stored}" and folder.exists():
            check_inside(item / _TREE, leaf.name, leaf.stored)
        files = _files_below(item, folder)
        version = next((number for number, name in ((2, METADATA[0]), (3, METADATA[1])) if name in files), None)
        if version is None:
            raise _missing(item, leaf.name, f"{folder}/{METADATA[0]} or {METADATA[1]}")
        path, size = files.pop(METADATA[version - 2])
        with File(Path(path)) as file:
            raw = file.at(0, min(size, 1 << 21))
        array = _parsed(leaf, raw, version, Path(path), others)
        if array is None:
            continue
        opened = partial(_open, version, {**base, "path": f"{base['path']}{leaf.stored}/"})
        entries[leaf.name] = entry_of(array, files, has_holes, opened, Path(path))
    return entries


def _parsed(leaf: _Leaf, raw: bytes, version: int, where: Path, others: list[tuple[str, str]]) -> ZarrArray | None:
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


def _files_below(item: Path, folder: Path) -> dict[str, tuple[str, int]]:
    """The files of an array by their key."""
    found: dict[str, tuple[str, int]] = {}
    pending = [("", str(folder))]
    while pending:
        prefix, place = pending.pop()
        try:
            entries = list(os.scandir(place))
        except FileNotFoundError:
            return found
        for entry in entries:
            if entry.is_symlink():
                check_inside(item / _TREE, folder.name, str(Path(entry.path).relative_to(item)))
            if entry.is_dir():
                pending.append((f"{prefix}{entry.name}/", entry.path))
                continue
            status = entry.stat()
            if not stat.S_ISREG(status.st_mode):
                raise StorageError("not a regular file", where=entry.path, expected="a chunk of an array")
            found[prefix + entry.name] = entry.path, status.st_size
    return found


def _entries_together(
    item: Path, leaves: Sequence[_Leaf], has_holes: bool, others: list[tuple[str, str]]
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
            where=str(item / _MANIFEST),
            found=str(error).split(" [")[0][:300],
            hint="the checkpoint is damaged, or a part 'ocdbt.process_N' of it is missing: fetch it again",
        ) from None


def _from_store(
    item: Path, leaves: Sequence[_Leaf], has_holes: bool, base: Mapping[str, Any], others: list[tuple[str, str]]
) -> dict[str, Entry]:
    import tensorstore

    store = tensorstore.KvStore.open(dict(base), context=_context()).result()
    below = _by_array(leaves, [key.decode("utf-8", "surrogateescape") for key in store.list().result()])
    reads: list[tuple[_Leaf, int, Any]] = []
    for leaf in leaves:
        keys = below.get(leaf.stored, {})
        version = next((number for number, name in ((2, METADATA[0]), (3, METADATA[1])) if name in keys), None)
        if version is None:
            raise _missing(item, leaf.name, f"{leaf.stored}/{METADATA[0]} or {METADATA[1]} in {_MANIFEST}")
        reads.append((leaf, version, store.read(f"{leaf.stored}/{METADATA[version - 2]}")))
    entries: dict[str, Entry] = {}
    for leaf, version, read in reads:
        where = item / leaf.stored / METADATA[version - 2]
        array = _parsed(leaf, read.result().value, version, where, others)
        if array is None:
            continue
        keys = below[leaf.stored]
        del keys[METADATA[version - 2]]
        opened = partial(_open, version, {**base, "path": f"{leaf.stored}/"})
        entries[leaf.name] = entry_of(array, keys, has_holes, opened, where)
    return entries


def _by_array(leaves: Iterable[_Leaf], keys: Iterable[str]) -> dict[str, dict[str, None]]:
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


# -------------------------------------------------------------------------------------------------------- writing


class _Written:
    """The tree that is written: rows of its table, and the directory of each tensor."""

    def __init__(self, where: str, tensors: Sequence[tuple[str, Spec]], note: _Note) -> None:
        """Raises StorageError for a name or a dtype that Orbax cannot hold."""
        nest(((name, spec) for name, spec in tensors), where)  # no name may be the beginning of another
        self.note = note
        self.specs = dict(tensors)
        self.keys = {name: split_name(name) for name in self.specs}
        self.stored: dict[str, str] = {}
        holder: dict[str, str] = {}
        for name, spec in tensors:
            stored = self.stored[name] = ".".join(self.keys[name])
            other = holder.setdefault(stored, name)
            if other != name:
                raise StorageError(
                    f"Orbax would store {name!r} and {other!r} in one directory",
                    where=where,
                    hint="rename one of them with the step move",
                )
            _check_directory_name(where, name, stored)
            if not spec.dtype.array:
                raise StorageError(f"Orbax cannot hold {spec.dtype}", where=where, found=f"{name!r} is {spec}")
        branches = {keys[:at] for keys in self.keys.values() for at in range(len(keys))}
        # what is no tensor stays where there is still a branch for it
        self.others = {
            name: split_name(name)
            for name in [*note.empty, *note.texts]
            if split_name(name)[:-1] in branches and name not in self.specs and split_name(name) not in branches
        }
        self.lists = self._lists()

    def _lists(self) -> set[tuple[str, ...]]:
        """The branches that are still lists: their keys count from 0 on."""
        wanted = {split_name(name) for name in self.note.lists}
        below: dict[tuple[str, ...], set[str]] = {}
        for keys in [*self.keys.values(), *self.others.values()]:
            for at in range(len(keys)):
                if keys[:at] in wanted:
                    below.setdefault(keys[:at], set()).add(keys[at])
        return {keys for keys, found in below.items() if found == set(map(str, range(len(found))))}

    def tables(self, metadata: Mapping[str, str]) -> dict[str, bytes]:
        """The files that are no arrays, by name; the mark of a finished checkpoint is the last."""
        note = self.note
        rows = {}
        for name, keys in [*self.keys.items(), *self.others.items()]:
            parts = [{"key": key, "key_type": 1 if keys[:at] in self.lists else 2} for at, key in enumerate(keys)]
            rows[str(keys)] = {"key_metadata": parts, "value_metadata": self._value(name)}
        tree = {
            "tree_metadata": rows,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": note.custom,
        }
        step = {
            "item_handlers": _HANDLER,
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": None,
            "commit_timestamp_nsecs": None,
            "custom_metadata": note.step if isinstance(note.step, dict) else dict(sorted(metadata.items())),
        }
        found: dict[str, Any] = {_TREE: tree, _STEP[0]: step}
        if texts := {".".join(self.others[name]): text for name, text in note.texts.items() if name in self.others}:
            found[_STRINGS] = texts
        if random := [name for name in self.specs if name in note.random]:
            sharding = json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"})
            coded = {name: base64.b64encode(self.stored[name].encode()).decode() for name in random}
            found["_sharding"] = {coded[name]: sharding for name in random}
            found[f"{_KEYS}/process_0"] = {"array_metadatas": [self._random(name) for name in random]}
        content = {name: json.dumps(table).encode() for name, table in found.items()}
        return content | {_COMMIT: b""}

    def _value(self, name: str) -> dict[str, Any]:
        """The kind of a leaf. Arrays are of the host: these are restored on any machine, and onto any devices that
        the caller asks for, while for a jax.Array the devices would have to be told here."""
        note = self.note
        if name in self.others:
            return {"value_type": note.empty.get(name, "string"), "skip_deserialize": name in note.empty}
        spec = self.specs[name]
        if name in note.random:
            return {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": list(spec.shape)}
        is_scalar = note.kinds.get(name) == "scalar" and not spec.shape
        return {"value_type": "scalar" if is_scalar else "np.ndarray", "skip_deserialize": False}

    def _random(self, name: str) -> dict[str, Any]:
        shape = list(self.specs[name].shape)
        kind = {"random_key_impl": self.note.random[name]}
        row = {"param_name": self.stored[name], "write_shape": shape, "chunk_shape": shape, "ext_metadata": kind}
        return {"array_metadata": row}


_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def _check_directory_name(where: str, name: str, stored: str) -> None:
    """The name of an array's directory is the joined path of keys, so not every name is one."""
    problem = None
    if not stored or stored in (".", "..") or "/" in stored or "\0" in stored:
        problem = "it cannot be the name of a directory"
    elif len(stored.encode("utf-8", "surrogatepass")) > 255:
        problem = "it is longer than the name of a directory can be"
    elif stored in _OWN or stored.startswith("ocdbt.process_"):
        problem = "a file of Orbax has that name"
    if problem is not None:
        raise StorageError(
            f"Orbax cannot store a tensor named {name[:80]!r}: {problem}",
            where=where,
            hint="rename it with the step move",
        )
