"""Angles and their functions, exponentials and logarithms in arithmetic that is exact on every device: products, sums,
quotients and roots that no compiler contracts, so that two machines never differ in a bit, as those of libraries do,
which choose by the processor. All numbers are float64 scalars or arrays.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["angle_of", "cosine", "exponential", "logarithm", "sine"]

# atan(x) / x for |x| < 0.2 is a polynomial in x**2: powers up to 22 leave an error below 1e-17. Taylor's for the sine
# of |x| <= pi / 2: powers up to 25.
_ATAN = [(-1) ** n / (2 * n + 1) for n in range(12)]
_SIN = [(-1) ** n / math.factorial(2 * n + 1) for n in range(13)]
HALVINGS = 3

# Taylor's for the exponential of |x| <= log(2) / 2: powers up to 13 leave an error below 1e-17; and for log(y) / 2 s
# with s = (y - 1) / (y + 1) of y within a factor of sqrt(2) of 1: powers of s**2 up to 11, below 1e-18.
_EXP = [1 / math.factorial(n) for n in range(14)]
_LOG = [1 / (2 * n + 1) for n in range(12)]
# log(2) in two parts, the first of so few bits that its products with exponents are exact (fdlibm, `e_exp.c`)
LOG2 = (6.93147180369123816490e-01, 1.90821492927058770002e-10)
_SMALLEST = -708.0  # smaller exponentials are subnormal numbers, which not every device has
_BIAS, _FRACTION = 1023, 52  # of the exponent of a float64, and the bits after it


def angle_of(k: Any, cosine: Any) -> Any:
    """The angle in [0, pi] of a cosine in [-1, 1]."""
    rest = k.xp.sqrt((1.0 - cosine) / _at_least(k, 1.0 + cosine, 2.0**-104))  # tan(angle / 2)
    is_large = rest > 1.0
    x = k.xp.where(is_large, 1.0 / k.xp.where(is_large, rest, 1.0), rest)
    for _ in range(HALVINGS):  # tan(a / 2) = tan a / (1 + sqrt(1 + tan**2 a))
        x = x / (1.0 + k.xp.sqrt(1.0 + k.mul(x, x)))
    angle = k.mul(k.mul(x, _polynomial(k, _ATAN, k.mul(x, x))), _constant(k, 2.0**HALVINGS))
    half = k.xp.where(is_large, math.pi / 2 - angle, angle)
    return half + half


def sine(k: Any, angle: Any) -> Any:
    """The sine of an angle in [-pi, pi]."""
    x = k.xp.where(angle > math.pi / 2, math.pi - angle, k.xp.where(angle < -math.pi / 2, -math.pi - angle, angle))
    return k.mul(x, _polynomial(k, _SIN, k.mul(x, x)))


def cosine(k: Any, angle: Any) -> Any:
    """The cosine of an angle in [-pi, pi]."""
    half = sine(k, k.mul(angle, _constant(k, 0.5)))
    return 1.0 - (k.mul(half, half) + k.mul(half, half))


def exponential(k: Any, x: Any) -> Any:
    """e to the power of numbers that are not above 0; 0 below -708."""
    held = k.xp.where(x < _SMALLEST, _SMALLEST, x)
    power = k.xp.floor(k.mul(held, _constant(k, 1 / math.log(2))) + 0.5)
    raised = _polynomial(k, _EXP, (held - k.mul(power, _constant(k, LOG2[0]))) - k.mul(power, _constant(k, LOG2[1])))
    scale = k.from_bits((power.astype("int64") + _BIAS).astype("uint64") << _FRACTION, "float64")
    return k.xp.where(x < _SMALLEST, 0.0, k.mul(raised, scale))


def logarithm(k: Any, x: Any) -> Any:
    """The natural logarithm of positive numbers that are not subnormal."""
    raw = k.bits(x)
    fraction = k.from_bits((raw & ((1 << _FRACTION) - 1)) | (_BIAS << _FRACTION), "float64")
    is_large = fraction > math.sqrt(2)
    near = k.xp.where(is_large, k.mul(fraction, _constant(k, 0.5)), fraction)
    power = (raw >> _FRACTION).astype("float64") - k.xp.where(is_large, _BIAS - 1.0, float(_BIAS))
    s = (near - 1.0) / (near + 1.0)
    found = k.mul(s + s, _polynomial(k, _LOG, k.mul(s, s)))
    found = k.mul(power, _constant(k, LOG2[0])) + (k.mul(power, _constant(k, LOG2[1])) + found)
    return k.xp.where(k.is_nan(x), x, found)


def _at_least(k: Any, x: Any, least: float) -> Any:
    return k.xp.where(x > least, x, least)


def _constant(k: Any, value: float) -> Any:
    return k.xp.asarray(value, "float64")


def _polynomial(k: Any, coefficients: list[float], x: Any) -> Any:
    """A polynomial whose coefficients begin with the constant one, by Horner's rule."""
    value = k.xp.zeros(x.shape, "float64") + coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = k.mul(value, x) + coefficient
    return value
