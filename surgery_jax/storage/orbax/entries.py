"""Where the bytes of a zarr array lie: ranges of the files of its chunks, if each is a range of the packed tensor; all
others are decoded by TensorStore."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.errors import StorageError, listing
from ..base import Blocks, Entry, Extent
from ..places.found import is_local
from .values import HeldValue, read_all
from .zarr import INDEX, ZarrArray, leading_axis

if TYPE_CHECKING:
    import numpy
    import tensorstore

__all__ = ["FoundArray", "OpenArray", "entries_of"]

Places = Mapping[str, HeldValue]  # the keys of an array below its directory

Indices = Mapping[HeldValue, bytes]  # of shards, as they were read

# Gives the array of TensorStore: whether missing chunks are full of the fill value, and the keys of those that matter
OpenArray = Callable[[bool, Iterable[str]], "tensorstore.TensorStore"]


class FoundArray(NamedTuple):
    """An array and where it lies. `places` are all keys below its directory but its metadata, whose file is `where`."""

    array: ZarrArray
    places: Places
    open_array: OpenArray
    where: Path

    @property
    def is_whole(self) -> bool:
        """Whether its chunks are there, and nothing else."""
        array, places = self.array, self.places
        return len(places) == array.num_chunks and all(key in places for key in array.keys())


def entries_of(found: Mapping[str, FoundArray], has_holes: bool) -> dict[str, Entry]:
    """How the bytes of arrays are read. With `has_holes` missing chunks are full of the fill value, else they are an
    error.

    Raises:
        StorageError: the chunks are not those of the shape, or have another length.
    """
    wanted = [index for one in found.values() for index in _indices(one)]
    indices = dict(zip(wanted, read_all(wanted), strict=True))
    return {name: _entry_of(one, has_holes, indices) for name, one in found.items()}


def _entry_of(one: FoundArray, has_holes: bool, indices: Indices) -> Entry:
    array, places, open_array, where = one
    is_whole = one.is_whole
    if not is_whole:
        _check_keys(array, places, has_holes, where)
    runs = _runs(array, places, where, indices) if is_whole and _is_packed(array) else None
    if runs is not None:
        return Entry(array.spec, _extent(runs))
    shape = array.spec.shape
    axis = leading_axis(shape, array.read_chunk)
    inner = math.prod(shape[axis + 1 :])
    length, period = (
        (min(array.read_chunk[axis], shape[axis]) * inner, shape[axis] * inner) if array.spec.size and shape else (1, 1)
    )
    # what is decoded lies in memory compressed, twice if it was fetched, as chunks, and put together
    factor = 3 if is_local(where) else 4
    return Entry(array.spec, blocks=Blocks(length, period, partial(_read, array, open_array, is_whole, where), factor))


def _indices(one: FoundArray) -> list[HeldValue]:
    """The indices of the shards of an array, as far as its bytes may lie in these as they are."""
    array, places, _, _ = one
    if array.packing != "shard" or not _is_packed(array) or not one.is_whole:
        return []
    held = [places[key] for key in array.keys()]
    size = _stored_bytes(array) + array.index_bytes
    return [_index(array, value) for value in held if value.inline is None and value.nbytes == size]


def _index(array: ZarrArray, held: HeldValue) -> HeldValue:
    """The index of a shard of one chunk, but for its checksum."""
    return HeldValue(held.path, held.offset + held.nbytes - array.index_bytes, INDEX.size)


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


def _stored_bytes(array: ZarrArray) -> int:
    """Bytes of a chunk that is not encoded."""
    return math.prod(array.chunk) * array.spec.dtype.itemsize


def _is_packed(array: ZarrArray) -> bool:
    """Whether each chunk, as it is stored, is a range of the packed tensor."""
    shape = array.spec.shape
    axis = leading_axis(shape, array.chunk)
    is_as_wide = all(step == length for length, step in zip(shape[axis + 1 :], array.chunk[axis + 1 :], strict=True))
    return bool(array.packing) and is_as_wide and all(step == 1 for step in array.chunk[:axis])


def _runs(array: ZarrArray, places: Places, where: Path, indices: Indices) -> list[tuple[str, int, int]] | None:
    """The ranges of files that are the packed tensor, None if it must be put together."""
    shape, dtype = array.spec.shape, array.spec.dtype
    axis = leading_axis(shape, array.chunk)
    stored = _stored_bytes(array)
    inner = math.prod(shape[axis + 1 :]) * dtype.itemsize
    runs = []
    for number, key in enumerate(array.keys()):
        held = places[key]
        _check_length(where, held.path, stored + array.index_bytes, held.nbytes)
        if held.inline is not None:
            return None
        begin = _shard_begin(array, held, indices[_index(array, held)]) if array.packing == "shard" else 0
        if begin is None:
            return None
        nbytes = stored
        if shape:
            at = number % array.grid[axis] * array.chunk[axis]
            nbytes = min(array.chunk[axis], shape[axis] - at) * inner
        runs.append((held.path, held.offset + begin, nbytes))
    return runs if runs else None


def _check_length(where: Path, path: str, expected: int, found: int) -> None:
    if expected != found:
        raise StorageError(
            "a chunk has not the length that its array says",
            where=path,
            expected=f"{expected} bytes, by {where}",
            found=f"{found} bytes",
        )


def _shard_begin(array: ZarrArray, held: HeldValue, index: bytes) -> int | None:
    """Where the only chunk of a shard lies in it; None if there is none, which means the fill value."""
    size, stored = held.nbytes, _stored_bytes(array)
    begin, length = INDEX.unpack(index)
    if begin == length == (1 << 64) - 1:
        return None
    if length != stored or begin + length > size - array.index_bytes:
        raise StorageError(
            "the index of a shard is not true",
            where=held.path,
            expected=f"{stored} bytes before the index",
            found=f"{length} bytes at {begin} of {size}",
        )
    return int(begin)


def _read(
    array: ZarrArray,
    open_array: OpenArray,
    is_whole: bool,
    where: Path,
    first: int,
    count: int,
) -> numpy.ndarray:
    """Consecutive elements of one block, or all."""
    shape, dtype = array.spec.shape, array.spec.dtype
    index: tuple[int | slice, ...] = ()
    if shape and count != array.spec.size:
        axis = leading_axis(shape, array.read_chunk)
        inner = math.prod(shape[axis + 1 :])
        row, rows = first // inner, count // inner
        begin, outer = row % shape[axis], row // shape[axis]
        for length in reversed(shape[:axis]):
            index = (outer % length, *index)
            outer //= length
        index = (*index, slice(begin, begin + rows))
    try:
        stored = open_array(not is_whole, array.keys_within(index))
        if tuple(stored.shape) != shape or stored.dtype.numpy_dtype != dtype.numpy:
            raise ValueError(f"it changed to {stored.dtype.name}{list(stored.shape)}")
        found: numpy.ndarray = stored[index].read().result()
    except StorageError:
        raise
    except Exception as error:  # of TensorStore, which raises ValueError and OSError for whatever is wrong
        raise StorageError("an array cannot be read", where=str(where), found=str(error).split(" [")[0][:300]) from None
    return found
