"""Writing Flax's msgpack files: everything but the bytes of tensors, for which there is room."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...core.errors import StorageError
from ...core.ranges import Parts
from ...core.specs import Spec
from ..base import LaidFile, Layout
from ..keys import Plain, nest, told_leaves

__all__ = ["ARRAY", "MARK", "MAX_CHUNK", "SCALAR", "lay_tree"]

MAX_CHUNK = 1 << 30  # bytes; leaves above are chunked: `flax.serialization.MAX_CHUNK_SIZE`
MARK = "__msgpack_chunked_array__"
ARRAY, SCALAR = 1, 3  # codes of Flax's extension types


def lay_tree(
    path: Path, tensors: Sequence[tuple[str, Spec]], metadata: Mapping[str, str], max_chunk: int = MAX_CHUNK
) -> Layout:
    """One file: the tree of the names, leaves of more than `max_chunk` bytes in chunks.

    Raises:
        StorageError: a dtype that NumPy arrays do not have; names that make no tree.
    """
    scalars, others = told_leaves(metadata, [name for name, _ in tensors], str(path))
    writer = _MsgpackWriter(path, max_chunk)
    leaves: list[tuple[str, object]] = [(name, _Tensor(name, spec, name in scalars)) for name, spec in tensors]
    leaves += others.items()
    writer.tree(nest(leaves, str(path)))
    writer.flush()
    places = {name: (0, parts[0][2]) for name, parts in writer.parts.items()}
    rest = {name: parts[1:] for name, parts in writer.parts.items() if len(parts) > 1}
    return Layout((LaidFile("", writer.at, tuple(writer.fixed)),), places, False, rest=rest)


class _Tensor(NamedTuple):
    name: str
    spec: Spec
    is_scalar: bool


def _plain(value: object) -> bytes:
    """None, a text, an empty map or a complex number."""
    if isinstance(value, complex):
        return b"\xc7\x13\x02" + struct.pack(">BBdBd", 0x92, 0xCB, value.real, 0xCB, value.imag)
    return b"\xc0" if value is None else _text(value) if isinstance(value, str) else b"\x80"


class _MsgpackWriter:
    """msgpack in the shortest forms, as its library writes it, with room for the bytes of tensors."""

    def __init__(self, path: Path, max_chunk: int) -> None:
        self.path = path
        self.max_chunk = max_chunk
        self.at = 0
        self.begin = 0
        self.pending = bytearray()
        self.fixed: list[tuple[int, bytes]] = []
        self.parts: dict[str, Parts[int]] = {}

    def put(self, raw: bytes) -> None:
        self.pending += raw
        self.at += len(raw)

    def flush(self) -> None:
        """What was put is one range of known bytes."""
        if self.pending:
            self.fixed.append((self.begin, bytes(self.pending)))
            self.pending.clear()

    def leave(self, count: int) -> int:
        """Room for the bytes of a tensor; gives where they begin."""
        self.flush()
        found = self.at
        self.at = self.begin = self.at + count
        return found

    def tree(self, node: Mapping[str, object]) -> None:
        self.put(_head(len(node), 0x80, 15, "HI", 0xDE))
        for key, child in node.items():
            try:
                self.put(_text(key))
            except UnicodeEncodeError:
                raise StorageError("a name is not valid text", where=str(self.path), found=ascii(key)[:120]) from None
            if isinstance(child, dict):
                self.tree(child)
            elif isinstance(child, _Tensor):
                self.tensor(child)
            else:
                assert isinstance(child, Plain)
                self.put(_plain(child.value))

    def tensor(self, tensor: _Tensor) -> None:
        name, spec, is_scalar = tensor
        if not spec.dtype.array:
            raise StorageError(
                f"Flax msgpack files cannot hold {spec.dtype}",
                where=str(self.path),
                expected="a dtype that arrays have",
                found=f"{name!r} is {spec}",
            )
        if spec.nbytes <= self.max_chunk:
            code = SCALAR if is_scalar and not spec.shape else ARRAY
            self.parts[name] = ((0, 0, self.array(spec, code)),)
            return
        self.put(_head(3, 0x80, 15, "HI", 0xDE) + _text(MARK) + b"\xc3" + _text("shape"))
        self.put(_head(len(spec.shape), 0x80, 15, "HI", 0xDE))
        for axis, length in enumerate(spec.shape):
            self.put(_text(str(axis)) + _integer(length))
        step = max(1, self.max_chunk // spec.dtype.itemsize)
        begins = range(0, spec.size, step)
        self.put(_text("chunks") + _head(len(begins), 0x80, 15, "HI", 0xDE))
        parts = []
        for index, begin in enumerate(begins):
            self.put(_text(str(index)))
            offset = self.array(Spec((min(step, spec.size - begin),), spec.dtype), ARRAY)
            parts.append((begin * spec.dtype.itemsize, 0, offset))
        self.parts[name] = tuple(parts)

    def array(self, spec: Spec, code: int) -> int:
        """An array without its bytes; gives where they belong."""
        inner = b"\x93" + _head(len(spec.shape), 0x90, 15, "HI", 0xDC) + b"".join(map(_integer, spec.shape))
        inner += _text(spec.dtype.name) + _sized(spec.nbytes, 0xC4)
        length = len(inner) + spec.nbytes
        fixed = {1 << power: 0xD4 + power for power in range(5)}.get(length)
        self.put((bytes([fixed]) if fixed else _sized(length, 0xC7)) + bytes([code]) + inner)
        return self.leave(spec.nbytes)


def _head(count: int, short: int, most: int, forms: str, first: int) -> bytes:
    """A kind and a count: in one byte up to `most`, else in the first of the wider forms that holds it."""
    if count <= most:
        return bytes([short + count])
    for number, form in enumerate(forms):
        if count < 1 << 8 * struct.calcsize(">" + form):
            return struct.pack(">B" + form, first + number, count)
    raise ValueError(f"{count} is too many for msgpack")


def _sized(count: int, first: int) -> bytes:
    return _head(count, 0, -1, "BHI", first)


def _text(text: str) -> bytes:
    raw = text.encode()
    return _head(len(raw), 0xA0, 31, "BHI", 0xD9) + raw


def _integer(value: int) -> bytes:
    return _head(value, 0, 127, "BHIQ", 0xCC)
