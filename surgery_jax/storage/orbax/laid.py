"""The files of the arrays of a checkpoint that is written: one for each chunk, or together with a tree of keys (OCDBT).

Bytes that lie together in a tensor go to one range of a file. Where a slab of several chunks is one, they are put in
order once all of them are there.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.ranges import Parts
from ...core.specs import Spec
from ..base import LaidFile
from ..places.base import Writer, fill
from ..places.found import place_of
from .chunks import ChunkGrid, encode_bytes, encode_chunk, encode_slab, encode_slab_bytes
from .ocdbt import PlacedValue, encode_store
from .tree import DATA, MANIFEST
from .zarr import INDEX, METADATA, chunk_key, describe, described_chunk, read_index

if TYPE_CHECKING:
    import numpy

__all__ = ["ArraysApart", "ArraysTogether", "LaidArray", "LaidArrays"]

_DATA_BYTES = 2 << 30  # of a file with values of several arrays


class LaidSlab(NamedTuple):
    """A part of an array that becomes one range of a file: `nbytes` bytes of the tensor from `begin` on, which take
    `size` bytes there; or a whole file, made by `encode` in so many bytes of memory, which holds the chunks `keys` and
    with `has_index` where each of them is."""

    begin: int
    nbytes: int
    size: int
    keys: tuple[str, ...]
    encode: Callable[[numpy.ndarray], bytes | memoryview] | None = None
    workspace: int = 0
    has_index: bool = False


class LaidArray(NamedTuple):
    """An array as it is written, under the name of its directory."""

    stored: str
    cut: ChunkGrid
    version: int
    compression: str

    @property
    def is_sharded(self) -> bool:
        """Whether a file holds several chunks, which version 3 knows."""
        return self.version == 3 and math.prod(self.cut.grid) > 1

    @property
    def described(self) -> tuple[str, bytes]:
        """Its metadata: name of the file, and what it holds."""
        spec, chunk = self.cut
        table = describe(spec, chunk, self.compression, self.version, self.cut.slab if self.is_sharded else None)
        return f"{self.stored}/{METADATA[self.version - 2]}", json.dumps(table, separators=(",", ":")).encode()

    def slabs(self) -> Iterator[LaidSlab]:
        """All of it, in the order of its bytes."""
        spec, chunk = self.cut
        is_compressed, is_whole = self.compression != "none", math.prod(self.cut.grid) == 1
        size = self.cut.slab_bytes
        driver = "zarr" if self.version == 2 else "zarr3"
        metadata = described_chunk(spec, chunk, self.compression, self.version) if is_compressed else None
        inner = chunk_key((0,) * len(chunk), self.version)
        for begin, first in self.cut.slabs():
            nbytes = min(size, spec.nbytes - begin)
            if is_whole:
                key = f"{self.stored}/{chunk_key(first, self.version)}"
                if metadata is None:
                    yield LaidSlab(begin, nbytes, size, (key,))
                else:
                    encode = partial(encode_chunk, driver, metadata, inner)
                    yield LaidSlab(begin, nbytes, size, (key,), encode, encode_bytes(size, nbytes))
                continue
            if self.is_sharded:
                step = [at // length for at, length in zip(first, self.cut.grid, strict=True)]
                keys = [chunk_key(step, self.version)]
            else:
                keys = [chunk_key(place, self.version) for place in self.cut.within(first)]
            names = tuple(f"{self.stored}/{key}" for key in keys)
            ordered = partial(encode_slab, self.cut, driver, metadata, inner)
            workspace = encode_slab_bytes(self.cut, is_compressed=is_compressed)
            yield LaidSlab(begin, nbytes, nbytes, names, ordered, workspace, has_index=not self.is_sharded)


class LaidArrays(ABC):
    """The files of arrays, and where in them the bytes of every tensor belong, as a layout has it."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[int, int]] = {}
        self.rest: dict[str, Parts[int]] = {}
        self._described: dict[str, bytes] = {}  # the metadata of arrays, by its key

    @abstractmethod
    def add(self, name: str, array: LaidArray) -> None:
        """Lay out one more array, of the tensor `name`."""

    @abstractmethod
    def files(self) -> list[LaidFile]:
        """All files for bytes of tensors."""

    @abstractmethod
    def finish(self, root: Path) -> Iterator[tuple[str, bytes]]:
        """What else belongs into a directory, when all bytes of tensors are there: names and contents."""

    def _place(self, name: str, parts: list[tuple[int, int, int]]) -> None:
        """(byte of the tensor, number of the file, offset) of where its bytes are and go on."""
        self.places[name] = parts[0][1:] if parts else (0, 0)
        if len(parts) > 1:
            self.rest[name] = tuple(parts[1:])


class ArraysApart(LaidArrays):
    """A directory for every array, and a file for every chunk, or for every shard of them."""

    def __init__(self) -> None:
        super().__init__()
        self._files: list[LaidFile] = []
        self._several: list[tuple[str, ...]] = []  # chunks that are together until the end, in a file like the first

    def add(self, name: str, array: LaidArray) -> None:
        self._described |= [array.described]
        parts = []
        for slab in array.slabs():
            parts.append((slab.begin, len(self._files), 0))
            size = slab.size if slab.encode is None else slab.nbytes
            self._files.append(LaidFile(slab.keys[0], size, encode=slab.encode, workspace=slab.workspace))
            if slab.has_index:
                self._several.append(slab.keys)
        self._place(name, parts)

    def files(self) -> list[LaidFile]:
        return self._files

    def finish(self, root: Path) -> Iterator[tuple[str, bytes]]:
        """A file for every chunk, and the metadata of every array."""
        for names in self._several:
            yield from _taken_apart(root, names)
        yield from self._described.items()


def _index_of(file: Writer, path: Path, count: int) -> list[tuple[int, int]]:
    """Where the chunks lie in the file of a slab."""
    tail = bytearray(count * INDEX.size + 4)
    fill(file, path.stat().st_size - len(tail), memoryview(tail))
    return read_index(bytes(tail))


def _taken_apart(root: Path, names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """The chunks of a file but the first, which is left in it."""
    path = root / names[0]
    with closing(place_of(str(path)).target(str(path))) as source:
        (_, kept), *others = _index_of(source, path, len(names))
        for name, (offset, nbytes) in zip(names[1:], others, strict=True):
            content = bytearray(nbytes)
            fill(source, offset, memoryview(content))
            yield name, bytes(content)
        source.truncate(kept)


class ArraysTogether(LaidArrays):
    """One store of all arrays: values follow one another in files, and a tree tells where."""

    def __init__(self) -> None:
        super().__init__()
        self._files: list[LaidFile | None] = []  # None for one that may still get more
        self._sizes: list[int] = []
        self._open: int | None = None
        self._values: list[tuple[tuple[str, ...], int, int, int]] = []  # keys, file, offset, bytes or 0 for all
        self._indexed: list[tuple[tuple[str, ...], int]] = []

    def add(self, name: str, array: LaidArray) -> None:
        self._described |= [array.described]
        parts: list[tuple[int, int, int]] = []
        for slab in array.slabs():
            if slab.encode is not None:
                parts.append((slab.begin, self._encoded(slab), 0))
                continue
            if not parts:
                self._make_room(array.cut.spec)
            assert self._open is not None
            offset = self._sizes[self._open]
            if not parts:
                parts.append((slab.begin, self._open, offset))
            self._values.append((slab.keys, self._open, offset, slab.size))
            self._sizes[self._open] += slab.size
        self._place(name, parts)

    def _encoded(self, slab: LaidSlab) -> int:
        number = len(self._files)
        self._files.append(LaidFile(_data(number), slab.nbytes, encode=slab.encode, workspace=slab.workspace))
        self._sizes.append(slab.nbytes)
        if slab.has_index:
            self._indexed.append((slab.keys, number))
        else:
            self._values.append((slab.keys, number, 0, 0))
        return number

    def _make_room(self, spec: Spec) -> None:
        """See to it that the open file takes a whole tensor, unless that is larger than any."""
        if self._open is None or (self._sizes[self._open] and self._sizes[self._open] + spec.nbytes > _DATA_BYTES):
            self._open = len(self._files)
            self._files.append(None)
            self._sizes.append(0)

    def files(self) -> list[LaidFile]:
        return [
            LaidFile(_data(number), size, indirect=True) if file is None else file
            for number, (file, size) in enumerate(zip(self._files, self._sizes, strict=True))
        ]

    def finish(self, root: Path) -> Iterator[tuple[str, bytes]]:
        """The tree."""
        entries: dict[str, bytes | PlacedValue] = dict(self._described)
        for (key,), number, offset, nbytes in self._values:
            name = _data(number)
            entries[key] = PlacedValue(name, offset, nbytes or (root / name).stat().st_size)
        for keys, number in self._indexed:
            name = _data(number)
            with closing(place_of(str(root)).target(str(root / name))) as file:
                places = _index_of(file, root / name, len(keys))
            entries |= {key: PlacedValue(name, *place) for key, place in zip(keys, places, strict=True)}
        nodes = _data(len(self._files))
        manifest, tree = encode_store(entries, nodes)
        yield from [(nodes, tree), (MANIFEST, manifest)]


def _data(number: int) -> str:
    return f"{DATA}/{number:032x}"
