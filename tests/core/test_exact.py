"""Keys of values: the same only for what is the same to the last bit."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.exact import exact

NAN = struct.unpack("<d", (0x7FF8000000000123).to_bytes(8, "little"))[0]


@dataclass(frozen=True)
class Held:
    number: Any


def same(a: Any, b: Any) -> bool:
    """By type and bits, written the slow way."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Held):
        return same(a.number, b.number)
    return bool(a == b)


NUMBERS = st.sampled_from([0.0, -0.0, 0, False, 1, 1.0, True, float("nan"), NAN, -float("nan"), "1", None])
VALUES = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=2).map(tuple) | inner.map(Held), max_leaves=4)


@given(VALUES, VALUES)
def test_two_keys_are_equal_exactly_where_types_and_bits_are(a: Any, b: Any) -> None:
    assert (exact(a) == exact(b)) is same(a, b)
    assert hash(exact(a)) == hash(exact(a)) and exact(a) == exact(a)
