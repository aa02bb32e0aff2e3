"""The structure of a msgpack file of Flax, parsed without its arrays."""

from __future__ import annotations

import struct
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.dtypes import BY_NAME, DTYPES, DType
from ...core.errors import StorageError, nearest
from ...core.specs import Spec
from ..base import Blocks, Checkpoint, Entry, Extent
from ..bounds import MAX_NDIM, Allowance, TooLarge, is_possible
from ..keys import MAX_DEPTH, describe_leaves, join_keys
from ..leftovers import foreign_dtype, in_words
from .write import ARRAY, MARK, SCALAR

if TYPE_CHECKING:
    import mmap

    import numpy

__all__ = ["FORMAT", "Parser"]

FORMAT = "flax"  # the name of the format

_COMPLEX = 2  # the code of Flax's extension type of Python's complex numbers
_LEAF = 700  # bytes that a leaf takes in memory, without its name
# https://github.com/msgpack/msgpack/blob/master/spec.md: first byte -> kind and what follows it
_HEADS = {
    0xC4: ("bin", ">B"), 0xC5: ("bin", ">H"), 0xC6: ("bin", ">I"),
    0xC7: ("ext", ">Bb"), 0xC8: ("ext", ">Hb"), 0xC9: ("ext", ">Ib"),
    0xCC: ("int", ">B"), 0xCD: ("int", ">H"), 0xCE: ("int", ">I"), 0xCF: ("int", ">Q"),
    0xD0: ("int", ">b"), 0xD1: ("int", ">h"), 0xD2: ("int", ">i"), 0xD3: ("int", ">q"),
    0xD9: ("str", ">B"), 0xDA: ("str", ">H"), 0xDB: ("str", ">I"),
    0xDC: ("array", ">H"), 0xDD: ("array", ">I"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip


class _Array(NamedTuple):
    spec: Spec
    offset: int


class Parser:
    """Walks over the structure of a file; arrays are skipped."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path = path
        self.data = data
        self.at = 0
        self.end = size
        self.entries: dict[str, Entry] = {}
        self.scalars: list[str] = []
        self.others: dict[str, object] = {}
        self.left: list[tuple[str, str]] = []
        self.allowance = Allowance(size)

    def read(self, start: str) -> Checkpoint | Entry:
        """The checkpoint, or the array that is not in a map."""
        self.value(None, 1)
        if self.at != self.end:
            raise self.refusal("there are bytes after the tree", f"a file of {self.at} bytes", f"{self.end} bytes")
        if None in self.entries:
            return self.entries[None]  # type: ignore[index]
        told = in_words((name[len(start) :], kind) for name, kind in self.left if name.startswith(start))
        if not self.entries:
            raise StorageError("the checkpoint holds no tensors", where=str(self.path), found="; ".join(told) or None)
        metadata = describe_leaves(self.entries, self.scalars, self.others)
        where = str(self.path)
        return Checkpoint(where, FORMAT, self.entries, metadata, (where,), left_out=told)

    def value(self, name: str | None, depth: int) -> None:
        """One value and all below it; `name` is None at the top."""
        kind, value, code = self.head()
        if kind == "map":
            self.map(name, value, depth)
        elif kind == "array":
            for index in range(value):
                self.below(name, str(index), depth)
            if not value:
                self.keep(name, {})
        elif kind == "ext" and code in (ARRAY, SCALAR):
            array = self.array(name, value)
            if array is not None:
                self.entries[self.named(name)] = Entry(array.spec, Extent(str(self.path), array.offset))
                if code == SCALAR:
                    self.scalars.append(self.named(name))
        elif kind in ("int", "float", "bool"):
            word = (
                "uint64" if kind == "int" and value >= 1 << 63 else {"int": "int64", "float": "float64"}.get(kind, kind)
            )
            spec = Spec((), BY_NAME[word])
            number = self.float(value) if kind == "float" else value
            self.entries[self.named(name)] = Entry(spec, blocks=Blocks.whole(spec, partial(_number, number, spec)))
            self.scalars.append(self.named(name))
        elif kind == "nil":
            self.keep(name, None)
        elif kind == "str":
            self.keep(name, self.decode(value))
        elif kind == "ext" and code == _COMPLEX:
            self.keep(name, self.complex(name, value))
        elif name is None:
            raise self.refusal("there is no tree", "nested maps", kind)
        elif kind == "ext" and code < 0:  # reserved by msgpack; Flax refuses these too
            raise self.refusal("an extension type that is reserved", "types from 0 to 127", str(code))
        else:
            self.skip(value)
            self.leave(name, f"extension type {code}" if kind == "ext" else "bytes")

    def leave(self, name: str | None, kind: str) -> None:
        """A leaf that is not read."""
        self.left.append((self.named(name) or "the file", kind))

    def below(self, name: str | None, key: str, depth: int) -> None:
        """The value of a key of the map or list `name`."""
        if depth > MAX_DEPTH:
            raise self.refusal("the tree nests too deep", f"at most {MAX_DEPTH} levels", f"{name!r}"[:80])
        word = join_keys([key])
        self.value(word if name is None else f"{name}.{word}", depth + 1)

    def map(self, name: str | None, count: int, depth: int) -> None:
        """The items of a map, or the array of which it holds the chunks."""
        if not count:
            self.keep(name, {})
        seen: set[str] = set()
        for number in range(count):
            key = self.key(name)
            if key in seen:
                raise self.refusal(f"a key of {name!r} comes twice", "every key once", repr(key)[:80])
            if key == MARK:
                if number or count != 3:
                    raise self.refusal(f"{name!r} is not chunked as Flax does it", f"{MARK}, shape, chunks", "others")
                if (entry := self.chunked(name)) is not None:
                    self.entries[self.named(name)] = entry
                return
            seen.add(key)
            self.below(name, key, depth)

    def chunked(self, name: str | None) -> Entry | None:
        """The array whose flat pieces follow; None if it is left out."""
        if (mark := self.head()[:2]) != ("bool", 1):
            raise self.refusal(f"{name!r} is not chunked as Flax does it", f"{MARK}: true", mark[0])
        shape, arrays = [], []
        for index in range(self.indexed(name, "shape")):
            self.index(name, index)
            shape.append(self.length(name))
        for index in range(self.indexed(name, "chunks")):
            self.index(name, index)
            kind, length, code = self.head()
            if kind != "ext" or code != ARRAY:
                raise self.refusal(f"a chunk of {name!r} is no array", "an array", kind)
            self.spend(_LEAF)
            if (array := self.array(name, length)) is not None:
                arrays.append(array)
        if not arrays and self.left and self.left[-1][0] == name:
            return None
        dtypes = {array.spec.dtype for array in arrays}
        if len(dtypes) != 1 or any(len(array.spec.shape) != 1 for array in arrays):
            raise self.refusal(f"the chunks of {name!r} do not fit together", "flat arrays of one dtype", "others")
        spec = self.spec(name, tuple(shape), dtypes.pop())
        size = sum(array.spec.size for array in arrays)
        if spec.size != size:
            raise self.refusal(f"the chunks of {name!r} do not fill its shape", f"{spec.size} elements", f"{size}")
        begins = accumulate((array.spec.nbytes for array in arrays), initial=0)
        first, *rest = [(begin, str(self.path), array.offset) for begin, array in zip(begins, arrays, strict=False)]
        return Entry(spec, Extent(str(self.path), first[2], tuple(rest)))

    def indexed(self, name: str | None, word: str) -> int:
        """How many items the map of a part of a chunked array has."""
        key = self.key(name)
        kind, count, _ = self.head()
        if key != word or kind != "map":
            raise self.refusal(f"{name!r} is not chunked as Flax does it", f"a map {word!r}", f"{kind} {key!r}"[:80])
        return int(count)

    def index(self, name: str | None, index: int) -> None:
        if (key := self.key(name)) != str(index):
            raise self.refusal(f"the parts of {name!r} are not in order", repr(str(index)), repr(key)[:80])

    def array(self, name: str | None, length: int) -> _Array | None:
        """An array in an extension value of `length` bytes: (shape, name of the dtype, bytes). None if it is left out,
        since there are no tensors of its dtype here."""
        end = self.at + length
        kind, count, _ = self.head()
        axes_kind, axes, _ = self.head() if (kind, count) == ("array", 3) else ("", 0, 0)
        if axes_kind != "array" or axes > MAX_NDIM:
            raise self.refusal(f"the array {name!r} is not complete", "a shape, a dtype and bytes", axes_kind or kind)
        shape = tuple(self.length(name) for _ in range(axes))
        kind, count, _ = self.head()
        word = self.decode(count) if kind == "str" else ""
        dtype = BY_NAME.get(word)
        if dtype is None or dtype.name != word or not dtype.array:
            foreign = foreign_dtype(word)
            if foreign is not None and name is not None and self.at <= end:
                self.skip(end - self.at)
                self.leave(name, f"an array of {foreign}")
                return None
            near = nearest(word, [dtype.name for dtype in DTYPES if dtype.array])
            raise self.refusal(f"the dtype of {name!r} is not known", " ".join(near) or "one of NumPy", repr(word)[:80])
        spec = self.spec(name, shape, dtype)
        kind, count, _ = self.head()
        if kind != "bin" or count != spec.nbytes or self.at + count != end:
            raise self.refusal(f"the bytes of {name!r} do not fit its shape", f"{spec.nbytes} for {spec}", f"{count}")
        found = _Array(spec, self.at)
        self.skip(count)
        return found

    def spec(self, name: str | None, shape: tuple[int, ...], dtype: DType) -> Spec:
        if len(shape) > MAX_NDIM:
            raise self.refusal(f"{name!r} has an impossible shape", f"at most {MAX_NDIM} axes", str(list(shape))[:120])
        if not is_possible(shape, dtype):
            raise self.refusal(f"the shape of {name!r} is too large", "fewer than 2^63 bits", str(list(shape))[:120])
        return Spec(shape, dtype)

    def complex(self, name: str | None, length: int) -> complex:
        end = self.at + length
        parts = []
        kinds = [self.head()[0]]
        for _ in range(2):
            kind, size, _ = self.head()
            kinds.append(kind)
            parts.append(self.float(size) if kind == "float" else 0.0)
        if kinds != ["array", "float", "float"] or self.at != end:
            raise self.refusal(f"{name!r} is not a complex number", "two floats", "others")
        return complex(*parts)

    def float(self, size: int) -> float:
        found: tuple[float] = struct.unpack(">f" if size == 4 else ">d", self.take(size))
        return found[0]

    def length(self, name: str | None) -> int:
        """One axis of a shape."""
        kind, value, _ = self.head()
        if kind != "int" or value < 0:
            shown = str(value) if kind == "int" else kind
            raise self.refusal(f"{name!r} has an impossible shape", "lengths of 0 or more", shown)
        return value

    def keep(self, name: str | None, value: object) -> None:
        """A leaf that is no tensor."""
        if name is not None:
            self.others[self.named(name)] = value

    def named(self, name: str | None) -> str:
        """The name of a leaf, counted; the top has none."""
        if name is not None:
            self.spend(4 * len(name) + _LEAF)
        return name  # type: ignore[return-value]

    def spend(self, count: int) -> None:
        try:
            self.allowance.spend(count)
        except TooLarge as error:
            raise self.refusal("it holds too many or too long names", "a tree of tensors", str(error)) from None

    def key(self, name: str | None) -> str:
        kind, value, _ = self.head()
        if kind != "str":
            shown = repr(value)[:80] if kind == "int" else kind
            raise self.refusal("a key is no text" + (f", below {name!r}" if name else ""), "texts as keys", shown)
        return self.decode(value)

    def decode(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise self.refusal("a text is not valid", "UTF-8", str(error)) from None

    def head(self) -> tuple[str, int, int]:
        """(kind, value, code): the value of an integer, the count of items of a map or list, the length of what follows
        in bytes."""
        (byte,) = self.take(1)
        if byte < 0x80 or byte >= 0xE0:
            return "int", byte if byte < 0x80 else byte - 256, 0
        if byte < 0xC0:
            kind, value = (("map", byte & 15), ("array", byte & 15), ("str", byte & 31))[min(byte >> 4, 10) - 8]
        elif byte == 0xC0:
            return "nil", 0, 0
        elif byte in (0xC2, 0xC3):
            return "bool", int(byte == 0xC3), 0
        elif 0xD4 <= byte <= 0xD8:
            return "ext", 1 << (byte - 0xD4), struct.unpack(">b", self.take(1))[0]
        elif byte in (0xCA, 0xCB):
            return "float", 4 if byte == 0xCA else 8, 0
        elif byte in _HEADS:
            kind, form = _HEADS[byte]
            value, *code = struct.unpack(form, self.take(struct.calcsize(form)))
            if code:
                return kind, value, code[0]
        else:
            raise self.refusal("there is a byte that means nothing", "msgpack", f"{byte:#x} at {self.at - 1}")
        if kind in ("map", "array") and value << (kind == "map") > self.end - self.at:
            raise self.refusal(f"a {kind} is cut off", f"{value} items", f"{self.end - self.at} bytes")
        return kind, value, 0

    def take(self, count: int) -> bytes:
        begin = self.at
        self.skip(count)
        return self.data[begin : self.at]

    def skip(self, count: int) -> None:
        if count > self.end - self.at:
            raise self.refusal("the file is cut off", f"at least {self.at + count} bytes", f"{self.end} bytes")
        self.at += count

    def refusal(self, problem: str, expected: str, found: str) -> StorageError:
        return StorageError(
            f"not a valid Flax msgpack file: {problem}", where=str(self.path), expected=expected, found=found
        )


def _number(value: complex, spec: Spec) -> numpy.ndarray:
    import numpy as np

    return np.array(value, spec.dtype.numpy)
