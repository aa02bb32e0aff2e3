"""Random numbers that know a key and a position and nothing else, in arithmetic that is exact on every device.

Threefry-2x32 with 20 rounds makes two words of 32 bits of a key of two words and a counter of two words: Salmon,
Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Its numbers are those of the generator of
`jax.random` for the same key and counter. Normal numbers are made by the formula of Box and Muller in float64;
logarithm and cosine are polynomials of products and sums that no compiler contracts, so that two machines never differ
in a bit.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["key_of", "normal", "ranks", "uniform", "words"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_MANY = 1 << 15  # positions from which on ranks are drawn on the host by a compiled function,
_PIECE = 1 << 16  # which draws so many at once: they stay in the caches of a core

# ln(m) for m in [sqrt(1/2), sqrt(2)) is 2 atanh(s) with s = (m - 1) / (m + 1), |s| < 0.172: odd powers up to s**21
# leave an error below 1e-17. cos(2 pi t) for |t| <= 1/8 and sin likewise: Taylor's polynomials up to powers 16 and 17.
_ATANH = [2 / (2 * n + 1) for n in range(11)]
_COS = [(-1) ** n / math.factorial(2 * n) for n in range(9)]
_SIN = [(-1) ** n / math.factorial(2 * n + 1) for n in range(9)]
_SQRT_2 = math.sqrt(2)


def key_of(seed: int, name: str) -> tuple[int, int]:
    """The key of a tensor: two words of 32 bits, from the SHA-256 of the seed in decimal, a zero byte and the name."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def words(k: Any, key: tuple[Any, Any], position: Any) -> tuple[Any, Any]:
    """Two words of 32 random bits for every position, uint64 of any shape; the key is two numbers below 2**32."""
    first, second = (k.xp.asarray(word, "float64").astype("uint32") for word in key)
    keys = (first, second, first ^ second ^ k.xp.uint32(_PARITY))
    a = (position >> 32).astype("uint32") + keys[0]
    b = position.astype("uint32") + keys[1]
    for number in range(5):
        for rotation in _ROTATIONS[number % 2]:
            a += b  # in place where arrays can be changed
            left = b << k.xp.uint32(rotation)
            b >>= k.xp.uint32(32 - rotation)
            b |= left
            b ^= a
        a += keys[(number + 1) % 3]
        b += keys[(number + 2) % 3] + k.xp.uint32(number + 1)
    return a, b


def uniform(k: Any, key: tuple[Any, Any], position: Any) -> Any:
    """Numbers in [0, 1), multiples of 2**-53, float64."""
    a, b = words(k, key, position)
    # exact: products with powers of two, and a sum below 1 of multiples of 2**-53; in place where arrays can be changed
    b >>= k.xp.uint32(11)
    high, low = a.astype("float64"), b.astype("float64")
    high *= 2.0**-32
    low *= 2.0**-53
    high += low
    return high


def ranks(k: Any, key: tuple[Any, Any], position: Any, spread: tuple[Any, Any], length: int) -> Any:
    """The ranks in a row of so many elements, from 0, above which elements are kept if the one of a rank is kept
    whose number in [0, 1) is below spread[0] + spread[1] rank / (length - 1); -1 if all are: int64. The positions
    follow one another."""
    import numpy as np  # not on top: a key is no reason to import it

    numbers = (*key, *spread, float(length))
    if not isinstance(position, np.ndarray):  # nobody needs to read them
        position = position.reshape(-1)[0] + k.xp.arange(position.size, dtype="uint64").reshape(position.shape)
    elif position.size >= _MANY and (processor := _processor()) is not None:
        return _compiled_ranks(numbers, position, processor)
    return _ranks(k, numbers, position, "int32" if length < 2**31 else "int64")


@cache
def _processor() -> Any:
    """The processor as a device, None where JAX is told to do without it."""
    import jax

    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _ranks(k: Any, numbers: tuple[Any, ...], position: Any, dtype: str = "int64") -> Any:
    """`ranks` of a key, the lowest probability, how far the highest is above it, and the length of rows."""
    low, width, length = (k.xp.asarray(number, "float64") for number in numbers[2:])
    drawn = uniform(k, (numbers[0], numbers[1]), position)
    rank = k.xp.floor(k.div(k.mul(drawn - low, k.at_least(length - 1.0, 1.0)), k.at_least(width, 1e-300)))
    return k.xp.minimum(k.xp.maximum(rank, -1.0), length - 1.0).astype(dtype)


def _compiled_ranks(numbers: tuple[Any, ...], position: np.ndarray, processor: Any) -> np.ndarray:
    """Those of many positions, a piece after the other, without writing what every step comes to: whole numbers, and
    others that are rounded alike, which a compiled function gets right to the last bit."""
    import jax
    import numpy as np

    begin, pieces = position.reshape(-1)[0], []
    with jax.enable_x64(True), jax.default_device(processor):
        given = np.array(numbers, np.float64)
        for start in range(0, position.size, _PIECE):
            made = _function()((np.int32(0), np.int64(0)), given, begin + np.uint64(start))
            pieces.append(np.asarray(made)[: position.size - start])
    return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)).reshape(position.shape)


@cache
def _function() -> Any:
    """`_ranks` of `_PIECE` positions from one on, with zeros that the compiler does not know."""
    import jax
    import jax.numpy as jnp

    from .kernels import DeviceKernel

    def traced(zeros: Any, numbers: Any, begin: Any) -> Any:
        return _ranks(DeviceKernel(zeros), tuple(numbers), begin + jnp.arange(_PIECE, dtype="uint64"))

    return jax.jit(traced, compiler_options={"xla_cpu_prefer_vector_width": 512, "xla_cpu_multi_thread_eigen": False})


def normal(k: Any, key: tuple[Any, Any], position: Any) -> Any:
    """Numbers of the normal distribution with mean 0 and variance 1, float64, none beyond 6.7."""
    a, b = words(k, key, position)
    squared = k.mul(k.xp.full((), -2.0), _log(k, (a.astype("float64") + 1.0) * 2.0**-32))
    return k.mul(k.xp.sqrt(squared), _cosine(k, b))


def _log(k: Any, x: Any) -> Any:
    """The natural logarithm of normal numbers of float64."""
    raw = k.bits(x)
    exponent = (raw >> k.xp.uint64(52)).astype("int64") - 1023
    mantissa = k.from_bits((raw & k.xp.uint64(2**52 - 1)) | k.xp.uint64(1023 << 52), "float64")
    is_large = mantissa > _SQRT_2
    mantissa = k.xp.where(is_large, mantissa * 0.5, mantissa)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    power = k.xp.where(is_large, exponent + 1, exponent).astype("float64")
    return k.mul(power, k.xp.full((), math.log(2))) + k.mul(s, _polynomial(k, _ATANH, k.mul(s, s)))


def _cosine(k: Any, turns: Any) -> Any:
    """The cosine of an angle in turns of 2**-32."""
    quarter = (turns + k.xp.uint32(1 << 29)) >> k.xp.uint32(30)
    rest = (turns - (quarter << k.xp.uint32(30))).astype("int32").astype("float64")
    angle = k.mul(rest, k.xp.full((), 2 * math.pi * 2.0**-32))
    square = k.mul(angle, angle)
    cosine = _polynomial(k, _COS, square)
    sine = k.mul(angle, _polynomial(k, _SIN, square))
    value = k.xp.where(quarter % 2 == 0, cosine, sine)
    return k.xp.where((quarter == 1) | (quarter == 2), -value, value)


def _polynomial(k: Any, coefficients: list[float], x: Any) -> Any:
    """A polynomial whose coefficients begin with the constant one, by Horner's rule."""
    value = k.xp.full(x.shape, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = k.mul(value, x) + coefficient
    return value
