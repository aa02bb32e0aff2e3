"""How small results can get: decides when a device that flushes subnormal numbers still computes exactly.

A `Bound` says of all finite values of a tensor: none but zero is below 2**least, and every one is a multiple of
2**unit. Bounds of the inputs follow from one threshold that the device function tests; operations derive the bounds of
their results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..core.dtypes import DType

__all__ = ["Bound", "has_zero", "threshold_bits"]

HUGE = 1 << 20  # the bound of a tensor that is all zeros, infinities or NaN


@dataclass(frozen=True, slots=True)
class Bound:
    """2**least <= |x| for every finite x but zero; every finite x is a multiple of 2**unit."""

    least: int
    unit: int

    def times(self, other: Bound) -> Bound:
        """Of exact products."""
        return Bound(self.least + other.least, self.unit + other.unit)

    def plus(self, other: Bound) -> Bound:
        """Of exact sums: cancellation can leave one unit."""
        unit = min(self.unit, other.unit)
        return Bound(unit, unit)

    def either(self, other: Bound) -> Bound:
        """Of values of one or the other."""
        return Bound(min(self.least, other.least), min(self.unit, other.unit))

    def of(self, value: float) -> Bound:
        """Of a number of the plan, rounded to float32 at the coarsest."""
        value = float(value)
        if value == 0 or not math.isfinite(value):
            return Bound(HUGE, HUGE)
        mantissa, exponent = math.frexp(value)
        whole = int(abs(mantissa) * 2**53)
        trailing = (whole & -whole).bit_length() - 1
        return Bound(exponent - 1, exponent - 53 + trailing)

    def rounded(self, dtype: DType) -> Bound:
        """Of the same values rounded to a dtype."""
        precision, smallest = _float_format(dtype)
        unit = max(self.unit, min(self.least, HUGE) - precision + 1, smallest)
        return Bound(max(self.least, smallest), unit)


@cache
def _float_format(dtype: DType) -> tuple[int, int]:
    """Significant bits, and the exponent of the smallest subnormal number."""
    import ml_dtypes

    info: Any = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
    return int(info.nmant) + 1, round(math.log2(float(info.smallest_subnormal)))


def of_input(dtype: DType, threshold: int) -> Bound:
    """The bound of an input whose non-zero elements are at least 2**threshold."""
    if not dtype.is_float:
        return Bound(0, 0)
    precision, smallest = _float_format(dtype)
    least = max(threshold, smallest)
    return Bound(least, max(least - precision + 1, smallest))


def smallest_normal(dtype: DType) -> int:
    """Exponent below which results of this dtype are flushed; only float32 and float64 are computed in."""
    return -1022 if dtype.bits == 64 else -126


def has_zero(dtype: DType) -> bool:
    """Whether a float dtype has a zero, and a sign: all but one do."""
    return dtype.name != "float8_e8m0fnu"


def threshold_bits(dtype: DType, threshold: int) -> int:
    """The bits of 2**threshold in a dtype, as an unsigned integer; 1 if every element but zero is at least
    that large."""
    import numpy as np

    if not dtype.is_float or dtype.bits < 8:
        return 1
    smallest = _float_format(dtype)[1]
    if threshold <= smallest:
        return 1
    raw = int(np.array(2.0**threshold, np.float64).astype(dtype.numpy).view(f"u{dtype.itemsize}"))
    return raw if has_zero(dtype) else raw + 1
