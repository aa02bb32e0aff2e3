"""Digests of values: the same in every process, and in whatever order dictionaries and sets hold what is in them.

Two values have one digest only if they are the same to the last bit and of the same type, as `core.exact` has it.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import struct
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

from .dtypes import DType

__all__ = ["DIGEST_BYTES", "digest", "encoded"]

DIGEST_BYTES = 16
_DOUBLE = struct.Struct("<d")


def digest(*parts: bytes) -> bytes:
    """The digest of parts, which are told apart by their lengths: `DIGEST_BYTES` bytes."""
    made = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        made.update(b"%d:" % len(part))
        made.update(part)
    return made.digest()


def encoded(value: Any) -> bytes:
    """Bytes that stand for a value, and for no other: a number, a text, a pattern, a path, a type or a member of an
    enumeration; tuples, lists, sets, dictionaries and data classes by what they hold.

    Raises:
        TypeError: it is none of these, so nothing of it is known to be the same in another process.
    """
    kind = type(value)
    plain = _PLAIN.get(kind)
    if plain is not None:
        return plain(value)
    name = _name(kind)
    if isinstance(value, enum.Enum):
        return _framed(b"e", name, value.name.encode())
    if isinstance(value, tuple | list):
        return _framed(b"(", name, *map(encoded, value))
    if isinstance(value, set | frozenset):
        return _framed(b"<", *sorted(map(encoded, value)))
    if isinstance(value, Mapping):
        return _framed(b"{", *sorted(_framed(b":", encoded(key), encoded(held)) for key, held in value.items()))
    if isinstance(value, type):
        return _framed(b"t", _name(value))
    if dataclasses.is_dataclass(value):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return _framed(b"d", name, *(_framed(b":", field.encode(), encoded(held)) for field, held in fields))
    if isinstance(value, PurePath):
        return _framed(b"p", str(value).encode("utf-8", "surrogateescape"))
    raise TypeError(f"a value of {kind.__module__}.{kind.__qualname__} has no digest")


def _framed(tag: bytes, *parts: bytes) -> bytes:
    """Parts in a row, each with its length before it."""
    return tag + b"%d;" % len(parts) + b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _name(kind: type) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


_PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: b"n",
    bool: lambda value: b"1" if value else b"0",
    int: lambda value: b"i%d" % value,
    float: lambda value: b"f" + _DOUBLE.pack(value),
    complex: lambda value: b"c" + _DOUBLE.pack(value.real) + _DOUBLE.pack(value.imag),
    str: lambda value: b"s" + value.encode("utf-8", "surrogatepass"),
    bytes: lambda value: b"b" + value,
    DType: lambda value: b"y" + value.name.encode(),
    re.Pattern: lambda value: _framed(b"r", encoded(value.pattern), b"%d" % value.flags),
}
