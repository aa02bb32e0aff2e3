"""How tensors are cut into the chunks of zarr arrays, and what the file of a chunk holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core.specs import Spec
from .zarr import leading_axis

if TYPE_CHECKING:
    import numpy

__all__ = ["chunk_of", "chunks", "encode_bytes", "encode_chunk"]

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
    axis = leading_axis(shape, shape)
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
    axis = leading_axis(spec.shape, spec.shape) if spec.shape else 0
    size = math.prod(chunk) * spec.dtype.itemsize
    count = -(-spec.shape[axis] // chunk[axis]) if spec.shape else 1
    zeros = ["0"] * len(spec.shape)
    for number in range(count):
        key = ".".join([*zeros[:axis], str(number), *zeros[axis + 1 :]])
        yield number * size, key, size


def encode_bytes(whole: int, size: int) -> int:
    """Memory that `encode_chunk` takes for `size` bytes of a chunk of `whole` bytes, result included, by measurement:
    one that is not full is filled up; TensorStore copies it, and holds what it becomes twice, which is as long as
    before if it cannot be compressed."""
    return (3 if size == whole else 4) * whole + whole // 32 + (2 << 20)


def encode_chunk(described: bytes, chunk: tuple[int, ...], data: numpy.ndarray) -> bytes:
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
