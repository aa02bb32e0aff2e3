"""Damage to bytes, whatever they mean."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

__all__ = ["MUTATIONS"]

NUMBERS = (b"0", b"-1", b"1e999", b"18446744073709551615", b"9" * 300, b"NaN", b"null", b'"x"', b"[]", b"{}", b"true")
BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xed\xa0\x80")


def _flip(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _replace(data: bytes, draw: random.Random) -> bytes:
    piece = draw.choice(BYTES)
    at = draw.randrange(len(data))
    return data[:at] + piece + data[at + len(piece) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    piece = data[at : at + draw.randrange(1, 64)]
    return data[:at] + piece * draw.choice((2, 3, 1000)) + data[at + len(piece) :]


def _number(data: bytes, draw: random.Random) -> bytes:
    """One number, or word, of a text becomes another."""
    head = data[:65536]
    found = list(re.finditer(rb"\d+|true|false|null", head))
    if not found:
        return _replace(data, draw)
    match = draw.choice(found)
    return data[: match.start()] + draw.choice(NUMBERS) + data[match.end() :]


def _swap(data: bytes, draw: random.Random) -> bytes:
    a, b = sorted(draw.randrange(len(data)) for _ in range(2))
    length = draw.randrange(1, 32)
    return data[:a] + data[b : b + length] + data[a + length : b] + data[a : a + length] + data[b + length :]


def _nest(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return (
        data[:at]
        + draw.choice((b"[", b"{", b'{"a":', b"(", b"\x91", b"\x81\xa1a")) * draw.choice((50, 5000))
        + data[at:]
    )


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _cut, _replace, _repeat, _number, _number, _swap, _nest,
)  # fmt: skip
