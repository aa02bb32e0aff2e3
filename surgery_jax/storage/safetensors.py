"""The safetensors format: one JSON header, then the bytes of all tensors without gaps.

Headers are checked here and not by the library, because the engine needs positions, all dtypes and good errors; what is
accepted here the library accepts too. Writing pads the header so that the data begins on a page: then the kernel can
share pages between two files instead of copying them.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.dtypes import BY_CODE
from ..core.errors import StorageError, listing, nearest
from ..core.specs import Spec
from .base import Checkpoint, Entry, Extent, Format, LaidFile, Layout
from .choice import check_first
from .files import File, first_bytes, parse_json, paused_gc
from .shards import cut, index_bytes, own_files, read_parts

__all__ = ["SafetensorsFormat"]

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes, as in the library
_METADATA = "__metadata__"
_SHARDING = "DCP_SHARDING_INFO"  # the metadata of files of PyTorch's distributed saves
_VERSION = "DCP_VERSION"
_WHOLE = re.compile(r"model-\d+-of-\d+\.safetensors")  # those that a single process writes
_SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PAGE = 4096
_SMALL = 1 << 20  # files with less data than this are not padded to a page
_MAX_NDIM = 64  # what NumPy can hold


class SafetensorsFormat(Format):
    """Files `*.safetensors`, and directories of them with or without an index."""

    name = "safetensors"
    suffixes = (".safetensors",)
    writes_directories = True
    writes_tensors = True
    takes_shards = True
    folder_rank = 0

    def probe_directory(self, path: Path) -> bool:
        """Whether there is an index or any safetensors file."""
        return (path / INDEX).is_file() or any(_files(path))

    def probe_file(self, path: Path) -> bool:
        """Whether the first bytes are a plausible length and the beginning of an object."""
        head = first_bytes(path, 9)
        return len(head) == 9 and head[8:] in b"{ \t\r\n" and 2 <= struct.unpack("<Q", head[:8])[0] <= MAX_HEADER

    def stale(self, path: Path) -> list[Path]:
        """The index, the files that it names, and those of the names that a checkpoint's own files have."""
        return own_files(path, INDEX, _files(path), _SHARD)

    def read_header(self, path: Path) -> Checkpoint:
        """The headers of a file."""
        return read_parts(path, [path], _read_file, None, self.name)

    def read_file(self, path: Path) -> Checkpoint:
        """The headers of one of several files."""
        return _read_file(path)

    def layout(
        self,
        path: Path,
        tensors: Sequence[tuple[str, Spec]],
        *,
        is_directory: bool,
        shard_bytes: int | None,
        metadata: Mapping[str, str],
    ) -> Layout:
        """One file, a directory of one file, or shards and an index; data in the order of `tensors`."""
        text = dict(sorted(({"format": "pt"} | dict(metadata)).items()))
        if is_directory and shard_bytes is None:
            check_first(path, "model", set(_files(path)).difference(self.stale(path)))
        if not is_directory or shard_bytes is None:
            file, offsets = _lay_file(path, "model.safetensors" if is_directory else "", tensors, text)
            return Layout((file,), {name: (0, offset) for name, offset in offsets.items()}, is_directory)
        shards = cut(tensors, shard_bytes)
        files: list[LaidFile] = []
        places: dict[str, tuple[int, int]] = {}
        for number, shard in enumerate(shards):
            name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
            file, offsets = _lay_file(path, name, shard, text)
            places.update({tensor: (number, offset) for tensor, offset in offsets.items()})
            files.append(file)
        index = index_bytes(
            {name: files[place[0]].name for name, place in places.items()}, sum(spec.nbytes for _, spec in tensors)
        )
        files.append(LaidFile(INDEX, len(index), ((0, index),)))
        return Layout(tuple(files), places, True)


def _files(path: Path) -> list[Path]:
    return sorted(entry for entry in path.glob("*.safetensors") if entry.is_file())


# ---------------------------------------------------------------------------------------------------------- reading


def _read_file(path: Path) -> Checkpoint:
    with paused_gc(), File(path) as file:
        return _parse_file(path, file)


def _parse_file(path: Path, file: File) -> Checkpoint:
    if file.size < 8:
        raise _refusal(path, "the file is too short", "8 bytes of header length", f"{file.size} bytes")
    (length,) = struct.unpack("<Q", file.at(0, 8))
    if length > MAX_HEADER:
        raise _refusal(path, "the header is too long", f"at most {MAX_HEADER} bytes", f"a length of {length}")
    if 8 + length > file.size:
        raise _refusal(path, "the header is cut off", f"{length} bytes", f"{file.size - 8} bytes in the file")
    raw = file.at(8, length) if length <= _most_text(file.size - 8 - length) else b""
    if (problem := _excess(length, raw, file.size - 8 - length)) is not None:
        raise _refusal(path, *problem)
    table = parse_json(raw, path, "the header")
    if not isinstance(table, dict):
        raise _refusal(path, "the header is not a JSON object", "{...}", type(table).__name__)
    if b"\\u" in raw:  # only escapes can make halves of surrogate pairs, which are no text
        _check_text(path, table)
    metadata = table.pop(_METADATA, None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refusal(path, f"{_METADATA} is not a table of texts", '{"key": "text"}', repr(metadata)[:80])
    if _SHARDING in metadata:
        _check_not_a_part(path, table, metadata)
        metadata = {key: text for key, text in metadata.items() if key not in (_SHARDING, _VERSION)}  # of that file
    rows = _rows(path, table)
    end = 0
    data, where = 8 + length, str(path)
    entries: dict[str, Entry] = {}
    for begin, stop, name, spec in rows:
        if begin != end:
            kind = "overlap" if begin < end else "leave a hole"
            raise _refusal(path, f"the bytes of tensors {kind} before {name!r}", f"begin {end}", f"begin {begin}")
        entries[name] = Entry(spec, Extent(where, data + begin))
        end = stop
    if data + end != file.size:
        kind = "the file is cut off" if data + end > file.size else "there are bytes after the last tensor"
        raise _refusal(path, kind, f"a file of {data + end} bytes", f"{file.size} bytes")
    return Checkpoint(where, SafetensorsFormat.name, entries, metadata, (where,))


def _check_not_a_part(path: Path, table: Mapping[str, object], metadata: Mapping[str, str]) -> None:
    """PyTorch's distributed saves to safetensors write a file per rank, with its part of every tensor under the whole
    tensor's name. Nothing in the file of the first rank tells it from a whole checkpoint, but for its name.

    Raises:
        StorageError: it is such a file, or may be one.
    """
    told = parse_json(metadata[_SHARDING].encode(), path, f"the metadata {_SHARDING!r}")
    rows = told if isinstance(told, dict) else {}
    parts = [name for name in table if not _begins_at_zero(rows.get(name))]
    if not parts and _WHOLE.fullmatch(path.name):
        return
    is_part = bool(parts) or path.name.startswith("shard-")
    rename = "" if is_part else "if it is whole, name it model-00001-of-00001.safetensors, as its writer does; else "
    raise StorageError(
        f"the file {'holds' if is_part else 'may hold'} one rank's part of a distributed checkpoint",
        where=str(path),
        expected="whole tensors",
        found=f"parts of {listing(parts or table)}",
        hint=f"{rename}put the parts together with consolidate_safetensors_files of torch.distributed.checkpoint, "
        "or save again with HuggingFaceStorageWriter(enable_consolidation=True)",
    )


def _begins_at_zero(row: object) -> bool:
    """Whether a tensor, by what is told of it, is not the second or a later part of one."""
    begins = row.get("saved_offsets") if isinstance(row, dict) else []
    return isinstance(begins, list) and not any(begins)


def _most_text(data: int) -> int:
    """How many bytes of header there may be above so many bytes of data: read, they take many times their length."""
    return (32 << 20) + data


def _excess(length: int, text: bytes, data: int) -> tuple[str, str, str] | None:
    """Why a header is too much for the data that it describes: (problem, expected, found); None if it is not."""
    if length > (most := _most_text(data)):
        return "the header is too long for so little data", f"at most {most} bytes", f"{length} bytes"
    values, most = sum(text.count(mark) for mark in b":,"), 2_000_000 + data // 256
    if values > most:
        return "the header holds too much for so little data", f"at most {most} values", f"{values}"
    return None


def _rows(path: Path, table: Mapping[str, object]) -> list[tuple[int, int, str, Spec]]:
    """(begin, end, name, spec) of every tensor in data order."""
    rows: list[tuple[int, int, str, Spec]] = []
    specs: dict[tuple[str, tuple[int, ...]], tuple[Spec, int]] = {}  # few are distinct: a layer repeats
    for name, item in table.items():
        try:
            if not isinstance(item, dict):
                raise TypeError
            code, shape, (begin, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
            sizes = (begin, end, *shape)
            known = specs.get((code, shape))
        except (KeyError, TypeError, ValueError):
            raise _refusal(path, f"the entry of {name!r} is not complete", _ENTRY, repr(item)[:120]) from None
        for size in sizes:  # a bool is an int to Python, and True equals 1 in the table of specs
            if type(size) is not int or size < 0:
                raise _refusal(path, f"a size of {name!r} is not a whole number of 0 or more", _ENTRY, repr(size)[:80])
        if known is None:
            if type(item["shape"]) is not list or type(item["data_offsets"]) is not list:
                raise _refusal(path, f"the entry of {name!r} is not complete", _ENTRY, repr(item)[:120])
            known = specs[code, shape] = _spec(path, name, code, shape)
        spec, nbytes = known
        if end - begin != nbytes:
            problem = f"the bytes of {name!r} do not fit its shape"
            raise _refusal(path, problem, f"{nbytes} for {spec}", f"{end - begin}")
        rows.append((begin, end, name, spec))
    rows.sort(key=_by_offsets)
    return rows


_ENTRY = '{"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}'


def _by_offsets(row: tuple[int, int, str, Spec]) -> tuple[int, int]:
    return row[0], row[1]  # stable: empty tensors of one place stay in the order of the header


def _spec(path: Path, name: str, code: object, shape: tuple[int, ...]) -> tuple[Spec, int]:
    dtype = BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        near = nearest(code, BY_CODE) if isinstance(code, str) else []
        raise _refusal(path, f"the dtype of {name!r} is not known", " ".join(near or BY_CODE), repr(code)[:80])
    if len(shape) > _MAX_NDIM:
        raise _refusal(path, f"{name!r} has too many axes", f"at most {_MAX_NDIM}", str(len(shape)))
    # An empty tensor says nothing through its bytes: without this bound its other axes could be anything.
    if math.prod(filter(None, shape)) * dtype.bits >= 1 << 63:
        raise _refusal(path, f"the shape of {name!r} is too large", "fewer than 2^63 bits", f"axes {list(shape)}"[:120])
    spec = Spec(shape, dtype)
    if spec.size * dtype.bits % 8:
        raise _refusal(path, f"{name!r} does not end on a whole byte", f"a multiple of 8 bits for {spec}", "a rest")
    return spec, spec.nbytes


def _check_text(path: Path, table: Mapping[str, object]) -> None:
    metadata = table.get(_METADATA)
    texts = [*table, *(metadata.items() if isinstance(metadata, dict) else ())]
    for text in texts:
        try:
            str(text).encode() if isinstance(text, str) else [str(part).encode() for part in text]
        except UnicodeEncodeError:
            raise _refusal(path, "a name is not valid text", "whole Unicode characters", ascii(text)[:120]) from None


def _refusal(path: Path, problem: str, expected: str, found: str) -> StorageError:
    return StorageError(f"not a valid safetensors file: {problem}", where=str(path), expected=expected, found=found)


# ---------------------------------------------------------------------------------------------------------- writing


def _lay_file(
    path: Path, name: str, tensors: Sequence[tuple[str, Spec]], metadata: Mapping[str, str]
) -> tuple[LaidFile, dict[str, int]]:
    """One file, and where in it the bytes of each tensor begin."""
    table: dict[str, object] = {_METADATA: metadata}
    begins: dict[str, int] = {}
    end = 0
    for tensor, spec in tensors:
        if tensor == _METADATA:
            raise StorageError(f"a tensor cannot be named {_METADATA!r} in a safetensors file", where=str(path))
        if spec.size * spec.dtype.bits % 8:
            raise StorageError(f"{tensor!r} does not end on a whole byte", where=str(path), found=str(spec))
        begins[tensor] = end
        end += spec.nbytes
        table[tensor] = {"dtype": spec.dtype.code, "shape": spec.shape, "data_offsets": (begins[tensor], end)}
    try:
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise StorageError("a name is not valid text", where=str(path), found=ascii(error.object)[:120]) from None
    data = -(-(8 + len(text)) // (step := 8 if end < _SMALL else _PAGE)) * step
    if data - 8 > MAX_HEADER:
        raise StorageError(
            "the header would be too long for safetensors",
            where=str(path),
            expected=f"at most {MAX_HEADER} bytes",
            found=f"{data - 8} bytes for {len(tensors)} tensors",
            hint="write shards: set 'shard' to a smaller size",
        )
    if (problem := _excess(data - 8, text, end)) is not None:
        raise StorageError(
            problem[0],
            where=str(path),
            expected=problem[1],
            found=f"{problem[2]}, {len(tensors)} tensors",
            hint="write shards: set 'shard' to a smaller size",
        )
    header = struct.pack("<Q", data - 8) + text.ljust(data - 8)
    return LaidFile(name, data + end, ((0, header),)), {tensor: data + begin for tensor, begin in begins.items()}
