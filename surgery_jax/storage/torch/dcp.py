"""PyTorch's distributed checkpoints: a directory with a table `.metadata` and files `*.distcp` of chunks of tensors.

Each chunk is a small torch archive inside of a `.distcp` file, so that all bytes have known places: a tensor of one
chunk is read as a range of a file, and a checkpoint is written by laying out such archives one after the other. Reading
does without PyTorch; for writing, PyTorch makes the table, whose classes are its own.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.dtypes import BY_NAME
from ...core.errors import StorageError, listing
from ...core.specs import Spec
from ..base import Checkpoint, Entry, Format, LaidFile, Layout, no_part
from ..bounds import Allowance, is_possible
from ..files import File
from ..leftovers import in_words
from ..places.found import place_of
from ..shards import check_inside
from .chunks import Chunk, blocks_of, check_cover, chunk_entry
from .files import lay_torch
from .pickles import Built, PickleRefused, Symbol, read_pickle
from .tensors import CALLS
from .zips import LaidZip, complete_checksums

if TYPE_CHECKING:
    pass

__all__ = ["DcpFormat"]

_TABLE = ".metadata"
_DATA = "__0_0.distcp"
_OWN = re.compile(r"__\d+_\d+\.distcp")
_UNSOUND = (PickleRefused, KeyError, TypeError, AttributeError, ValueError)  # what a table that is none raises
_MAX_TABLE = 1 << 30


class DcpFormat(Format):
    """Directories with `.metadata` and `*.distcp`."""

    name = "dcp"
    writes_files = False
    writes_directories = True
    owns_directories = True

    def probe_directory(self, path: Path) -> bool:
        """Whether there are the table and any data."""
        return (path / _TABLE).is_file() and (not place_of(str(path)).lists or any(path.glob("*.distcp")))

    def stale(self, path: Path) -> list[Path]:
        """The table, the data that it names, and data of the names that PyTorch gives."""
        named: set[Path] = set()
        with suppress(*_UNSOUND, StorageError):
            named = {path / str(place["relative_path"]) for place in _Table.of(path).places.values()}
        data = sorted(entry for entry in path.glob("*.distcp") if entry in named or _OWN.fullmatch(entry.name))
        return [entry for entry in [path / _TABLE, *data] if entry.is_file()]

    def read_header(self, path: Path) -> Checkpoint:
        """The table, and the little headers of the chunks that are whole tensors."""
        return self._read(path, None)

    def read_part(self, path: Path, prefix: str) -> Checkpoint:
        """Of the tensors of the part alone."""
        return self._read(path, prefix)

    def _read(self, path: Path, prefix: str | None) -> Checkpoint:
        if not path.is_dir():
            raise StorageError("a distributed checkpoint is a directory", where=str(path))
        try:
            names = _chosen(path, _Table.of(path), prefix)
            inside: set[str] = set()
            tensors = {name: _tensor(path, names.table, full, inside) for name, full in names.tensors.items()}
        except _UNSOUND as error:
            raise StorageError(
                "the table of the distributed checkpoint cannot be read",
                where=str(path / _TABLE),
                found=str(error)[:200],
            ) from None
        entries: dict[str, Entry] = {}
        with ExitStack() as stack:
            files: dict[Path, File] = {}
            for name, (spec, chunks) in tensors.items():
                check_cover(path, name, spec, chunks)
                for chunk in chunks:
                    if chunk.path not in files:
                        files[chunk.path] = stack.enter_context(File(chunk.path))
                    files[chunk.path].check_range(chunk.begin, chunk.length)
                if len(chunks) == 1:
                    entries[name] = chunk_entry(files[chunks[0].path], name, spec, chunks[0])
                else:
                    entries[name] = Entry(spec, blocks=blocks_of(name, spec, chunks))
        where = (str(path / _TABLE), *map(str, files))
        return Checkpoint(str(path), self.name, entries, {}, where, left_out=names.left_out)

    def layout(
        self,
        path: Path,
        tensors: Sequence[tuple[str, Spec]],
        *,
        is_directory: bool,
        shard_bytes: int | None,
        metadata: Mapping[str, str],
    ) -> Layout:
        """One data file and the table; there is no place for metadata."""
        laid: list[LaidZip] = []
        ranges: list[tuple[int, int]] = []
        end = 0
        for name, spec in tensors:
            at = -(-end // 64) * 64  # so that the alignment within an archive is one in the file
            laid.append(one := lay_torch(path, [(name, spec)], bare=True, start=at))
            ranges.append((at, one.size))
            end = at + one.size
        table = _table_bytes(path, tensors, ranges)
        places = {name: (0, one.begins[0]) for (name, _), one in zip(tensors, laid, strict=True)}
        files = (
            LaidFile(_DATA, end, tuple(part for one in laid for part in one.fixed), is_revised=True),
            LaidFile(_TABLE, len(table), ((0, table),)),
        )
        checksums = [row for one in laid for row in one.checksums]
        return Layout(files, places, True, lambda root: complete_checksums(root / _DATA, checksums))


# ---------------------------------------------------------------------------------------------------------- reading


class _Table(NamedTuple):
    """What the table says: tensors and others by name, the keys that a name was made of, and where chunks lie."""

    tensors: Mapping[str, Mapping[str, object]]
    others: Mapping[str, str]
    keys: Mapping[object, object]
    places: Mapping[tuple[object, object], Mapping[str, object]]

    @classmethod
    def of(cls, path: Path) -> _Table:
        table = _read_table(path)
        tensors: dict[str, Mapping[str, object]] = {}
        others: dict[str, str] = {}
        for name, item in _table(table["state_dict_metadata"]).items():
            if type(name) is not str:
                raise PickleRefused("a name that is no text")
            kind = str(getattr(getattr(item, "symbol", None), "name", ""))
            fields = _fields(item, kind) if kind == "TensorStorageMetadata" else {}
            dtype = _dtype(fields) if fields else "a pickled value"
            if dtype in BY_NAME:
                tensors[name] = fields
            else:
                others[name] = f"a tensor of {dtype}"[:120] if fields else dtype
        places: dict[tuple[object, object], Mapping[str, object]] = {}
        for index, info in _table(table["storage_data"]).items():
            key = _fields(index, "MetadataIndex")
            places[key["fqn"], key.get("offset")] = _fields(info, "_StorageInfo")
        keys = table.get("planner_data")
        return cls(tensors, others, keys if isinstance(keys, dict) else {}, places)


class _TensorNames(NamedTuple):
    """The tensors that are read: the name of each in the table by its name here."""

    table: _Table
    tensors: Mapping[str, str]
    left_out: tuple[str, ...]


def _chosen(path: Path, table: _Table, prefix: str | None) -> _TensorNames:
    """Which tensors are read. Beside a state dict under a key of its own, anything may lie, as in torch files."""
    inner: dict[str, str] = {}
    if table.others:
        for name in table.tensors:
            keys = table.keys.get(name)
            if type(keys) is tuple and len(keys) == 2 and keys[0] == "state_dict" and type(keys[1]) is str:
                inner[keys[1]] = name
    if prefix is not None:
        for names in (inner, {name: name for name in table.tensors}):
            start = f"{prefix}."
            found = {name[len(start) :]: full for name, full in names.items() if name.startswith(start)}
            if found:
                others = ((name[len(start) :], word) for name, word in table.others.items() if name.startswith(start))
                return _TensorNames(table, found, in_words(others))
        raise no_part(str(path), prefix, table.tensors)
    if not table.tensors:
        words = listing((f"{name} ({word})" for name, word in table.others.items()), 12)
        raise StorageError("the checkpoint holds no tensors", where=str(path), found=words)
    told = in_words(table.others.items())
    if not inner:
        return _TensorNames(table, {name: name for name in table.tensors}, told)
    beside = dict.fromkeys(name.split(".")[0] for name in table.tensors if name not in inner.values())
    if beside:
        told += (f"tensors, read with a part such as #{next(iter(beside))}: {listing(beside, 12)}",)
    return _TensorNames(table, inner, told)


def _read_table(path: Path) -> Mapping[str, object]:
    with File(path / _TABLE) as file:
        if file.size > _MAX_TABLE:
            raise PickleRefused(f"a table of {file.size} bytes")
        # A table says where data lies, of which there is much more; so a long table beside little data is none.
        data = sum(part.stat().st_size for part in path.glob("*.distcp")) if place_of(str(path)).lists else file.size
        allowance = Allowance(min(file.size, data), _MAX_TABLE * 32)
        value, _ = read_pickle(file.at(0, file.size), CALLS, _no_reference, allowance=allowance)
    return _fields(value, "Metadata")


def _no_reference(pid: object) -> object:
    raise PickleRefused("a reference to something outside")


def _fields(value: object, kind: str) -> Mapping[str, object]:
    """What an instance of a class of `torch.distributed.checkpoint` would hold."""
    state = _built(value, kind).state
    return state if isinstance(state, dict) else {}


def _built(value: object, kind: str) -> Built:
    if not isinstance(value, Built) or not isinstance(value.symbol, Symbol) or value.symbol.name != kind:
        raise PickleRefused(f"something else where {kind} is expected")
    return value


def _table(value: object) -> dict[object, object]:
    if not isinstance(value, dict):
        raise PickleRefused(f"{type(value).__name__} where a table is expected")
    return value


def _dtype(fields: Mapping[str, object]) -> str:
    """The name of the dtype of a tensor."""
    state = _built(fields["properties"], "TensorProperties").state
    symbol = state[0] if isinstance(state, tuple) and state else _table(state or {}).get("dtype")
    return symbol.name if isinstance(symbol, Symbol) else f"no dtype: {type(symbol).__name__}"


def _tensor(path: Path, table: _Table, name: str, inside: set[str]) -> tuple[Spec, list[Chunk]]:
    """A tensor of the table, and where it lies; `inside` has the files that are known to lie in the directory."""
    fields = table.tensors[name]
    spec = Spec(_numbers(fields["size"]), BY_NAME[_dtype(fields)])
    if not is_possible(spec.shape, spec.dtype):
        raise PickleRefused(f"an impossible shape of {name!r}")
    chunks = []
    parts = fields["chunks"]
    for part in parts if isinstance(parts, list | tuple) else ():
        block = _fields(part, "ChunkStorageMetadata")
        corner = _numbers(block["offsets"])
        chunks.append(Chunk(corner, _numbers(block["sizes"]), *_place(path, name, table.places[name, corner], inside)))
    return spec, chunks


def _place(path: Path, name: str, place: Mapping[str, object], inside: set[str]) -> tuple[Path, int, int]:
    """The file of a chunk, and its bytes there."""
    relative, begin, length = place["relative_path"], place["offset"], place["length"]
    if place.get("transform_descriptors"):
        raise PickleRefused(f"{name!r} is compressed, which is not supported")
    if type(relative) is not str or type(begin) is not int or type(length) is not int or min(begin, length) < 0:
        raise PickleRefused(f"no sound place of {name!r}")
    if relative not in inside:
        place_of(str(path)).expect([f"{path}/{relative}"])
        check_inside(path / _TABLE, name, relative)
        inside.add(relative)
    return path / relative, begin, length


def _numbers(value: object) -> tuple[int, ...]:
    if type(value) is not tuple or any(type(number) is not int or number < 0 for number in value):
        raise PickleRefused("a shape that is none")
    return value


# ---------------------------------------------------------------------------------------------------------- writing


def _table_bytes(path: Path, tensors: Sequence[tuple[str, Spec]], ranges: Sequence[tuple[int, int]]) -> bytes:
    try:
        import torch
        import torch.distributed.checkpoint.metadata as classes
        from torch.distributed.checkpoint.filesystem import _StorageInfo
    except ImportError:
        raise StorageError(
            "distributed checkpoints need PyTorch to be written",
            where=str(path),
            hint="pip install 'surgery_jax[torch]'",
        ) from None
    contents: dict[str, classes.TensorStorageMetadata | classes.BytesStorageMetadata] = {}
    places: dict[object, object] = {}
    for (name, spec), (begin, length) in zip(tensors, ranges, strict=True):
        corner, shape = torch.Size([0] * len(spec.shape)), torch.Size(spec.shape)
        contents[name] = classes.TensorStorageMetadata(
            classes.TensorProperties(dtype=getattr(torch, spec.dtype.name)),
            shape,
            [classes.ChunkStorageMetadata(corner, shape)],
        )
        places[classes.MetadataIndex(name, corner, 0)] = _StorageInfo(_DATA, begin, length)
    planner = {name: (name,) for name in contents}  # the keys of nested dictionaries: there are none
    table = classes.Metadata(contents, planner, places, classes.StorageMeta())
    return pickle.dumps(table, protocol=4)
