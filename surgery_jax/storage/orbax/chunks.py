"""How tensors are cut into the chunks of zarr arrays, and what the file of a chunk holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from ...core.specs import Spec
from .zarr import INDEX, indexed, leading_axis

if TYPE_CHECKING:
    import numpy

__all__ = ["ChunkGrid", "chunk_of", "divided", "encode_bytes", "encode_chunk", "encode_slab", "encode_slab_bytes"]

_SPREAD = 8  # a large tensor is cut into a multiple of so many chunks, for loading onto as many devices
_LARGE = 8 << 20  # bytes of a tensor that is

Index = tuple[int, ...]  # the place of a chunk among the chunks of its array, by axis


class ChunkGrid(NamedTuple):
    """A tensor and the shape of its chunks.

    Chunks that are not as wide as the tensor do not lie together in it: then the smallest part of it that does, and is
    made of whole chunks, is a *slab* of several. Else every chunk is a slab of its own.
    """

    spec: Spec
    chunk: tuple[int, ...]

    @property
    def axis(self) -> int:
        """The axis along which slabs follow one another."""
        return leading_axis(self.spec.shape, self.chunk)

    @property
    def slab(self) -> tuple[int, ...]:
        """The shape of a slab."""
        after = self.axis + 1
        return (*self.chunk[:after], *(max(length, 1) for length in self.spec.shape[after:]))

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of chunks of a slab along each axis."""
        return tuple(-(-length // step) for length, step in zip(self.slab, self.chunk, strict=True))

    @property
    def slab_bytes(self) -> int:
        """Bytes of a slab that is full."""
        return math.prod(self.slab) * self.spec.dtype.itemsize

    def slabs(self) -> Iterator[tuple[int, Index]]:
        """(first byte of the tensor in it, place of its first chunk) of every slab, in order."""
        if not self.spec.size:
            return
        shape = self.spec.shape
        axis = self.axis
        along = [-(-length // step) for length, step in zip(shape[axis:], self.chunk[axis:], strict=True)][:1]
        zeros = (0,) * (len(shape) - axis - 1)
        for number, place in enumerate(product(*map(range, [*shape[:axis], *along]))):
            yield number * self.slab_bytes, (*place, *zeros)

    def within(self, first: Index) -> Iterator[Index]:
        """The places of the chunks of the slab whose first one is at a place, in the order in which it holds them."""
        for steps in product(*map(range, self.grid)):
            yield tuple(at + step for at, step in zip(first, steps, strict=True))


def chunk_of(spec: Spec, limit: int | None) -> tuple[int, ...]:
    """The shape of the chunks of a tensor: equal parts of its leading axis of at most `limit` bytes.

    Large tensors are cut into a multiple of 8 if their axis allows it. Where no divisor is near, the last chunk is
    shorter.
    """
    shape = tuple(max(length, 1) for length in spec.shape)
    if limit is None or not spec.size or not shape:
        return shape
    axis = leading_axis(shape, shape)
    length = shape[axis]
    least = max(-(-spec.nbytes // limit), _SPREAD if spec.nbytes >= _LARGE else 1)
    near = range(least, min(4 * least, length) + 1)
    divisors = [count for count in near if length % count == 0]
    spread = [count for count in divisors if count % _SPREAD == 0]
    count = min((spread if least >= _SPREAD and spread else divisors) or [min(least, length)])
    return (*shape[:axis], -(-length // count), *shape[axis + 1 :])


def divided(spec: Spec, shard: Sequence[int], limit: int | None) -> tuple[int, ...]:
    """The shape of the chunks of a tensor of which every device has a part of the shape `shard`: that, or equal parts
    of it, so that no slab has more than `limit` bytes."""
    chunk = [max(length, 1) for length in shard]
    for axis, length in enumerate(chunk):
        whole = ChunkGrid(spec, tuple(chunk)).slab_bytes
        if limit is None or whole <= limit:
            break
        room = max(limit * length // whole, 1)
        chunk[axis] = max(part for part in _divisors(length) if part <= room)
    return tuple(chunk)


def _divisors(number: int) -> Iterator[int]:
    for low in range(1, math.isqrt(number) + 1):
        if number % low == 0:
            yield from (low, number // low)


def encode_bytes(whole: int, size: int) -> int:
    """Memory that `encode_chunk` takes for `size` bytes of a chunk of `whole` bytes, result included, by measurement:
    one that is not full is filled up; TensorStore copies it, and holds what it becomes twice, which is as long as
    before if it cannot be compressed."""
    return (3 if size == whole else 4) * whole + whole // 32 + (2 << 20)


def encode_chunk(driver: str, metadata: dict[str, object], key: str, data: numpy.ndarray) -> bytes:
    """What the file of a chunk holds for its packed bytes, as a driver of TensorStore encodes them; the last one may
    have less. `metadata` is that of an array of this chunk alone, and `key` the key of it."""
    import numpy as np
    import tensorstore

    spec: dict[str, object] = {"driver": driver, "kvstore": {"driver": "memory"}, "metadata": metadata}
    spec["store_data_equal_to_fill_value"] = True  # else a chunk of zeros would be missing, as one that is lost
    array = tensorstore.open(spec, context=tensorstore.Context(), create=True).result()
    elements = data.view(array.dtype.numpy_dtype)
    if elements.size < array.size:
        elements = np.concatenate([elements, np.zeros(array.size - elements.size, elements.dtype)])
    array.write(elements.reshape(array.shape)).result()
    store = array.kvstore
    assert store is not None
    return bytes(store.read(key).result().value)


def encode_slab_bytes(cut: ChunkGrid, *, is_compressed: bool) -> int:
    """Memory that `encode_slab` takes, result included, by measurement: TensorStore lets go of a chunk some time after
    it was encoded, when others are already."""
    if not is_compressed:
        return _room(cut, is_compressed)
    chunk = math.prod(cut.chunk) * cut.spec.dtype.itemsize
    one = encode_bytes(chunk, chunk)
    return _room(cut, is_compressed) + chunk + one + min(2 * one, cut.slab_bytes)


def _room(cut: ChunkGrid, is_compressed: bool) -> int:
    """The most bytes that a slab becomes: what zstd cannot compress grows a little."""
    count, chunk = math.prod(cut.grid), math.prod(cut.chunk) * cut.spec.dtype.itemsize
    return cut.slab_bytes + count * INDEX.size + 4 + (count * (chunk // 256 + 64) if is_compressed else 0)


def encode_slab(
    cut: ChunkGrid, driver: str, metadata: dict[str, object] | None, key: str, data: numpy.ndarray
) -> memoryview:
    """The chunks of a slab one after the other, and an index of where each of them lies, as a shard of version 3 has
    it. They are encoded as in `encode_chunk`; without `metadata` they stay as they are."""
    import numpy as np

    size = cut.spec.dtype.itemsize
    elements = data.view(f"u{size}").reshape(
        [length for pair in zip(cut.grid, cut.chunk, strict=True) for length in pair]
    )
    axes = range(0, elements.ndim, 2)
    apart = elements.transpose([*axes, *(axis + 1 for axis in axes)])
    whole = np.empty(_room(cut, metadata is not None), np.uint8)
    places, at = [], 0
    for place in product(*map(range, cut.grid)):
        if metadata is None:
            nbytes = math.prod(cut.chunk) * size
            whole[at : at + nbytes].view(f"u{size}").reshape(cut.chunk)[...] = apart[place]
        else:
            one = np.ascontiguousarray(apart[place]).reshape(-1).view(np.uint8)
            encoded = encode_chunk(driver, metadata, key, one)
            nbytes = len(encoded)
            whole[at : at + nbytes] = np.frombuffer(encoded, np.uint8)
        places.append((at, nbytes))
        at += nbytes
    index = indexed(places)
    whole[at : at + len(index)] = np.frombuffer(index, np.uint8)
    return whole[: at + len(index)].data
