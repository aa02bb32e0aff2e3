"""Angles and their functions in arithmetic that is exact on every device: products, sums, quotients and roots that no
compiler contracts, so that two machines never differ in a bit. All numbers are float64 scalars or arrays.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["angle_of", "cosine", "sine"]

# atan(x) / x for |x| < 0.2 is a polynomial in x**2: powers up to 22 leave an error below 1e-17. Taylor's for the sine
# of |x| <= pi / 2: powers up to 25.
_ATAN = [(-1) ** n / (2 * n + 1) for n in range(12)]
_SIN = [(-1) ** n / math.factorial(2 * n + 1) for n in range(13)]
HALVINGS = 3


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
