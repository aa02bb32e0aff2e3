"""Zarr arrays of versions 2 and 3, as Orbax stores them: their metadata, and where the bytes of an array lie.

Metadata is read here and not by TensorStore, because the engine needs positions, good errors and bounds; what is
accepted here TensorStore accepts too. Chunks that are stored as they are become ranges of files, if each is a range of
the packed tensor; all others are decoded by TensorStore.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core.dtypes import BY_NAME, DTYPES, DType
from ...core.errors import StorageError, listing
from ...core.specs import Spec
from ..base import Blocks, Entry, Extent
from ..files import File, parse_json
from ..leftovers import foreign_dtype

if TYPE_CHECKING:
    import numpy

__all__ = [
    "METADATA",
    "UnknownDtype",
    "ZarrArray",
    "chunk_of",
    "chunks",
    "describe",
    "encode_bytes",
    "encode_chunk",
    "entry_of",
    "parse_array",
]

METADATA = (".zarray", "zarr.json")  # the names of the files that describe an array, of version 2 and 3
MAX_METADATA = 1 << 20  # bytes of one of them
_MAX_NDIM = 32  # what TensorStore can hold
_KINDS = {"f": "f", "i": "i", "u": "u", "c": "c", "b": "b"}  # of our table to those of NumPy's type strings
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_INDEX = struct.Struct("<QQ")  # of a shard: where its only chunk lies

# What stands for the keys of an array below its directory: file and size; None where it cannot be told
Places = Mapping[str, tuple[str, int] | None]


class UnknownDtype(ValueError):
    """An array of elements that there are, but not here."""


class ZarrArray(NamedTuple):
    """What the metadata of an array says. `grid` is the number of chunks along each axis, and `read_chunk` what can be
    decoded by itself. `packing` is `raw` for chunks stored as they are, `shard` for those with an index behind, and
    empty for what must be decoded."""

    spec: Spec
    version: int
    chunk: tuple[int, ...]
    read_chunk: tuple[int, ...]
    grid: tuple[int, ...]
    packing: str
    index_bytes: int
    prefix: str
    separator: str

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole array; the product of an untrusted shape, so nothing may be listed by it alone."""
        return math.prod(self.grid)

    def keys(self) -> Iterator[str]:
        """The key of every chunk in row-major order."""
        for index in product(*map(range, self.grid)):
            words = [self.prefix] if self.prefix else []
            yield self.separator.join([*words, *map(str, index)]) or "0"


def _v2_dtype(dtype: DType) -> str:
    """How version 2 spells a dtype."""
    if dtype.numpy.isbuiltin != 1:
        return dtype.name
    return ("|" if dtype.bits == 8 else "<") + _KINDS[dtype.kind] + str(dtype.itemsize)


def parse_array(raw: bytes, version: int, where: Path) -> ZarrArray:
    """The array that a metadata file describes; `where` names it in errors.

    Raises:
        StorageError: it is not valid, or says something that is not supported.
        UnknownDtype: all but the dtype of its elements is known here; the text of the error is its name.
    """
    if len(raw) > MAX_METADATA:
        raise _refusal(where, "it is too long", f"at most {MAX_METADATA} bytes", f"{len(raw)} bytes")
    table = parse_json(raw, where, "the description of the array")
    try:
        if not isinstance(table, dict) or table["zarr_format"] != version:
            raise ValueError(f"zarr_format {version} is expected")
        return (_parse_v2 if version == 2 else _parse_v3)(table)
    except UnknownDtype:
        raise
    except KeyError as error:
        raise _refusal(where, "it is not complete", f"the key {error}", listing(map(str, table))) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise _refusal(where, "it is not understood", "an array of a known kind", str(error)[:200]) from None


def _refusal(where: Path, problem: str, expected: str, found: str) -> StorageError:
    return StorageError(f"not a valid zarr array: {problem}", where=str(where), expected=expected, found=found)


def _parse_v2(table: Mapping[str, Any]) -> ZarrArray:
    dtype, is_little = _dtype_v2(table["dtype"])
    spec, chunk, grid = _geometry(table["shape"], table["chunks"], dtype)
    is_plain = table.get("compressor") is None and not table.get("filters")
    is_row_major = table.get("order", "C") == "C" or sum(length > 1 for length in chunk) <= 1
    separator = table.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise ValueError(f"dimension_separator {separator!r}")
    packing = "raw" if is_plain and is_row_major and is_little else ""
    return ZarrArray(spec, 2, chunk, chunk, grid, packing, 0, "", separator)


def _dtype_v2(word: Any) -> tuple[DType, bool]:
    if not isinstance(word, str):
        raise ValueError(f"dtype {word!r}")
    if word in BY_NAME and BY_NAME[word].name == word and BY_NAME[word].array:
        return BY_NAME[word], True
    for dtype in DTYPES:
        if dtype.array and dtype.numpy.isbuiltin == 1 and _v2_dtype(dtype)[1:] == word[1:]:
            return dtype, word[0] in "<|"
    raise _unknown(word)


def _unknown(word: str) -> ValueError:
    """The error for a dtype of which there are no tensors here: others may have it, or nobody."""
    name = foreign_dtype(word)
    return ValueError(f"dtype {word[:80]!r} is not known") if name is None else UnknownDtype(name)


def _parse_v3(table: Mapping[str, Any]) -> ZarrArray:
    if table.get("node_type") != "array" or table["chunk_grid"]["name"] != "regular":
        raise ValueError("only arrays of regular chunks are supported")
    word = table["data_type"]
    if not isinstance(word, str):
        raise ValueError(f"data_type {word!r}")
    dtype = BY_NAME.get(word)
    if dtype is None or dtype.name != word or not dtype.array:
        raise _unknown(word)
    spec, chunk, grid = _geometry(table["shape"], table["chunk_grid"]["configuration"]["chunk_shape"], dtype)
    encoding = table["chunk_key_encoding"]
    if encoding["name"] not in ("default", "v2"):
        raise ValueError(f"chunk_key_encoding {encoding['name']!r}")
    prefix, separator = ("c", "/") if encoding["name"] == "default" else ("", ".")
    separator = encoding.get("configuration", {}).get("separator", separator)
    if separator not in (".", "/"):
        raise ValueError(f"separator {separator!r}")
    read_chunk, packing, index_bytes = chunk, "", 0
    codecs = table["codecs"]
    if _is_little(codecs, dtype):
        packing = "raw"
    elif len(codecs) == 1 and codecs[0].get("name") == "sharding_indexed":
        inner = codecs[0]["configuration"]
        _, read_chunk, _ = _geometry(table["shape"], inner["chunk_shape"], dtype)
        index = inner["index_codecs"]
        is_plain = _is_little(inner["codecs"], dtype) and inner.get("index_location", "end") == "end"
        if is_plain and read_chunk == chunk and index[:1] == [_LITTLE]:
            checks = [codec.get("name") for codec in index[1:]]
            if checks in ([], ["crc32c"]):
                packing, index_bytes = "shard", _INDEX.size + 4 * len(checks)
    return ZarrArray(spec, 3, chunk, read_chunk, grid, packing, index_bytes, prefix, separator)


def _is_little(codecs: Any, dtype: DType) -> bool:
    return codecs == [_LITTLE] or (dtype.bits == 8 and codecs == [{"name": "bytes"}])


def _geometry(shape: Any, chunk: Any, dtype: DType) -> tuple[Spec, tuple[int, ...], tuple[int, ...]]:
    for row, least in ((shape, 0), (chunk, 1)):
        if type(row) is not list or any(type(length) is not int or length < least for length in row):
            raise ValueError(f"shape {row!r}")
    if len(shape) != len(chunk) or len(shape) > _MAX_NDIM:
        raise ValueError(f"chunks {chunk!r} of shape {shape!r}")
    if max(math.prod(filter(None, shape)), math.prod(chunk)) * dtype.bits >= 1 << 63:
        raise ValueError(f"the shape {shape!r} is too large")
    grid = tuple(-(-length // step) for length, step in zip(shape, chunk, strict=True))
    return Spec(tuple(shape), dtype), tuple(chunk), grid


# ---------------------------------------------------------------------------------------------------------- entries


def _leading_axis(shape: Sequence[int], chunk: Sequence[int]) -> int:
    """The axis along which chunks follow one another in the packed tensor: the first one of which a chunk has more
    than one element. 0 for scalars."""
    axes = (axis for axis, (length, step) in enumerate(zip(shape, chunk, strict=True)) if min(length, step) > 1)
    return next(axes, max(len(shape) - 1, 0))


def entry_of(
    array: ZarrArray, places: Places, has_holes: bool, open_array: Callable[[bool], Any], where: Path
) -> Entry:
    """How the bytes of an array are read.

    `places` are all keys below the array's directory but its metadata. With `has_holes` missing chunks are full of the
    fill value, else they are an error. `open_array(has_holes)` gives the array of TensorStore.

    Raises:
        StorageError: the chunks are not those of the shape, or have another length.
    """
    is_whole = len(places) == array.num_chunks and all(key in places for key in array.keys())
    if not is_whole:
        _check_keys(array, places, has_holes, where)
    runs = _runs(array, places, where) if is_whole and array.packing else None
    if runs is not None:
        return Entry(array.spec, _extent(runs))
    shape = array.spec.shape
    axis = _leading_axis(shape, array.read_chunk)
    inner = math.prod(shape[axis + 1 :])
    length, period = (
        (min(array.read_chunk[axis], shape[axis]) * inner, shape[axis] * inner) if array.spec.size and shape else (1, 1)
    )
    # what is decoded lies in memory compressed, as chunks, and put together
    return Entry(array.spec, blocks=Blocks(length, period, partial(_read, array, open_array, is_whole, where), 3))


def _extent(runs: Sequence[tuple[str, int, int]]) -> Extent:
    begins = accumulate((nbytes for _, _, nbytes in runs), initial=0)
    rest = [(begin, path, offset) for begin, (path, offset, _) in zip(begins, runs, strict=False)]
    return Extent(*runs[0][:2], tuple(rest[1:]))


def _check_keys(array: ZarrArray, places: Places, has_holes: bool, where: Path) -> None:
    """Errors about chunks that are missing or do not belong to the array."""
    if len(places) <= array.num_chunks <= max(1 << 20, 2 * len(places)):
        wanted = set(array.keys())
        if has_holes and wanted.issuperset(places):
            return
        missing, other = sorted(wanted - places.keys()), sorted(places.keys() - wanted)
    else:
        missing, other = [], []
    raise StorageError(
        "the chunks of an array are not those of its shape",
        where=str(where),
        expected=f"{array.num_chunks} chunks of {list(array.chunk)} for {array.spec}",
        found=f"{len(places)} chunks"
        + (f"; missing {listing(missing)}" if missing else "")
        + (f"; not of this shape {listing(other)}" if other else ""),
        hint="the checkpoint is damaged or incomplete: fetch it again",
    )


def _runs(array: ZarrArray, places: Places, where: Path) -> list[tuple[str, int, int]] | None:
    """The ranges of files that are the packed tensor, None if it must be put together."""
    shape, dtype = array.spec.shape, array.spec.dtype
    axis = _leading_axis(shape, array.chunk)
    if any(step < length for length, step in zip(shape[axis + 1 :], array.chunk[axis + 1 :], strict=True)):
        return None
    if any(step > length for length, step in zip(shape[axis + 1 :], array.chunk[axis + 1 :], strict=True)):
        return None  # a chunk that is wider than the tensor has gaps
    if any(step > 1 for step in array.chunk[:axis]):
        return None
    stored = math.prod(array.chunk) * dtype.itemsize
    inner = math.prod(shape[axis + 1 :]) * dtype.itemsize
    runs = []
    for number, key in enumerate(array.keys()):
        place = places[key]
        if place is None:
            return None
        path, size = place
        _check_length(where, path, stored + array.index_bytes, size)
        begin = _shard_begin(array, path, size, stored) if array.packing == "shard" else 0
        if begin is None:
            return None
        nbytes = stored
        if shape:
            at = number % array.grid[axis] * array.chunk[axis]
            nbytes = min(array.chunk[axis], shape[axis] - at) * inner
        runs.append((path, begin, nbytes))
    return runs if runs else None


def _check_length(where: Path, path: str, expected: int, found: int) -> None:
    if expected != found:
        raise StorageError(
            "a chunk has not the length that its array says",
            where=path,
            expected=f"{expected} bytes, by {where}",
            found=f"{found} bytes",
        )


def _shard_begin(array: ZarrArray, path: str, size: int, stored: int) -> int | None:
    """Where the only chunk of a shard lies in it; None if there is none, which means the fill value."""
    with File(Path(path)) as file:
        begin, length = _INDEX.unpack(file.at(size - array.index_bytes, _INDEX.size))
    if begin == length == (1 << 64) - 1:
        return None
    if length != stored or begin + length > size - array.index_bytes:
        raise StorageError(
            "the index of a shard is not true",
            where=path,
            expected=f"{stored} bytes before the index",
            found=f"{length} bytes at {begin} of {size}",
        )
    return int(begin)


def _read(
    array: ZarrArray,
    open_array: Callable[[bool], Any],
    is_whole: bool,
    where: Path,
    first: int,
    count: int,
) -> numpy.ndarray[Any, Any]:
    """Consecutive elements of one block, or all."""
    shape, dtype = array.spec.shape, array.spec.dtype
    index: tuple[Any, ...] = ()
    if shape and count != array.spec.size:
        axis = _leading_axis(shape, array.read_chunk)
        inner = math.prod(shape[axis + 1 :])
        row, rows = first // inner, count // inner
        begin, outer = row % shape[axis], row // shape[axis]
        for length in reversed(shape[:axis]):
            index = (outer % length, *index)
            outer //= length
        index = (*index, slice(begin, begin + rows))
    try:
        stored = open_array(not is_whole)
        if tuple(stored.shape) != shape or stored.dtype.numpy_dtype != dtype.numpy:
            raise ValueError(f"it changed to {stored.dtype.name}{list(stored.shape)}")
        found: numpy.ndarray[Any, Any] = stored[index].read().result()
    except StorageError:
        raise
    except Exception as error:  # of TensorStore, which raises ValueError and OSError for whatever is wrong
        raise StorageError("an array cannot be read", where=str(where), found=str(error).split(" [")[0][:300]) from None
    return found


# ---------------------------------------------------------------------------------------------------------- writing

_SPREAD = 8  # a large tensor is cut into a multiple of so many chunks, for loading onto as many devices
_LARGE = 8 << 20  # bytes of a tensor that is


def chunk_of(spec: Spec, limit: int | None) -> tuple[int, ...]:
    """The shape of the chunks of a tensor: equal parts of its leading axis of at most `limit` bytes.

    Large tensors are cut into a multiple of 8 if their axis allows it. Where no divisor is near, the last chunk is
    shorter.
    """
    shape = tuple(max(length, 1) for length in spec.shape)
    if limit is None or not spec.size or not shape:
        return shape
    axis = _leading_axis(shape, shape)
    length = shape[axis]
    least = max(-(-spec.nbytes // limit), _SPREAD if spec.nbytes >= _LARGE else 1)
    near = range(least, min(4 * least, length) + 1)
    divisors = [count for count in near if length % count == 0]
    spread = [count for count in divisors if count % _SPREAD == 0]
    count = min((spread if least >= _SPREAD and spread else divisors) or [min(least, length)])
    return (*shape[:axis], -(-length // count), *shape[axis + 1 :])


def chunks(spec: Spec, chunk: tuple[int, ...]) -> Iterator[tuple[int, str, int]]:
    """(first byte of the tensor in it, key, bytes) of every chunk that `chunk_of` makes, in order."""
    if not spec.size:
        return
    axis = _leading_axis(spec.shape, spec.shape) if spec.shape else 0
    size = math.prod(chunk) * spec.dtype.itemsize
    count = -(-spec.shape[axis] // chunk[axis]) if spec.shape else 1
    zeros = ["0"] * len(spec.shape)
    for number in range(count):
        key = ".".join([*zeros[:axis], str(number), *zeros[axis + 1 :]])
        yield number * size, key, size


def describe(spec: Spec, chunk: tuple[int, ...], compressor: Mapping[str, Any] | None) -> bytes:
    """The metadata of an array of version 2."""
    table = {
        "chunks": chunk,
        "compressor": compressor,
        "dimension_separator": ".",
        "dtype": _v2_dtype(spec.dtype),
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": spec.shape,
        "zarr_format": 2,
    }
    return json.dumps(table, separators=(",", ":")).encode()


def encode_bytes(whole: int, size: int) -> int:
    """Memory that `encode_chunk` takes for `size` bytes of a chunk of `whole` bytes, result included, by measurement:
    one that is not full is filled up; TensorStore copies it, and holds what it becomes twice, which is as long as
    before if it cannot be compressed."""
    return (3 if size == whole else 4) * whole + whole // 32 + (2 << 20)


def encode_chunk(described: bytes, chunk: tuple[int, ...], data: numpy.ndarray[Any, Any]) -> bytes:
    """What the file of a chunk holds for its packed bytes, as TensorStore encodes them; the last one may have less."""
    import numpy as np
    import tensorstore

    metadata = {**json.loads(described), "shape": chunk}
    spec = {"driver": "zarr", "kvstore": {"driver": "memory"}, "metadata": metadata}
    array = tensorstore.open(spec, context=tensorstore.Context(), create=True).result()
    elements = data.view(array.dtype.numpy_dtype)
    if elements.size < math.prod(chunk):
        elements = np.concatenate([elements, np.zeros(math.prod(chunk) - elements.size, elements.dtype)])
    array.write(elements.reshape(chunk)).result()
    key = ".".join(["0"] * len(chunk)) or "0"
    store = array.kvstore
    assert store is not None
    return bytes(store.read(key).result().value)
