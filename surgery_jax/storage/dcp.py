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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.dtypes import BY_NAME
from ..core.errors import StorageError, listing
from ..core.specs import Spec
from .base import Blocks, Checkpoint, Entry, Format, LaidFile, Layout
from .files import File
from .pickles import Built, PickleRefused, Symbol, read_pickle
from .shards import check_inside
from .torch_files import lay_torch
from .torch_tensors import CALLS, Tensor, entry_of, read_archive
from .zips import LaidZip, complete_checksums

if TYPE_CHECKING:
    import numpy

__all__ = ["DcpFormat"]

_TABLE = ".metadata"
_DATA = "__0_0.distcp"
_OWN = re.compile(r"__\d+_\d+\.distcp")
_UNSOUND = (PickleRefused, KeyError, TypeError, AttributeError, ValueError)  # what a table that is none raises
_MAX_TABLE = 1 << 30


class Chunk(NamedTuple):
    """A block of a tensor: its corner and shape, and the range of the file that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    begin: int
    length: int


class DcpFormat(Format):
    """Directories with `.metadata` and `*.distcp`."""

    name = "dcp"
    writes_files = False
    writes_directories = True
    owns_directories = True

    def probe_directory(self, path: Path) -> bool:
        """Whether there are the table and any data."""
        return (path / _TABLE).is_file() and any(path.glob("*.distcp"))

    def stale(self, path: Path) -> list[Path]:
        """The table, the data that it names, and data of the names that PyTorch gives."""
        named: set[Path] = set()
        with suppress(*_UNSOUND, StorageError):
            named = {
                chunk.path for _, chunks in _tensors(path, _read_table(path / _TABLE)).values() for chunk in chunks
            }
        data = sorted(entry for entry in path.glob("*.distcp") if entry in named or _OWN.fullmatch(entry.name))
        return [entry for entry in [path / _TABLE, *data] if entry.is_file()]

    def read_header(self, path: Path) -> Checkpoint:
        """The table, and the little headers of the chunks that are whole tensors."""
        if not path.is_dir():
            raise StorageError("a distributed checkpoint is a directory", where=str(path))
        try:
            tensors = _tensors(path, _read_table(path / _TABLE))
        except _UNSOUND as error:
            raise StorageError(
                "the table of the distributed checkpoint cannot be read", where=str(path / _TABLE), found=str(error)
            ) from None
        if not tensors:
            raise StorageError("the checkpoint holds no tensors", where=str(path))
        entries: dict[str, Entry] = {}
        with ExitStack() as stack:
            files: dict[Path, File] = {}
            for name, (spec, chunks) in tensors.items():
                _check_cover(path, name, spec, chunks)
                for chunk in chunks:
                    if chunk.path not in files:
                        files[chunk.path] = stack.enter_context(File(chunk.path))
                    files[chunk.path].check_range(chunk.begin, chunk.length)
                if len(chunks) == 1:
                    entries[name] = _chunk_entry(files[chunks[0].path], name, spec, chunks[0])
                else:
                    entries[name] = Entry(spec, blocks=Blocks.whole(spec, partial(_assemble, name, spec, chunks)))
        return Checkpoint(str(path), self.name, entries, {}, (str(path / _TABLE), *map(str, files)))

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
            LaidFile(_DATA, end, tuple(part for one in laid for part in one.fixed)),
            LaidFile(_TABLE, len(table), ((0, table),)),
        )
        checksums = [row for one in laid for row in one.checksums]
        return Layout(files, places, True, lambda root: complete_checksums(root / _DATA, checksums))


# ---------------------------------------------------------------------------------------------------------- reading


def _read_table(path: Path) -> Mapping[str, Any]:
    with File(path) as file:
        if file.size > _MAX_TABLE:
            raise PickleRefused(f"a table of {file.size} bytes")
        value, _ = read_pickle(file.at(0, file.size), CALLS, _no_reference)
    return _fields(value, "Metadata")


def _no_reference(pid: Any) -> Any:
    raise PickleRefused("a reference to something outside")


def _fields(value: Any, kind: str) -> Mapping[str, Any]:
    """What an instance of a class of `torch.distributed.checkpoint` would hold."""
    if not isinstance(value, Built) or not isinstance(value.symbol, Symbol) or value.symbol.name != kind:
        raise PickleRefused(f"something else where {kind} is expected")
    return value.state if isinstance(value.state, dict) else {}


def _tensors(path: Path, table: Mapping[str, Any]) -> dict[str, tuple[Spec, list[Chunk]]]:
    places: dict[tuple[str, tuple[int, ...] | None], tuple[Path, int, int]] = {}
    checked: dict[str, Path] = {}
    for index, info in table["storage_data"].items():
        key, place = _fields(index, "MetadataIndex"), _fields(info, "_StorageInfo")
        relative, begin, length = place["relative_path"], place["offset"], place["length"]
        if place.get("transform_descriptors"):
            raise PickleRefused(f"{key['fqn']!r} is compressed, which is not supported")
        if type(relative) is not str or type(begin) is not int or type(length) is not int or min(begin, length) < 0:
            raise PickleRefused(f"no sound place of {key['fqn']!r}")
        if relative not in checked:
            check_inside(path / _TABLE, key["fqn"], relative)
            checked[relative] = path / relative
        corner = key.get("offset")
        places[key["fqn"], None if corner is None else _numbers(corner)] = (checked[relative], begin, length)
    found: dict[str, tuple[Spec, list[Chunk]]] = {}
    others: list[str] = []
    for name, item in table["state_dict_metadata"].items():
        if type(name) is not str:
            raise PickleRefused("a name that is no text")
        if isinstance(item, Built) and str(getattr(item.symbol, "name", "")) == "BytesStorageMetadata":
            others.append(name)
            continue
        fields = _fields(item, "TensorStorageMetadata")
        chunks = []
        for part in fields["chunks"]:
            block = _fields(part, "ChunkStorageMetadata")
            corner = _numbers(block["offsets"])
            chunks.append(Chunk(corner, _numbers(block["sizes"]), *places[name, corner]))
        found[name] = _spec(name, fields), chunks
    return _without_others(path, found, others, table.get("planner_data")) if others else found


def _numbers(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or any(type(number) is not int or number < 0 for number in value):
        raise PickleRefused("a shape that is none")
    return value


def _spec(name: str, fields: Mapping[str, Any]) -> Spec:
    properties = fields["properties"]
    _fields(properties, "TensorProperties")
    state = properties.state
    symbol = state[0] if isinstance(state, tuple) and state else (state or {}).get("dtype")
    dtype = BY_NAME.get(symbol.name) if isinstance(symbol, Symbol) else None
    if dtype is None:
        raise PickleRefused(f"{name!r} has the dtype {symbol}, which is not supported")
    return Spec(_numbers(fields["size"]), dtype)


def _without_others(
    path: Path, found: Mapping[str, tuple[Spec, list[Chunk]]], others: Sequence[str], keys: Any
) -> dict[str, tuple[Spec, list[Chunk]]]:
    """As in torch files: beside a state dict under a key of its own, anything may lie."""
    keys = keys if isinstance(keys, dict) else {}
    inner = {
        keys[name][1]: item
        for name, item in found.items()
        if type(keys.get(name)) is tuple and len(keys[name]) == 2 and keys[name][0] == "state_dict"
    }
    if not inner or not all(type(name) is str for name in inner):
        raise StorageError(
            f"the value of {others[0]!r} is no tensor",
            where=str(path),
            expected="tensors only, or tensors under the key 'state_dict'",
            found=f"other values: {listing(others)}",
        )
    return inner


def _check_cover(path: Path, name: str, spec: Spec, chunks: Sequence[Chunk]) -> None:
    """The chunks must fill the tensor: enough elements, each chunk inside, no two at one place."""
    is_inside = all(
        len(chunk.offsets) == len(chunk.sizes) == len(spec.shape)
        and all(corner + size <= n for corner, size, n in zip(chunk.offsets, chunk.sizes, spec.shape, strict=True))
        for chunk in chunks
    )
    count = sum(Spec(chunk.sizes, spec.dtype).size for chunk in chunks)
    if not is_inside or count != spec.size or (not chunks and spec.size) or _overlap(chunks):
        raise StorageError(
            f"the chunks of {name!r} do not make up the tensor",
            where=str(path),
            expected=f"{spec.size} elements of {spec}",
            found=f"{len(chunks)} chunks of {count} elements",
        )


def _overlap(chunks: Sequence[Chunk]) -> bool:
    """Whether two chunks share an element. Sorted by corner, few pairs have rows in common."""
    solid = sorted(chunk for chunk in chunks if all(chunk.sizes))
    for number, one in enumerate(solid):
        for other in solid[number + 1 :]:
            if one.offsets and other.offsets[0] >= one.offsets[0] + one.sizes[0]:
                break
            if all(a < b + m and b < a + n for a, n, b, m in zip(*one[:2], *other[:2], strict=True)):
                return True
    return False


def _chunk_entry(file: File, name: str, spec: Spec, chunk: Chunk) -> Entry:
    tensor = read_archive(file, chunk.begin, chunk.length)
    if not isinstance(tensor, Tensor):
        raise StorageError(f"the chunk of {name!r} is no tensor", where=str(file.path))
    entry = entry_of(tensor, repr(name))
    expected = Spec(chunk.sizes, spec.dtype)
    if entry.spec != expected:
        raise StorageError(
            f"a chunk of {name!r} is not what the table says",
            where=str(file.path),
            expected=str(expected),
            found=str(entry.spec),
        )
    return entry


def _assemble(name: str, spec: Spec, chunks: Sequence[Chunk]) -> numpy.ndarray[Any, Any]:
    import numpy as np

    whole: numpy.ndarray[Any, Any] = np.empty(spec.shape, spec.dtype.numpy)
    for chunk in chunks:
        with File(chunk.path) as file:
            entry = _chunk_entry(file, name, spec, chunk)
            if entry.extent is not None:
                data = file.at(entry.extent.offset, entry.spec.nbytes)
                block = np.frombuffer(data, spec.dtype.numpy).reshape(chunk.sizes)
            else:
                block = entry.read()
        ranges = zip(chunk.offsets, chunk.sizes, strict=True)
        whole[tuple(slice(corner, corner + size) for corner, size in ranges)] = block
    return whole


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
    contents: dict[str, Any] = {}
    places: dict[Any, Any] = {}
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
