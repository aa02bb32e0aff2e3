"""Values as keys: two are one only if they are the same to the last bit and of the same type.

Python takes 0.0 and -0.0, and 1, 1.0 and True, for equal, and no NaN for itself. What is computed from them differs or
does not by other rules, so tables that share work ask for `exact` values.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Hashable
from typing import Any

from .dtypes import DType

__all__ = ["exact"]

_DOUBLE = struct.Struct("<d")


def exact(value: Any) -> Hashable:
    """What stands for a value in a table: floats by their bits, all others with their type; tuples and data classes by
    what they hold."""
    if isinstance(value, float):
        return float, _DOUBLE.pack(value)
    if isinstance(value, complex):
        return complex, _DOUBLE.pack(value.real), _DOUBLE.pack(value.imag)
    if isinstance(value, tuple):
        return type(value), *map(exact, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type | DType) and type(value).__eq__ is not _IDENTITY:
        return type(value), *(exact(getattr(value, field.name)) for field in dataclasses.fields(value))
    return type(value), value


_IDENTITY = object.__eq__
