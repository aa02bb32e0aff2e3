"""The arithmetic of operations in NumPy: what a device computes, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.dtypes import DType
from . import lapack
from .kernels import SharedKernel, dtype_of

__all__ = ["HostKernel"]


_AT_ONCE = 1 << 16  # elements that are sorted at once: shorter steps let threads wait for Python's lock


class HostKernel(SharedKernel):
    """Exact arithmetic in NumPy."""

    xp = np

    def convert(self, x: Any, dtype: DType) -> Any:
        """As NumPy, but NaN gets the bits of a device: which of the two computes must not be seen in the result."""
        source = dtype_of(x)
        if source is dtype:
            return x
        if source.name == "bfloat16" and dtype.name == "float32":  # the bits followed by zeros
            return np.left_shift(self.bits(x), np.uint32(16), dtype=np.uint32).view(np.float32)
        made = x.astype(dtype.numpy)
        if not source.is_float or not np.isnan(x).any():
            return made
        if dtype.name == "float16":  # NumPy leaves signalling NaN as they are
            raw = self.bits(x.astype(np.float32))
            quiet = ((raw >> 16) & 0x8000) | 0x7E00 | ((raw >> 13) & 0x1FF)
            return np.where(np.isnan(x), quiet, self.bits(made)).astype(np.uint16).view(np.float16)
        if source.name == "float16" and dtype.name == "float32":
            return np.where(np.isnan(x), self.bits(made) | np.uint32(0x400000), self.bits(made)).view(np.float32)
        if source.name.endswith("fnuz") and dtype.name == "float32":  # their NaN has no sign
            return np.where(np.isnan(x), np.float32(np.nan), made)
        return made

    def bits(self, x: Any) -> Any:
        return np.asarray(x).view(f"u{x.dtype.itemsize}")

    def masked(self, x: Any, mask: Any) -> Any:
        """By the bits: `where` goes from element to element, and cannot foresee a mask that is drawn at random."""
        if x.dtype.kind != "f":
            return super().masked(x, mask)
        raw = np.negative(mask.astype(f"u{x.dtype.itemsize}"))  # all bits or none
        raw &= self.bits(x)
        return raw.view(x.dtype)

    def row(self, x: Any, number: Any) -> Any:
        return x[:, number]

    def part_of_row(self, x: Any, first: Any, size: int, number: Any) -> Any:
        return x[first : first + size, number]

    def repeat(self, count: int, step: Any, state: Any) -> Any:
        """What becomes of a state when `step(number, state)` is done for all numbers below `count` in turn."""
        for number in range(count):
            state = step(number, state)
        return state

    def settled(self, count: int, step: Any, state: Any) -> Any:
        """What becomes of a state when `step(state)` is done so many times, or until it changes nothing any more."""
        for _ in range(count):
            before, state = state, step(state)
            if all(np.array_equal(old, new) for old, new in zip(before, state, strict=True)):
                break
        return state

    def in_parts(self, function: Any, length: int, most: int) -> Any:
        """All at once: NumPy is given no more than suits the caches."""
        return function(0, length)

    def counts(self, x: Any, low: Any, width: int, count: Any) -> Any:
        """How often each of some consecutive numbers is there, and how many are above."""
        x = x[: int(count)]
        off = x - x.dtype.type(low)
        is_near = (off < width) if off.dtype.kind == "u" else (off >= 0) & (off < width)
        near = np.bincount(off[is_near].astype(np.int64), minlength=width)
        return np.append(near, np.count_nonzero((x > low) & ~is_near)).astype(np.float64)

    def how_many(self, mask: Any) -> Any:
        """How many elements are true."""
        return np.float64(np.count_nonzero(mask))

    def outranks(self, x: Any, ranks: Any) -> Any:
        """Where magnitudes have a higher rank in their row than the one given: a few rows at a time, so that all that
        is computed stays in the caches. Before the keys of a row there is one below all others, for the ranks below 0.
        """
        rows, length = x.shape
        step = max(_AT_ONCE // max(length, 1), 1)
        places, found = np.arange(length), np.empty(x.shape, bool)
        keys = np.empty((min(step, rows), length), np.int64)
        ordered = np.full((len(keys), length + 1), -1)
        ends = np.arange(1, 1 + ordered.size, length + 1).reshape(-1, 1)
        for start in range(0, rows, step):
            raw = self.bits(x[start : start + step])
            own, sorted_ = keys[: len(raw)], ordered[: len(raw)]
            np.bitwise_and(raw, 2**31 - 1, out=own)
            own <<= 32
            own += places
            sorted_[:, 1:] = own
            sorted_[:, 1:].sort(axis=1)
            at = ranks[start : start + step] + ends[: len(raw)]
            np.greater(own, sorted_.reshape(-1).take(at, mode="clip"), out=found[start : start + step])
        return found

    def over(self, x: Any, divisor: Any) -> Any:
        """x divided by a number; x itself if that is 1."""
        return x if divisor == 1 else x / divisor

    def replace(self, base: Any, index: Any, value: Any) -> Any:
        """A copy of `base` with a part replaced."""
        result = np.array(base)
        result[index] = value
        return result

    def svd(self, x: Any) -> Any:
        return np.linalg.svd(x, full_matrices=False)

    def matmul(self, a: Any, b: Any) -> Any:
        return np.matmul(a, b)

    def einsum(self, equation: str, *arrays: Any) -> Any:
        return np.einsum(equation, *arrays, dtype=arrays[0].dtype, optimize=True)

    def expect_finite(self, *operands: Any) -> None:
        if not all(np.isfinite(x).all() for x in operands):
            raise np.linalg.LinAlgError

    def gram(self, x: Any, dtype: Any) -> Any:
        """x'x: [n, n] for x: [m, n], converted to a dtype and multiplied in it, a few rows at a time."""
        if x.dtype == dtype:
            return x.T @ x
        rows = max(x.shape[1], 256)
        total = np.zeros((x.shape[1],) * 2, dtype)
        for start in range(0, x.shape[0], rows):
            part = x[start : start + rows].astype(dtype)
            total += part.T @ part
        return total

    def square(self, x: Any) -> Any:
        """The sum of the squares of x: [m, n], of which only those of a few rows are added in its own dtype."""
        rows = max((1 << 16) // x.shape[1], 1)
        return np.float64(sum(float(np.vdot(x[i : i + rows], x[i : i + rows])) for i in range(0, x.shape[0], rows)))

    def qr(self, x: Any) -> Any:
        return np.linalg.qr(x)

    def eigvalsh(self, x: Any) -> Any:
        return np.linalg.eigvalsh(x)

    def is_positive(self, x: Any) -> Any:
        """Whether a symmetric matrix of real numbers is positive definite; x is used up."""
        return lapack.is_positive(np.ascontiguousarray(x))

    def leading(self, x: Any, count: int) -> tuple[Any, Any]:
        """The largest eigenvalues of a symmetric matrix, descending, and their vectors as columns.

        Raises:
            LinAlgError: no convergence.
        """
        values, vectors = lapack.leading(x, count)
        if len(values) < count:  # bisection loses some that are equal
            values, vectors = (part[..., -count:] for part in np.linalg.eigh(x))
        return values[::-1], vectors[:, ::-1]

    def search(self, w: Any, r: int, ratio: float, rounding: float) -> Any:
        """What products with a matrix find and prove; see `lanczos.search`."""
        from .lanczos import search

        return search(self, w, r, ratio, rounding)

    def choose(self, is_first: Any, first: Any, second: Any) -> Any:
        return first() if is_first else second()

    def from_bits(self, raw: Any, dtype: Any) -> Any:
        return raw.view(dtype)

    def each(self, function: Any, *arrays: Any) -> Any:
        return [np.stack(parts) for parts in zip(*map(function, *arrays), strict=True)]
