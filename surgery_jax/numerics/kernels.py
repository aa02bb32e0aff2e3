"""What operations compute with: the same exact arithmetic on a device (`DeviceKernel`) and in NumPy (`host_kernel`).

Exact means: every operation by itself, with IEEE rounding to nearest even in the dtype that the plan language names.
Two things in XLA work against that. It contracts a product and a sum into one fused operation: products pass through a
fence, an exclusive or with a run-time zero that the compiler cannot remove. And on CPU and TPU it flushes subnormal
numbers: a device function reports whether its inputs are large enough that none can appear (`numerics.magnitude`);
where they are not, the same operations run in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.dtypes import BY_NAME, DType, by_numpy

__all__ = ["DeviceKernel", "SharedKernel", "dtype_of"]


_PLACES = 64  # at which a device counts what is not among the numbers that are wanted


def dtype_of(array: Any) -> DType:
    """The dtype of an array."""
    found = by_numpy(np.dtype(array.dtype))
    assert found is not None, array.dtype
    return found


def _wide(dtype: DType) -> DType:
    """Floats below 32 bits are computed in float32."""
    return BY_NAME["float32"] if dtype.is_float and dtype.bits < 32 else dtype


class SharedKernel:
    """What all kernels share: written once, in the array module `xp`."""

    xp: Any

    def is_float(self, x: Any) -> bool:
        return dtype_of(x).is_float

    def dtype(self, x: Any) -> DType:
        """The dtype of an array."""
        return dtype_of(x)

    def widen(self, x: Any) -> Any:
        """To the dtype in which `x` is computed with; exact."""
        return self.convert(x, _wide(dtype_of(x)))

    def narrow(self, x: Any, like: Any) -> Any:
        """Back to the dtype of `like`, rounded once."""
        return self.convert(x, dtype_of(like))

    def number(self, value: Any, like: Any) -> Any:
        """A number of the plan, rounded to the dtype of `like`."""
        return self.xp.asarray(value, np.float64).astype(like.dtype)

    def add(self, a: Any, b: Any) -> Any:
        return a | b if a.dtype == bool else a + b

    def sub(self, a: Any, b: Any) -> Any:
        return a - b

    def mul(self, a: Any, b: Any) -> Any:
        return a & b if a.dtype == bool else self.fence(a * b)

    def fence(self, product: Any) -> Any:
        return product

    def div(self, a: Any, b: Any) -> Any:
        return a / b

    def expect_finite(self, *operands: Any) -> None:
        """On the host refuse NaN and infinity; a device function has a verdict about them."""

    def at_least(self, x: Any, bound: Any) -> Any:
        return self.xp.where(x < bound, bound, x)

    def at_most(self, x: Any, bound: Any) -> Any:
        return self.xp.where(x > bound, bound, x)

    def cast(self, x: Any, dtype: DType) -> Any:
        """Conversion as the plan language says: narrow floats from anything but float32 go by way of float32."""
        source = dtype_of(x)
        if dtype.kind == "b":
            return ~self.is_zero(x)
        if source.kind == "c" and dtype.kind != "c":
            x, source = x.real, BY_NAME["float32"]
        if source.is_float and source.bits < 32:
            x, source = self.convert(x, BY_NAME["float32"]), BY_NAME["float32"]
        if source.is_float and dtype.is_integer:
            return self.truncate(x, dtype)
        if dtype.is_float and dtype.bits < 32:
            x = self.convert(x, BY_NAME["float32"])
        if dtype.name == "float8_e5m2":  # else the compiler joins two conversions into one with another NaN
            x = self.xp.where(x != x, np.float32(np.nan), x)
        return self.convert(x, dtype)

    def truncate(self, x: Any, dtype: DType) -> Any:
        """Float to integer toward zero; what does not fit becomes the nearest integer that does, NaN becomes 0."""
        low, high = (
            (0, 2**dtype.bits - 1) if dtype.kind == "u" else (-(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1) - 1)
        )
        # the first float above every fitting value: a power of two, exact in every float dtype
        above, below = float(high + 1), float(low)
        inside = self.xp.where((x >= below) & (x < above), x, self.xp.zeros((), x.dtype))
        whole = self.convert(inside, dtype)
        info = np.dtype(dtype.numpy).type
        whole = self.xp.where(x >= above, info(high), whole)
        return self.xp.where(x < below, info(low), whole)

    def magnitude(self, x: Any) -> Any:
        """Absolute values in float64."""
        if dtype_of(x).kind == "b":
            return x.astype(np.float64)
        if x.dtype == np.float32:
            return self.xp.abs(x).astype(np.float64)
        return self.xp.abs(x.astype(np.complex128 if dtype_of(x).kind == "c" else np.float64))

    def distance(self, a: Any, b: Any) -> Any:
        """Absolute differences in float64."""
        wide = np.complex128 if dtype_of(a).kind == "c" else np.float64
        return self.xp.abs(a.astype(wide) - b.astype(wide))

    def convert(self, x: Any, dtype: DType) -> Any:
        return x.astype(dtype.numpy)

    def is_zero(self, x: Any) -> Any:
        """Elementwise, -0 too, and never fooled by subnormal numbers."""
        dtype = dtype_of(x)
        if dtype.name == "float8_e8m0fnu":
            return self.xp.zeros(x.shape, bool)  # it has no zero
        if not dtype.is_float:
            return ~x if dtype.kind == "b" else x == 0
        bits = self.bits(x)
        if dtype.name.endswith("fnuz"):
            return bits == 0  # there is no -0: its bits are NaN
        return (bits << 1) == 0

    def same(self, a: Any, b: Any) -> Any:
        """Elementwise equality: NaN is unequal, -0 equals 0, and subnormal numbers count."""
        dtype = dtype_of(a)
        if not dtype.is_float:
            return a == b
        left, right = self.bits(a), self.bits(b)
        return ((left == right) & ~self.is_nan(a)) | (self.is_zero(a) & self.is_zero(b))

    def is_nan(self, x: Any) -> Any:
        dtype = dtype_of(x)
        if dtype.bits >= 16:
            magnitude = self.bits(x) & np.dtype(f"u{dtype.itemsize}").type(2 ** (dtype.bits - 1) - 1)
            infinity = np.array(np.inf, dtype.numpy).view(f"u{dtype.itemsize}")[()]
            return magnitude > infinity
        wide = self.convert(x, BY_NAME["float32"])
        return wide != wide

    def masked(self, x: Any, mask: Any) -> Any:
        return self.xp.where(mask, x, self.xp.zeros((), x.dtype))

    def bits(self, x: Any) -> Any:
        raise NotImplementedError


class DeviceKernel(SharedKernel):
    """Exact arithmetic inside a function that is being traced. `zeros` are run-time zeros of 32 and 64 bits."""

    def __init__(self, zeros: tuple[Any, Any]) -> None:
        import jax
        import jax.numpy as jnp

        self.jax, self.xp, self.zeros = jax, jnp, zeros

    def bits(self, x: Any) -> Any:
        return self.jax.lax.bitcast_convert_type(x, f"uint{x.dtype.itemsize * 8}")

    def convert(self, x: Any, dtype: DType) -> Any:
        if x.dtype == BY_NAME["bfloat16"].numpy and dtype.name == "float32":
            # the bits followed by zeros, so that no arithmetic can flush a subnormal number
            wide = self.jax.lax.convert_element_type(self.bits(x), np.uint32) << np.uint32(16)
            return self.jax.lax.bitcast_convert_type(wide, np.float32)
        return super().convert(x, dtype)

    def fence(self, product: Any) -> Any:
        """Keep the compiler from contracting this product with a sum: an exclusive or with a zero it does not know."""
        if product.dtype not in (np.float32, np.float64):
            return product
        zero = self.zeros[product.dtype.itemsize // 8]
        raw = self.jax.lax.bitcast_convert_type(product, zero.dtype) ^ zero
        return self.jax.lax.bitcast_convert_type(raw, product.dtype)

    def div(self, a: Any, b: Any) -> Any:
        """a / b. By a number XLA multiplies with its reciprocal, which rounds twice: so every element gets a divisor of
        its own, whose bits are those of the number and of a zero that the compiler does not know."""
        if a.ndim == 0 or self.xp.ndim(b) or a.dtype not in (np.float32, np.float64):
            return a / b
        zero = self.zeros[a.dtype.itemsize // 8]
        unknown = self.jax.lax.bitcast_convert_type(a, zero.dtype) & zero
        raw = self.jax.lax.bitcast_convert_type(self.xp.asarray(b, a.dtype), zero.dtype) ^ unknown
        return a / self.jax.lax.bitcast_convert_type(raw, a.dtype)

    def counts(self, x: Any, low: Any, width: int, count: Any) -> Any:
        """How often each of some consecutive numbers is there, and how many are above. All others are counted beyond
        them, in turn at many places: adding to one place again and again takes its time."""
        at = self.xp.arange(x.shape[0], dtype=np.int32)
        low = self.xp.asarray(low).astype(x.dtype)
        is_above = (at < self.xp.asarray(count).astype(np.int32)) & (x >= low)
        off = x - low
        beyond = width + (at & (_PLACES - 1)) + self.xp.where(is_above, 0, _PLACES)
        index = self.xp.where(is_above & (off < width), off.astype(np.int32), beyond.astype(np.int32))
        found = self.xp.zeros(width + 2 * _PLACES, np.int32).at[index].add(1, mode="promise_in_bounds")
        above = self.xp.sum(found[width : width + _PLACES]).reshape(1)
        return self.xp.concatenate([found[:width], above]).astype(np.float64)

    def how_many(self, mask: Any) -> Any:
        """How many elements are true."""
        return self.xp.sum(mask, dtype=np.int64).astype(np.float64)

    def outranks(self, x: Any, ranks: Any) -> Any:
        """Where magnitudes have a higher rank in their row than the one given."""
        keys = (self.bits(x) & np.uint32(2**31 - 1)).astype(np.int64) << 32
        keys = keys + self.xp.arange(x.shape[1], dtype=np.int64)
        return (ranks < 0) | (keys > self.at_ranks(self.in_order(keys), ranks))

    def at_ranks(self, ordered: Any, ranks: Any) -> Any:
        """What has a rank in its row, for every element; anything for ranks below 0."""
        rows, length = ordered.shape
        dtype = np.int32 if ordered.size < 2**31 else np.int64
        place = self.xp.maximum(ranks, 0).astype(dtype) + self.xp.arange(rows, dtype=dtype).reshape(-1, 1) * length
        return ordered.reshape(-1).at[place].get(mode="promise_in_bounds")

    def in_order(self, x: Any) -> Any:
        """The elements of every row in ascending order."""
        return self.xp.sort(x, axis=1)

    def over(self, x: Any, divisor: Any) -> Any:
        return x / divisor

    def row(self, x: Any, number: Any) -> Any:
        return self.part_of_row(x, 0, x.shape[0], number)

    def part_of_row(self, x: Any, first: Any, size: int, number: Any) -> Any:
        # by the bits: XLA takes slices of bfloat16 on a CPU by way of float32
        raw = self.bits(x) if x.dtype == BY_NAME["bfloat16"].numpy else x
        rest = x.shape[2:]
        found = self.jax.lax.dynamic_slice(raw, (first, number, *(0 for _ in rest)), (size, 1, *rest))
        return self.from_bits(found.reshape(size, *rest), x.dtype)

    def repeat(self, count: int, step: Any, state: Any) -> Any:
        return self.jax.lax.fori_loop(0, count, step, state)

    def settled(self, count: int, step: Any, state: Any) -> Any:
        return self.repeat(count, lambda _, held: step(held), state)

    def in_parts(self, function: Any, length: int, most: int) -> Any:
        if length <= most or length % most:
            return function(0, length)

        def parts() -> Any:  # of a known number: XLA takes twice as long for a loop whose end it learns at run time
            numbers = self.xp.arange(0, length, most)
            found = self.jax.lax.map(lambda first: function(first, most), numbers)
            return found.reshape(length, *found.shape[2:])

        return self.jax.lax.platform_dependent(cpu=parts, default=lambda: function(0, length))

    def replace(self, base: Any, index: Any, value: Any) -> Any:
        return base.at[index].set(value)

    def svd(self, x: Any) -> Any:
        return self.xp.linalg.svd(x, full_matrices=False)

    def matmul(self, a: Any, b: Any) -> Any:
        return self.xp.matmul(a, b, precision=self.jax.lax.Precision.HIGHEST)

    def einsum(self, equation: str, *arrays: Any) -> Any:
        return self.xp.einsum(equation, *arrays, precision=self.jax.lax.Precision.HIGHEST)

    def gram(self, x: Any, dtype: Any) -> Any:
        wide = x.astype(dtype)
        return self.matmul(wide.T, wide)

    def square(self, x: Any) -> Any:
        return self.xp.sum(self.xp.square(x), dtype=np.float64)

    def qr(self, x: Any) -> Any:
        return self.xp.linalg.qr(x)

    def eigvalsh(self, x: Any) -> Any:
        return self.xp.linalg.eigvalsh(x)

    def is_positive(self, x: Any) -> Any:
        return self.xp.all(self.xp.isfinite(self.xp.linalg.cholesky(x)))

    def leading(self, x: Any, count: int) -> tuple[Any, Any]:
        values, vectors = self.xp.linalg.eigh(x)
        return values[::-1][:count], vectors[:, ::-1][:, :count]

    def search(self, w: Any, r: int, ratio: float, rounding: float) -> None:
        """Nothing: next to the way there, a device multiplies large matrices at no cost."""

    def choose(self, is_first: Any, first: Any, second: Any) -> Any:
        """The result of one of two functions; only that one is computed."""
        return self.jax.lax.cond(is_first, first, second)

    def from_bits(self, raw: Any, dtype: Any) -> Any:
        return raw if raw.dtype == dtype else self.jax.lax.bitcast_convert_type(raw, dtype)

    def each(self, function: Any, *arrays: Any) -> Any:
        """The results of a function for every slice of the leading axis, one after the other, stacked."""
        return self.jax.lax.map(lambda slices: function(*slices), arrays)
