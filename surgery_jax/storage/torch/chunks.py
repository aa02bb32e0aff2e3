"""Tensors of a distributed checkpoint that are put together of several stored ones, as the ranks of a training run left
them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.errors import StorageError
from ...core.specs import Spec
from ..base import Blocks, Entry
from ..files import File
from .tensors import Tensor, entry_of, read_archive

if TYPE_CHECKING:
    import numpy

__all__ = ["Chunk", "blocks_of", "check_cover", "chunk_entry"]

_MAX_PAIRS = 1 << 23  # of chunks of a tensor that are compared: a grid of 500 by 500 has as many


class Chunk(NamedTuple):
    """A block of a tensor: its corner and shape, and the range of the file that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    begin: int
    length: int


def check_cover(path: Path, name: str, spec: Spec, chunks: Sequence[Chunk]) -> None:
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
    """Whether two chunks share an element. Sorted along the axis that they differ most on, few pairs have to be
    compared; where these are very many, the chunks are none that a program cut."""
    solid = [chunk for chunk in chunks if all(chunk.sizes)]
    if len(solid) < 2:
        return False
    axes = range(len(solid[0].offsets))
    if not axes:
        return True
    along = max(axes, key=lambda axis: len({chunk.offsets[axis] for chunk in solid}))
    solid.sort(key=lambda chunk: chunk.offsets[along])
    compared = 0
    for number, one in enumerate(solid):
        end = one.offsets[along] + one.sizes[along]
        for at in range(number + 1, len(solid)):
            other = solid[at]
            if other.offsets[along] >= end:
                break
            compared += 1
            if compared > _MAX_PAIRS or all(
                a < b + m and b < a + n for a, n, b, m in zip(*one[:2], *other[:2], strict=True)
            ):
                return True
    return False


def chunk_entry(file: File, name: str, spec: Spec, chunk: Chunk) -> Entry:
    """One chunk of a tensor, from the little header before its bytes."""
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


def blocks_of(name: str, spec: Spec, chunks: Sequence[Chunk]) -> Blocks:
    """A tensor that is put together of several: shard by shard, if each has as many of its rows, else as a whole."""
    shards = sorted(chunk for chunk in chunks if all(chunk.sizes))
    rows = shards[0].sizes[0] if shards and spec.shape else 0
    if not rows or any(
        chunk.offsets[0] != number * rows or chunk.sizes[0] > rows or chunk.sizes[1:] != spec.shape[1:]
        for number, chunk in enumerate(shards)
    ):
        return Blocks.whole(spec, partial(_assemble, name, spec, chunks))
    inner = math.prod(spec.shape[1:])

    def read(first: int, count: int) -> numpy.ndarray:
        begin, end = first // inner, (first + count) // inner
        some = [chunk for chunk in shards if begin <= chunk.offsets[0] < end]
        return _assemble(name, Spec((end - begin, *spec.shape[1:]), spec.dtype), some, begin)

    return Blocks(rows * inner, spec.size, read)


def _assemble(name: str, spec: Spec, chunks: Sequence[Chunk], begin: int = 0) -> numpy.ndarray:
    """What the chunks hold; `spec` is of the rows from `begin` on."""
    import numpy as np

    whole: numpy.ndarray = np.empty(spec.shape, spec.dtype.numpy)
    for chunk in chunks:
        with File(chunk.path) as file:
            entry = chunk_entry(file, name, spec, chunk)
            if entry.extent is not None:
                data = file.at(entry.extent.offset, entry.spec.nbytes)
                block = np.frombuffer(data, spec.dtype.numpy).reshape(chunk.sizes)
            else:
                block = entry.read()
        corners = [corner - begin if axis == 0 else corner for axis, corner in enumerate(chunk.offsets)]
        ranges = zip(corners, chunk.sizes, strict=True)
        whole[tuple(slice(corner, corner + size) for corner, size in ranges)] = block
    return whole
