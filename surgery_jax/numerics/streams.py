"""Random numbers that equal those of torch's CPU generator, seed for seed and bit for bit.

Plans state seeds, so a seed must mean the same numbers as in the engine the plans were written for. The generator is
MT19937; how its words become numbers follows the kernels of torch 2.13 for x86 processors with AVX2 (on others torch
itself differs in last bits):

- A uniform is the low 24 (float64: 53) bits of one word (two), as a fraction u; then `u * (high - low) + low`, rounded
  once. What rounds up to `high` becomes `low`.
- Fewer than 16 normals are made one by one, in float64. More are made in blocks of 16 from 8 + 8 uniforms: in float64
  by the C library, else in float32 by polynomials whose roundings are repeated here one for one.
- A last block that is not full gives way to one that is: the last 16 numbers are drawn anew.

Any part of a tensor can be made by itself. Everything works in blocks: beside what it
fills, a call needs a few MB.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import DType
from ..core.errors import PlanError

__all__ = ["normal", "uniform"]

Array = NDArray[Any]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Elements per block, a multiple of 16: the dozen temporaries of 128 KiB each then stay in a core's second-level cache.
BLOCK = 1 << 14
MARKS = 64  # states of generators that are remembered, 2.5 kB each
SKIPPED = 1 << 20  # words at once: meanwhile no other thread of Python runs

TWO_PI = 2 * math.pi


def _singles(*numbers: float) -> tuple[float, ...]:
    return tuple(float(np.float32(number)) for number in numbers)


# The single-precision polynomials of the Cephes library, highest power first.
LOG = _singles(
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LOG_2_LOW, LOG_2_HIGH = _singles(-2.12194440e-4, 0.693359375)  # their sum is ln 2, the high part exact in few bits
SQRT_HALF = np.float32(math.sqrt(0.5))
SIN = _singles(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = _singles(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
MINUS_PI_QUARTER = _singles(-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)  # in three parts
FOUR_OVER_PI = np.float32(4 / math.pi)


def uniform(seed: int, size: int, dtype: DType, low: float, high: float, start: int, out: Array) -> None:
    """Numbers of `[low, high)`, each as likely as the other, bit-equal to torch's: of `size` in all, those from number
    `start` on, into `out`, a flat array.

    `dtype` is float16, bfloat16, float32 or float64. Only the low 32 bits of `seed` count.

    Raises:
        PlanError: the dtype cannot hold a bound or their distance.
    """
    _check_bounds(dtype, low, high)
    wide = dtype.bits == 64
    words = _Words(seed, start * (2 if wide else 1))
    # Bounds enter the sum unrounded by 16-bit types, but an element is compared with the rounded one.
    first, last = (_narrow(np.array([bound], np.float64), dtype)[0] for bound in (low, high))
    for begin, end in _blocks(0, out.size, wide):
        part: Array
        if wide:
            part = _fma64(words.doubles(end - begin), high - low, low)
        else:
            span = np.float32(high) - np.float32(low)
            part = _narrow(_fma32(words.singles(end - begin), float(span), float(np.float32(low))), dtype)
        part[part == last] = first
        out[begin:end] = part
    if start + out.size < size:
        words.leave_mark()


def normal(seed: int, size: int, dtype: DType, mean: float, std: float, start: int, out: Array) -> None:
    """Normally distributed numbers, bit-equal to torch's: of `size` in all, those from number `start` on, into `out`, a
    flat array.

    `dtype` is float16, bfloat16, float32 or float64. Only the low 32 bits of `seed` count.
    """
    stop = start + out.size
    if size < 16:
        few = _narrow(_few_normals(_Words(seed, 0), size, mean, std), dtype)
        out[:] = few[start:stop]
        return
    wide = dtype.bits == 64
    per_element = 2 if wide else 1  # words
    transform: Callable[[Any, float, float], Array] = _box_muller_64 if wide else _box_muller_32
    rest = size % 16
    last = size - 16 if rest else size  # from here on numbers are drawn anew
    until = min(stop, last)
    begin, middle, end = start // 16 * 16, until // 16 * 16, -(-until // 16) * 16
    if begin < end:
        words = _Words(seed, begin * per_element)
        for low, high in chain(_blocks(begin, middle, wide), _blocks(middle, end, wide)):
            if low == middle:
                words.leave_mark()  # the next part begins with this block
            _put(_narrow(transform(words.draw(high - low, wide), mean, std), dtype), low, out, start, until)
        if middle == end < size:
            words.leave_mark()
    if stop > last:
        # torch draws all uniforms before it finds the last block wanting; not so for 16-bit types
        words = _Words(seed, (size if dtype.bits >= 32 else size - rest) * per_element)
        _put(_narrow(transform(words.draw(16, wide), mean, std), dtype), last, out, start, stop)


def _put(part: Array, at: int, out: Array, start: int, stop: int) -> None:
    """Elements from number `at` on into an array that begins with number `start`, up to number `stop`."""
    begin, end = max(at, start), min(at + part.size, stop)
    if begin < end:
        out[begin - start : end - start] = part[begin - at : end - at]


class _Words:
    """The 32-bit words of one MT19937 stream from a position on, as fractions.

    A stream can only be followed from its beginning, so states of the generator are remembered where somebody stopped:
    whoever wants the next part of a tensor goes on from there. A state depends on seed and position alone.
    """

    _marks: ClassVar[OrderedDict[tuple[int, int], Any]] = OrderedDict()  # by seed and position, the latest ones
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, seed: int, position: int) -> None:
        self._seed, self._at = seed & 0xFFFFFFFF, position
        if position == 0:
            self._state = np.random.RandomState(self._seed)
            return
        with self._lock:
            near = max((at for known, at in self._marks if known == self._seed and at <= position), default=0)
            state = self._marks.get((self._seed, near))
        generator = np.random.MT19937(0)
        fresh: Any = np.random.RandomState(self._seed).get_state(legacy=False)
        generator.state = fresh if state is None else state
        self._state = np.random.RandomState(generator)
        if near < position:
            while near < position:
                count = min(position - near, SKIPPED)
                generator.random_raw(count, output=False)
                near += count
            self.leave_mark()

    def leave_mark(self) -> None:
        """Remember the state, since somebody will go on from here."""
        key, state = (self._seed, self._at), self._state.get_state(legacy=False)
        with self._lock:
            self._marks[key] = state
            self._marks.move_to_end(key)
            if len(self._marks) > MARKS:
                self._marks.popitem(last=False)

    def draw(self, count: int, wide: bool) -> Array:
        """Doubles or singles."""
        return self.doubles(count) if wide else self.singles(count)

    def singles(self, count: int) -> F32:
        """`count` multiples of 2**-24 below 1."""
        words = self._next(count)
        words &= np.uint32(2**24 - 1)
        return words.astype(np.float32) * np.float32(2**-24)

    def doubles(self, count: int) -> F64:
        """`count` multiples of 2**-53 below 1."""
        words = self._next(2 * count).astype(np.uint64)
        pairs = (words[0::2] & np.uint64(2**21 - 1)) << np.uint64(32) | words[1::2]
        return pairs.astype(np.float64) * 2**-53

    def _next(self, count: int) -> NDArray[np.uint32]:
        self._at += count
        return self._state.randint(0, 2**32, count, np.uint32)


def _check_bounds(dtype: DType, low: float, high: float) -> None:
    largest = float(ml_dtypes.finfo(dtype.numpy).max)  # type: ignore[no-untyped-call]
    if not (abs(low) <= largest and abs(high) <= largest and 0 <= high - low <= largest):
        raise PlanError(
            f"{dtype.name} cannot hold uniform numbers between {low!r} and {high!r}",
            expected=f"bounds of at most {largest:.6g} in size, and no farther apart",
            hint="draw in float32 or a narrower range",
        )


def _blocks(begin: int, end: int, wide: bool) -> Iterator[tuple[int, int]]:
    step = BLOCK // 4 if wide else BLOCK  # float64 takes more steps, of twice the width
    return ((start, min(start + step, end)) for start in range(begin, end, step))


def _narrow(numbers: F32 | F64, dtype: DType) -> Array:
    """The numbers in `dtype`; in 16-bit types by way of float32, as torch converts, not in one rounding."""
    with np.errstate(over="ignore"):
        return numbers.astype(dtype.numpy) if dtype.bits >= 32 else numbers.astype(np.float32).astype(dtype.numpy)


def _few_normals(words: _Words, count: int, mean: float, std: float) -> F64:
    pairs = words.doubles(count + count % 2).reshape(-1, 2)
    radius = np.sqrt(-2 * _each(math.log1p, -pairs[:, 1]))
    theta = TWO_PI * pairs[:, 0]
    both = np.stack([radius * _each(math.cos, theta), radius * _each(math.sin, theta)], axis=1)
    return _fma64(both.reshape(-1)[:count], std, mean)


def _box_muller_64(fractions: F64, mean: float, std: float) -> F64:
    """Normals from `float64[16 * n]` fractions."""
    fractions = fractions.reshape(-1, 2, 8)
    radius = np.sqrt(-2 * _each(math.log, 1 - fractions[:, 0]))
    theta = TWO_PI * fractions[:, 1]
    both = np.stack([radius * _each(math.cos, theta), radius * _each(math.sin, theta)], axis=1)
    return _fma64(both.reshape(-1), std, mean)


def _box_muller_32(fractions: F32, mean: float, std: float) -> F32:
    """Normals from `float32[16 * n]` fractions."""
    fractions = fractions.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * _log(1 - fractions[:, 0]))
    both = np.stack(_sin_cos(np.float32(TWO_PI) * fractions[:, 1])[::-1], axis=1)
    both *= radius[:, None]
    with np.errstate(over="ignore"):
        return _fma32(both.reshape(-1), float(np.float32(std)), float(np.float32(mean)))


def _each(function: Callable[[float], float], numbers: F64) -> F64:
    """Python's `math` calls the C library, as torch does; NumPy has its own functions, which differ in last bits."""
    return np.fromiter(map(function, numbers.reshape(-1).tolist()), np.float64, numbers.size).reshape(numbers.shape)


def _log(x: F32) -> F32:
    """Natural logarithm of normal numbers above 0, with the errors of Cephes' `logf` in fused operations."""
    bits = x.view(np.int32)
    exponent = (bits >> 23) - 0x7E
    x = ((bits & 0x007FFFFF) | 0x3F000000).view(np.float32)  # the mantissa, of [1/2, 1)
    small = x < SQRT_HALF
    exponent -= small
    x = (x - np.float32(1)) + np.where(small, x, np.float32(0))
    square = x * x
    y = _polynomial(LOG, x) * x
    e = exponent.astype(np.float64)
    y = _round(y.astype(np.float64) * square + _round(e * LOG_2_LOW))
    y -= square * np.float32(0.5)
    return _round(e * LOG_2_HIGH + (x + y))


def _sin_cos(x: F32) -> tuple[F32, F32]:
    """Sine and cosine of angles in [0, 2 pi], with the errors of Cephes' `sinf` and `cosf` in fused operations."""
    octant = ((x * FOUR_OVER_PI).astype(np.int32) + 1) & ~1
    y = octant.astype(np.float64)
    for part in MINUS_PI_QUARTER:  # one after the other, because x - octant * pi/4 cancels
        x = _round(y * part + x)
    square = x * x
    cos = _polynomial(COS, square) * square
    cos = _round(cos.astype(np.float64) * square - square * np.float32(0.5)) + np.float32(1)
    sin = _polynomial(SIN, square) * square
    sin = _round(sin.astype(np.float64) * x + x)
    swapped = (octant & 2) != 0
    sign_sin = (octant & 4) << 29
    sign_cos = (~(octant - 2) & 4) << 29
    return (
        (np.where(swapped, cos, sin).view(np.int32) ^ sign_sin).view(np.float32),
        (np.where(swapped, sin, cos).view(np.int32) ^ sign_cos).view(np.float32),
    )


def _polynomial(coefficients: tuple[float, ...], x: F32) -> F32:
    """Horner's rule, one rounding per step: a float32 product is exact in float64, and its sum nearly always."""
    wide = x.astype(np.float64)
    y: F32 | float = coefficients[0]
    for coefficient in coefficients[1:]:
        total = wide * y
        total += coefficient
        y = _round(total)
    assert not isinstance(y, float)
    return y


def _round(numbers: F64) -> F32:
    return numbers.astype(np.float32)


def _fma32(x: F32, factor: float, term: float) -> F32:
    """`x * factor + term` rounded once to float32; factor and term are float32 values."""
    product = x.astype(np.float64) * factor  # exact
    total = product + term
    # Two roundings differ from one only where the first ends midway between two float32 numbers.
    midway = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    if midway.any():
        total[midway] = _to_odd(product[midway], np.full(1, term))
    return _round(total)


def _fma64(x: F64, factor: float, term: float) -> F64:
    """`x * factor + term` rounded once (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008)."""
    power_of_two = abs(math.frexp(factor)[0]) == 0.5
    huge = max(abs(factor), abs(term)) > 2.0**960  # where the splitting would overflow
    if 0 < abs(factor) < 2.0**-500 and term != 0:  # the parts of a product would themselves be rounded
        exact = (float(Fraction(each) * Fraction(factor) + Fraction(term)) for each in x.tolist())
        return np.fromiter(exact, np.float64, x.size)
    if term == 0 or power_of_two or huge:
        return x * factor + term  # exact product, or nothing to add to it
    product = x * factor
    x_high, factor_high = _high_half(x), _high_half(np.array([factor]))
    x_low, factor_low = x - x_high, factor - factor_high
    tail = ((x_high * factor_high - product) + x_high * factor_low + x_low * factor_high) + x_low * factor_low
    upper, upper_error = _two_sum(tail, np.array([term]))
    total, error = _two_sum(product, upper)
    return total + _to_odd(upper_error, error)


def _high_half(x: F64) -> F64:
    """The upper 26 bits of each mantissa (Dekker)."""
    scaled = x * 134217729.0
    return scaled - (scaled - x)


def _two_sum(a: F64, b: F64) -> tuple[F64, F64]:
    """The rounded sum, and what the rounding lost, exactly (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _to_odd(a: F64, b: F64) -> F64:
    """`a + b`; an inexact sum takes the neighbour whose last bit is 1, so that rounding once more is harmless."""
    total, error = _two_sum(a, b)
    even = (total.view(np.int64) & 1) == 0
    return np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
