"""Shape and dtype of a tensor, and sizes in bytes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .dtypes import DType
from .errors import PlanError

__all__ = ["Spec", "format_bytes", "parse_size"]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a header tells of a tensor: shape and dtype."""

    shape: tuple[int, ...]
    dtype: DType

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed row-major tensor."""
        return self.size * self.dtype.bits // 8

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_SIZE = re.compile(r"\s*(\d{1,30})\s*(B|KB|MB|GB|TB)\s*", re.IGNORECASE | re.ASCII)
_BINARY_SIZE = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([KMGT])i?B\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str, binary: bool = False) -> int | None:
    """Bytes of a size such as `5GB` (units are powers of 1024); None for the word `none`.

    With `binary`, for budgets of the command line, it may be 1.5GiB, and GiB means the same as GB.

    Raises:
        PlanError: not a whole number with a unit, or zero.
    """
    if text == "none":
        return None
    if binary:
        found = _BINARY_SIZE.fullmatch(text)
        size = int(float(found[1]) * _UNITS[found[2].upper() + "B"]) if found else 0
    else:
        found = _SIZE.fullmatch(text)
        size = int(found[1]) * _UNITS[found[2].upper()] if found else 0
    if size == 0:
        raise PlanError(
            f"not a size: {text!r}",
            expected="'none', or a "
            + (
                "number above 0 and a unit: KiB, MiB, GiB, TiB"
                if binary
                else "whole number above 0 and a unit: B, KB, MB, GB, TB"
            )
            + " (powers of 1024)",
            hint="for example " + ("1.5GiB" if binary else "5GB"),
        )
    return size


def format_bytes(count: float) -> str:
    """A size for people: three digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 999.5 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
