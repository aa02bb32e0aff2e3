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
_SIZE = re.compile(r"\s*(\d+)\s*(B|KB|MB|GB|TB)\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str, binary: bool = False) -> int | None:
    """Bytes of a size such as `5GB` (units are powers of 1024); None for the word `none`.

    With `binary`, the spellings KiB, MiB, GiB and TiB mean the same (command-line budgets).

    Raises:
        PlanError: not a whole number with a unit, or zero.
    """
    if text == "none":
        return None
    found = _SIZE.fullmatch(re.sub(r"(?i)([kmgt])ib", r"\1B", text) if binary else text)
    if found is None or int(found[1]) == 0:
        raise PlanError(
            f"not a size: {text!r}",
            expected="'none', or a whole number above 0 and a unit: B, KB, MB, GB, TB (powers of 1024)",
            hint="for example 5GB",
        )
    return int(found[1]) * _UNITS[found[2].upper()]


def format_bytes(count: float) -> str:
    """A size for people: three digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 999.5 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
