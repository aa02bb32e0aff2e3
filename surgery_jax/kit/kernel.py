"""What operations compute with: a `Kernel` is exact arithmetic, once for a device and once in NumPy.

`numerics.kernels` and `numerics.host_kernel` have these, `numerics.mesh_kernel` a third for what is spread over several
devices. An operation is written once against this interface and gives the same bits with all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ..core.dtypes import DType
from ..numerics.magnitude import Bound

__all__ = ["Array", "Bound", "Kernel"]

T = TypeVar("T")


class Array(Protocol):
    """Elements in the memory of the host, on a device, or those of a function that is being traced.

    Of the arithmetic on it only what does not round, and sums and differences, is exact everywhere: products must come
    from `Kernel.mul`, or a compiler may join them with a sum.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ndim(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def dtype(self) -> Any:
        """That of NumPy, which compares equal to its name."""

    @property
    def real(self) -> Array: ...

    @property
    def imag(self) -> Array: ...

    @property
    def T(self) -> Array: ...

    def astype(self, dtype: Any, /) -> Array: ...

    def reshape(self, *shape: Any) -> Array: ...

    def transpose(self, *axes: Any) -> Array: ...

    def __getitem__(self, index: Any, /) -> Array: ...

    def __float__(self) -> float: ...

    def __add__(self, other: Any, /) -> Array: ...

    def __radd__(self, other: Any, /) -> Array: ...

    def __sub__(self, other: Any, /) -> Array: ...

    def __rsub__(self, other: Any, /) -> Array: ...

    def __neg__(self) -> Array: ...

    def __truediv__(self, other: Any, /) -> Array: ...

    def __rtruediv__(self, other: Any, /) -> Array: ...

    def __floordiv__(self, other: Any, /) -> Array: ...

    def __mod__(self, other: Any, /) -> Array: ...

    def __mul__(self, other: Any, /) -> Array: ...

    def __rmul__(self, other: Any, /) -> Array: ...

    def __eq__(self, other: object, /) -> Array: ...  # type: ignore[override]

    def __ne__(self, other: object, /) -> Array: ...  # type: ignore[override]

    def __lt__(self, other: Any, /) -> Array: ...

    def __le__(self, other: Any, /) -> Array: ...

    def __gt__(self, other: Any, /) -> Array: ...

    def __ge__(self, other: Any, /) -> Array: ...

    def __and__(self, other: Any, /) -> Array: ...

    def __or__(self, other: Any, /) -> Array: ...

    def __lshift__(self, other: Any, /) -> Array: ...

    def __rshift__(self, other: Any, /) -> Array: ...


class Arrays(Protocol):
    """An array module, as far as operations use it: functions that give arrays."""

    def __getattr__(self, name: str, /) -> Callable[..., Array]: ...


class Kernel(Protocol):
    """Arithmetic in which every operation rounds by itself, to nearest even, in the dtype that the plan names."""

    @property
    def xp(self) -> Arrays:
        """The array module: NumPy, or `jax.numpy`. For what moves, compares or makes elements, and for elementwise
        functions; what multiplies or sums in an order of its own is a method here."""

    # -- dtypes -------------------------------------------------------------------------------------------------

    def dtype(self, x: Array) -> DType:
        """The dtype of an array."""

    def is_float(self, x: Array) -> bool:
        """Whether its elements are floating-point numbers."""

    def widen(self, x: Array) -> Array:
        """To the dtype in which it is computed with, which is float32 for narrower floats; exact."""

    def narrow(self, x: Array, like: Array) -> Array:
        """To the dtype of `like`, rounded once."""

    def cast(self, x: Array, dtype: DType) -> Array:
        """Conversion as `cast` of the plan language does it: see `ops.cast`."""

    def truncate(self, x: Array, dtype: DType) -> Array:
        """Floats to integers, toward zero; what does not fit becomes the nearest that does, NaN becomes 0."""

    def convert(self, x: Array, dtype: DType) -> Array:
        """Conversion in one step, without the rules of the plan language."""

    def number(self, value: float, like: Array) -> Array:
        """A number of the plan, rounded to the dtype of `like`; it may be an argument of a traced function."""

    # -- arithmetic ---------------------------------------------------------------------------------------------

    def add(self, a: Array, b: Array) -> Array:
        """a + b of one dtype; integers wrap, booleans are ored."""

    def sub(self, a: Array, b: Array) -> Array:
        """a - b of one dtype; integers wrap."""

    def mul(self, a: Array, b: Array) -> Array:
        """a * b of one dtype, never joined with a sum; integers wrap, booleans are anded."""

    def div(self, a: Array, b: Array | float) -> Array:
        """a / b for floats of one dtype, by a number too, rounded once."""

    def at_least(self, x: Array, bound: Array | float) -> Array:
        """x where it is not below the bound; NaN stays."""

    def at_most(self, x: Array, bound: Array | float) -> Array:
        """x where it is not above the bound; NaN stays."""

    def magnitude(self, x: Array) -> Array:
        """Absolute values, in float64."""

    def distance(self, a: Array, b: Array) -> Array:
        """Absolute differences, in float64."""

    # -- bits ---------------------------------------------------------------------------------------------------

    def bits(self, x: Array) -> Array:
        """The bits of the elements, as unsigned integers of the same width."""

    def from_bits(self, raw: Array, dtype: Any) -> Array:
        """Elements of a dtype of the same width from their bits."""

    def is_zero(self, x: Array) -> Array:
        """Where elements are 0 or -0; a subnormal number is not."""

    def is_nan(self, x: Array) -> Array:
        """Where elements are NaN."""

    def same(self, a: Array, b: Array) -> Array:
        """Where elements are equal: NaN never is, -0 equals 0, subnormal numbers count."""

    def masked(self, x: Array, mask: Array) -> Array:
        """x where a mask of its shape is true, 0 elsewhere."""

    # -- parts --------------------------------------------------------------------------------------------------

    def replace(self, base: Array, index: tuple[Any, ...], value: Array) -> Array:
        """`base` with a part replaced."""

    def row(self, x: Array, number: Any) -> Array:
        """x[:, number], where the number may be traced."""

    def part_of_row(self, x: Array, first: Any, size: int, number: Any) -> Array:
        """x[first : first + size, number], where both numbers may be traced."""

    def each(self, function: Callable[..., Any], *arrays: Array) -> Any:
        """The results of a function, a tuple, for every slice of the leading axis, one after the other, stacked."""

    def repeat(self, count: int, step: Callable[[Any, T], T], state: T) -> T:
        """What becomes of a state when `step(number, state)` is done for all numbers below `count` in turn."""

    def settled(self, count: int, step: Callable[[T], T], state: T) -> T:
        """What becomes of a state when `step(state)` is done so many times, or until it changes nothing any more."""

    def in_parts(self, function: Callable[[Any, int], Array], length: int, most: int) -> Array:
        """What `function(first, size)` gives for parts of a leading axis, one after the other: slices `first` to
        `first + size`, whose results have such an axis too. A CPU does at most so many at once, so that what it adds
        to stays in the caches; others do all of them."""

    def choose(self, is_first: Any, first: Callable[[], T], second: Callable[[], T]) -> T:
        """The result of one of two functions; only that one is computed."""

    def counts(self, x: Array, low: Any, width: int, count: Any) -> Array:
        """Of the first `count` elements of a flat array of integers, how often each of the `width` numbers from `low`
        on is there, and how many are above them: float64 [width + 1]."""

    def how_many(self, mask: Array) -> Array:
        """How many elements of a mask are true: a float64."""

    def outranks(self, x: Array, ranks: Array) -> Array:
        """Where magnitudes have a higher rank in their row, from 0, than the one given; of equal ones those of lower
        positions have the lower ranks.

        x: float32 [rows, n], n < 2**32; ranks: int64, the same shape, from -1 to n - 1 -> bool.
        """

    # -- matrices -----------------------------------------------------------------------------------------------

    def matmul(self, a: Array, b: Array) -> Array:
        """a: [..., m, k] or [k], b: [..., k, n] or [k] -> [..., m, n], summed in their dtype."""

    def einsum(self, equation: str, *arrays: Array) -> Array:
        """Sums of products by an equation of axes, in their dtype."""

    def gram(self, x: Array, dtype: Any) -> Array:
        """x'x: [n, n] for x: [m, n], converted to a dtype and multiplied in it."""

    def square(self, x: Array) -> Array:
        """The sum of the squares of x: [m, n], in float64."""

    def qr(self, x: Array) -> tuple[Array, Array]:
        """x: [m, n] = q r with orthonormal columns of q: [m, min(m, n)]."""

    def svd(self, x: Array) -> tuple[Array, Array, Array]:
        """u: [m, r], s: [r] descending, vt: [r, n] with r = min(m, n)."""

    def eigvalsh(self, x: Array) -> Array:
        """The eigenvalues of a symmetric matrix, ascending."""

    def leading(self, x: Array, count: int) -> tuple[Array, Array]:
        """The largest eigenvalues of a symmetric matrix, descending, and their vectors as columns."""
