"""Zarr arrays of versions 2 and 3, as Orbax stores them: their metadata, and the index of a shard.

It is read here and not by TensorStore, because the engine needs positions, good errors and bounds; what is accepted
here TensorStore accepts too.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple

from ...core.dtypes import BY_NAME, DTYPES, DType
from ...core.errors import StorageError, listing
from ...core.specs import Spec
from ...core.strict_json import at
from ..files import parse_json
from ..leftovers import foreign_dtype
from .checksums import crc32c

__all__ = [
    "INDEX",
    "METADATA",
    "UnknownDtype",
    "ZarrArray",
    "chunk_key",
    "describe",
    "described_chunk",
    "indexed",
    "leading_axis",
    "parse_array",
    "read_index",
]

METADATA = (".zarray", "zarr.json")  # the names of the files that describe an array, of version 2 and 3
MAX_METADATA = 1 << 20  # bytes of one of them
_MAX_NDIM = 32  # what TensorStore can hold
_KINDS = {"f": "f", "i": "i", "u": "u", "c": "c", "b": "b"}  # of our table to those of NumPy's type strings
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
INDEX = struct.Struct("<QQ")  # of a shard: where a chunk lies


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
        return self._keys(map(range, self.grid))

    def keys_within(self, index: Sequence[int | slice]) -> Iterator[str]:
        """The keys of the chunks that hold a part of the array: a number or a slice with both ends for some of the
        first axes, all of the others."""
        spans = [(at, at + 1) if isinstance(at, int) else (at.start, at.stop) for at in index]
        spans += [(0, length) for length in self.spec.shape[len(spans) :]]
        chunks = zip(spans, self.chunk, strict=True)
        return self._keys(range(begin // step, -(-end // step)) for (begin, end), step in chunks)

    def _keys(self, places: Iterable[range]) -> Iterator[str]:
        for index in product(*places):
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
        there = listing(table) if isinstance(table, dict) else ""
        raise _refusal(where, "it is not complete", f"the key {error}", there) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise _refusal(where, "it is not understood", "an array of a known kind", str(error)[:200]) from None


def _refusal(where: Path, problem: str, expected: str, found: str) -> StorageError:
    return StorageError(f"not a valid zarr array: {problem}", where=str(where), expected=expected, found=found)


def _parse_v2(table: dict[str, object]) -> ZarrArray:
    dtype, is_little = _dtype_v2(table["dtype"])
    spec, chunk, grid = _geometry(table["shape"], table["chunks"], dtype)
    is_plain = table.get("compressor") is None and not table.get("filters")
    is_row_major = table.get("order", "C") == "C" or sum(length > 1 for length in chunk) <= 1
    separator = _separator(table.get("dimension_separator", "."))
    packing = "raw" if is_plain and is_row_major and is_little else ""
    return ZarrArray(spec, 2, chunk, chunk, grid, packing, 0, "", separator)


def _dtype_v2(word: object) -> tuple[DType, bool]:
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


def _parse_v3(table: dict[str, object]) -> ZarrArray:
    if table.get("node_type") != "array" or at(table, "chunk_grid", "name") != "regular":
        raise ValueError("only arrays of regular chunks are supported")
    word = table["data_type"]
    if not isinstance(word, str):
        raise ValueError(f"data_type {word!r}")
    dtype = BY_NAME.get(word)
    if dtype is None or dtype.name != word or not dtype.array:
        raise _unknown(word)
    spec, chunk, grid = _geometry(table["shape"], at(table, "chunk_grid", "configuration", "chunk_shape"), dtype)
    prefix, separator = _key_encoding(table["chunk_key_encoding"])
    read_chunk, packing, index_bytes = chunk, "", 0
    codecs = table["codecs"]
    if _is_little(codecs, dtype):
        packing = "raw"
    elif isinstance(codecs, list) and len(codecs) == 1 and at(codecs[0], "name") == "sharding_indexed":
        inner = at(codecs[0], "configuration")
        _, read_chunk, _ = _geometry(table["shape"], at(inner, "chunk_shape"), dtype)
        checks = _index_checks(inner, dtype)
        if read_chunk == chunk and checks is not None:
            packing, index_bytes = "shard", INDEX.size + 4 * checks
    return ZarrArray(spec, 3, chunk, read_chunk, grid, packing, index_bytes, prefix, separator)


def _key_encoding(encoding: object) -> tuple[str, str]:
    """What the keys of chunks begin with, and what separates the numbers in them."""
    name = at(encoding, "name")
    if name not in ("default", "v2"):
        raise ValueError(f"chunk_key_encoding {name!r}")
    prefix, separator = ("c", "/") if name == "default" else ("", ".")
    with suppress(KeyError):  # both may be left out
        separator = _separator(at(encoding, "configuration", "separator"))
    return prefix, separator


def _separator(word: object) -> str:
    if word == "." or word == "/":
        return str(word)
    raise ValueError(f"separator {word!r}")


def _index_checks(inner: object, dtype: DType) -> int | None:
    """How many checksums the index of a shard ends with; None if it or the chunks must be decoded."""
    index = at(inner, "index_codecs")
    location = inner.get("index_location", "end") if isinstance(inner, dict) else ""
    if not _is_little(at(inner, "codecs"), dtype) or location != "end" or not isinstance(index, list):
        return None
    checks = [at(codec, "name") for codec in index[1:]]
    return len(checks) if index[:1] == [_LITTLE] and checks in ([], ["crc32c"]) else None


def _is_little(codecs: object, dtype: DType) -> bool:
    return codecs == [_LITTLE] or (dtype.bits == 8 and codecs == [{"name": "bytes"}])


def _geometry(shape: object, chunk: object, dtype: DType) -> tuple[Spec, tuple[int, ...], tuple[int, ...]]:
    lengths, steps = _lengths(shape, 0), _lengths(chunk, 1)
    if len(lengths) != len(steps) or len(lengths) > _MAX_NDIM:
        raise ValueError(f"chunks {chunk!r} of shape {shape!r}")
    if max(math.prod(filter(None, lengths)), math.prod(steps)) * dtype.bits >= 1 << 63:
        raise ValueError(f"the shape {shape!r} is too large")
    grid = tuple(-(-length // step) for length, step in zip(lengths, steps, strict=True))
    return Spec(lengths, dtype), steps, grid


def _lengths(row: object, least: int) -> tuple[int, ...]:
    if type(row) is not list or any(type(length) is not int or length < least for length in row):
        raise ValueError(f"shape {row!r}")
    return tuple(row)


def describe(
    spec: Spec, chunk: tuple[int, ...], compression: str, version: int = 2, shard: tuple[int, ...] | None = None
) -> dict[str, object]:
    """The metadata of an array of chunks; of version 3, several of them may be together in a file of the shape `shard`.
    `compression` is `none` or `zstd`."""
    if version == 2:
        return {
            "chunks": chunk,
            "compressor": {"id": "zstd", "level": 1} if compression == "zstd" else None,
            "dimension_separator": ".",
            "dtype": _v2_dtype(spec.dtype),
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": spec.shape,
            "zarr_format": 2,
        }
    codecs: list[object] = [{"name": "bytes"} if spec.dtype.bits == 8 else _LITTLE]
    if compression == "zstd":
        codecs.append({"name": "zstd", "configuration": {"level": 1, "checksum": False}})
    if shard not in (None, chunk):
        inner = {"chunk_shape": chunk, "codecs": codecs, "index_codecs": [_LITTLE, {"name": "crc32c"}]}
        codecs = [{"name": "sharding_indexed", "configuration": {**inner, "index_location": "end"}}]
    return {
        "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard or chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": codecs,
        "data_type": spec.dtype.name,
        "fill_value": _zero(spec.dtype),
        "node_type": "array",
        "shape": spec.shape,
        "zarr_format": 3,
    }


def _zero(dtype: DType) -> object:
    """The value of what is not there, which version 3 wants to be told."""
    if dtype.kind == "b":
        return False
    return [0.0, 0.0] if dtype.kind == "c" else 0.0 if dtype.kind == "f" else 0


def described_chunk(spec: Spec, chunk: tuple[int, ...], compression: str, version: int) -> dict[str, object]:
    """The metadata of an array of one chunk alone."""
    return describe(Spec(chunk, spec.dtype), chunk, compression, version)


def chunk_key(place: Sequence[int], version: int) -> str:
    """The key of the chunk at a place among others, in arrays of `describe`."""
    if version == 2:
        return ".".join(map(str, place)) or "0"
    return "/".join(["c", *map(str, place)])


def indexed(places: Sequence[tuple[int, int]]) -> bytes:
    """The index of a shard whose chunks lie at (offset, bytes)."""
    index = b"".join(INDEX.pack(*place) for place in places)
    return index + crc32c(index).to_bytes(4, "little")


def read_index(tail: bytes) -> list[tuple[int, int]]:
    """What `indexed` has made."""
    return [(int(begin), int(length)) for begin, length in INDEX.iter_unpack(tail[:-4])]


def leading_axis(shape: Sequence[int], chunk: Sequence[int]) -> int:
    """The axis along which chunks follow one another in the packed tensor: the first one of which a chunk has more
    than one element. 0 for scalars."""
    axes = (axis for axis, (length, step) in enumerate(zip(shape, chunk, strict=True)) if min(length, step) > 1)
    return next(axes, max(len(shape) - 1, 0))
