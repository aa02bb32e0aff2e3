"""JSON as it is read from anyone: what has two readings is refused, and depth is bounded."""

from __future__ import annotations

import json
from typing import NoReturn

__all__ = ["at", "read_json"]


def read_json(text: str, *, constants: bool = True) -> object:
    """The value of a JSON text, with no key twice in one object. `constants`: NaN and Infinity may be in it, as in
    configurations of models that Python wrote.

    Raises:
        ValueError: it is not that, or nested too deeply. The error of the standard library has line and column.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=None if constants else _no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def at(value: object, *keys: str) -> object:
    """What stands in nested objects at a path of keys.

    Raises:
        KeyError: there is nothing.
        TypeError: something on the way is no object.
    """
    for key in keys:
        if not isinstance(value, dict):
            raise TypeError(f"{type(value).__name__} where an object with {key!r} is expected")
        value = value[key]
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} twice in one object")
    return table


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")
