"""The functions that expressions in plans may call, bounded in what they make."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["FUNCTIONS", "MAX_ITEMS", "Refused"]

MAX_ITEMS = 100_000  # of a list with all that is in it, or characters of a string
MAX_DIGITS = 400  # to round to: no float has more


class Refused(Exception):
    """What an expression may not do, in words."""


def _range(*bounds: int) -> list[int]:
    found = range(*bounds)
    if len(found[: MAX_ITEMS + 1]) > MAX_ITEMS:  # the length itself may be more than Python can say
        raise Refused(f"a range of more than {MAX_ITEMS} numbers")
    return list(found)


def _round(value: float, digits: int | None = None) -> float:
    if digits is not None and abs(digits) > MAX_DIGITS:
        raise Refused(f"rounding to more than {MAX_DIGITS} digits")
    return round(value) if digits is None else round(value, digits)


def _sum(values: list[float]) -> float:
    if not all(isinstance(value, int | float) for value in values):
        raise Refused("sum adds numbers; lists are joined with +")
    return sum(values)


def _join(values: Any, between: Any = "") -> str:
    if not isinstance(values, list) or not isinstance(between, str):
        raise Refused("join takes a list, and the text that is put between its items")
    words = [str(value) for value in values if not isinstance(value, list | dict)]
    if len(words) != len(values):
        raise Refused("join takes a list of numbers and texts")
    if sum(map(len, words)) + len(between) * len(words) > MAX_ITEMS:
        raise Refused(f"more than {MAX_ITEMS} characters")
    return between.join(words)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "all": all, "any": any, "bool": bool, "float": float, "int": int, "join": _join, "len": len,
    "max": max, "min": min, "range": _range, "round": _round, "sorted": sorted, "str": str, "sum": _sum,
    "ceil": math.ceil, "floor": math.floor, "sqrt": math.sqrt, "log2": math.log2,
}  # fmt: skip
