"""What LoRA extraction and merging compute: factors of a change, its spectrum, and the change that factors stand for.

One operation per module, from the two stored weights: a change is never a tensor of its own. Changes are computed in
float32 (float64 if a weight is), factored in it, and rounded once to the dtype of the factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..core.dtypes import BY_NAME, DType
from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import DECOMPOSED, SUMMED, TensorOp, number
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_floats
from ..numerics.cuts import Cut, factoring_bytes, longer_side
from ..numerics.lowrank import factors, singular_values, workspace_bytes

__all__ = ["AddFactors", "ChangeEnergies", "ExtractFactors", "matrices"]

F64 = BY_NAME["float64"]


def matrices(spec: Spec | Array, transposed: bool) -> tuple[int, int, int]:
    """(number of matrices, out, in) of a weight: [out, in], or [experts, out, in]; [in, out] if transposed."""
    out, inner = spec.shape[-2:][:: -1 if transposed else 1]
    return (spec.shape[0] if len(spec.shape) == 3 else 1), out, inner


def _wide(*specs: Spec | Array) -> DType:
    """The dtype of the arithmetic on these."""
    return BY_NAME["float64" if any(spec.dtype.itemsize == 8 for spec in specs) else "float32"]


def _check(base: Spec, tuned: Spec) -> None:
    for spec in (base, tuned):
        check_floats(spec)
    if base.shape != tuned.shape:
        raise PlanError("base and tuned differ in shape", expected=str(base), found=str(tuned))
    if len(base.shape) not in (2, 3) or 0 in base.shape:
        raise PlanError("needs a matrix, or one for each expert", found=str(base))


def _matrix_spec(spec: Spec) -> Spec:
    """One matrix, in the dtype it is computed with."""
    return Spec(spec.shape[-2:], spec.dtype)


def _cut_factoring_bytes(count: int, base: Spec, tuned: Spec, rank: int) -> int:
    """What factoring a change takes of each device: also the change itself, the remainder, and factors of them."""
    item = _wide(base, tuned).itemsize
    many = base.size // (base.shape[-1] * base.shape[-2])
    factors = many * sum(base.shape[-2:]) * rank * item
    return factoring_bytes(count, base, rank, item) + 4 * _matrix_spec(base).size * item // count + 2 * factors


@dataclass(frozen=True)
class ExtractFactors(TensorOp):
    """The factors of what was changed, and how well they give it back.

    base, tuned: float[out, in] ([in, out] if transposed), or [experts, ...] -> A: [experts * room, in], experts first,
    whose first rows are A; B: [out * room * experts], which begins with the elements of B: [out, width * experts],
    ranks first; [2]: the squares of the Frobenius norms of the change and of what is missing in B @ A as it is stored,
    summed over experts, in float64. A = sqrt(S) Vt and B = U sqrt(S) of the best approximation of that rank. Of the
    `width` rows of A and columns of B those beyond the rank are zero.

    Rank and width are numbers of the run, so that matrices of one shape whose ranks differ share what is compiled for
    `room`. Experts lie within A and B, so there the width is the room.
    """

    kind = "whole"
    varies = DECOMPOSED
    needs_finite = True
    uses_lapack = True
    outputs = 3
    room: int
    method: str
    dtype: DType
    transposed: bool
    rank: float = number("of the approximation", traced=True)
    width: float = number("rows of A", traced=True)

    def infer(self, base: Spec, tuned: Spec) -> tuple[Spec, ...]:
        _check(base, tuned)
        many, out, inner = matrices(base, self.transposed)
        a, b = Spec((many * self.room, inner), self.dtype), Spec((out * self.room * many,), self.dtype)
        return (a, b, Spec((2,), F64))

    def workspace_bytes(self, base: Spec, tuned: Spec) -> int:
        spec = _matrix_spec(base)  # the change, and the remainder beside its parts and squares
        return workspace_bytes(spec, self.room) + 4 * spec.size * _wide(base, tuned).itemsize

    def cut(self, base: Spec, tuned: Spec) -> Cut:
        axis = longer_side(base)
        is_inner = (len(base.shape) - 1 - axis) == (1 if self.transposed else 0)
        return Cut((axis, axis), (1 if is_inner else None, None, None))

    def cut_workspace_bytes(self, count: int, cut: Cut, base: Spec, tuned: Spec) -> int:
        return _cut_factoring_bytes(count, base, tuned, self.room)

    def apply(self, k: Kernel, base: Array, tuned: Array) -> tuple[Array, ...]:
        one = partial(self._one, k, _wide(base, tuned))
        if base.ndim == 2:
            a, b, norms = one(base, tuned)
            return a, self._packed(k, b), norms
        a, b, norms = k.each(one, base, tuned)  # [experts, room, in], [experts, out, room], [experts, 2]
        return a.reshape(-1, a.shape[-1]), k.xp.transpose(b, (1, 2, 0)).reshape(-1), k.xp.sum(norms, axis=0)

    def _one(self, k: Kernel, wide: DType, base: Array, tuned: Array) -> tuple[Array, Array, Array]:
        change = k.sub(k.convert(tuned, wide), k.convert(base, wide))
        x = change.T if self.transposed else change
        u, s, vt = factors(k, x, self.room, self.method)
        root = k.xp.sqrt(k.xp.where(k.xp.arange(len(s)) < self.rank, s, 0))
        a, b = (k.convert(part, self.dtype) for part in (root[:, None] * vt, u * root))
        rest = x - k.matmul(k.convert(b, wide), k.convert(a, wide))
        norms = k.xp.stack([k.square(x), k.square(rest)])
        more = self.room - len(s)
        return k.xp.pad(a, ((0, more), (0, 0))), k.xp.pad(b, ((0, 0), (0, more))), norms

    def _packed(self, k: Kernel, b: Array) -> Array:
        """The first `width` columns of b: [out, room] without gaps, then zeros."""
        import numpy as np

        place = k.xp.arange(b.size)
        width = k.xp.asarray(self.width).astype(np.int64)
        row = k.xp.minimum(place // width, b.shape[0] - 1)
        return k.xp.where(place < b.shape[0] * width, b[row, place % width], k.xp.zeros((), b.dtype))


@dataclass(frozen=True)
class ChangeEnergies(TensorOp):
    """What ranks are chosen by: the energies of a change.

    base, tuned: float[out, in], or [experts, ...] -> float64[experts, 2 + count]: the square of the change's Frobenius
    norm; the energy of its rounding noise; the largest `count` squared singular values, descending.

    Rounding noise: a tuned weight is stored in steps of ulp(w) = 2**(e - p), e the exponent of w and p the bits of the
    mantissa (7 in bfloat16), so that an element that was changed is off by an error close to uniform in +-ulp / 2, of
    variance ulp**2 / 12. The energy is the sum over the changed elements; those that are not changed carry none. The
    coarser of the two dtypes counts.
    """

    kind = "whole"
    varies = DECOMPOSED
    needs_finite = True
    uses_lapack = True
    count: int
    method: str

    def infer(self, base: Spec, tuned: Spec) -> tuple[Spec, ...]:
        _check(base, tuned)
        number, out, inner = matrices(base, False)
        return (Spec((number, 2 + min(self.count, out, inner)), F64),)

    def workspace_bytes(self, base: Spec, tuned: Spec) -> int:
        return (
            workspace_bytes(_matrix_spec(base), self.count) + 2 * _matrix_spec(base).size * _wide(base, tuned).itemsize
        )

    def cut(self, base: Spec, tuned: Spec) -> Cut:
        return Cut((longer_side(base),) * 2, (None,))

    def cut_workspace_bytes(self, count: int, cut: Cut, base: Spec, tuned: Spec) -> int:
        return _cut_factoring_bytes(count, base, tuned, self.count)

    def apply(self, k: Kernel, base: Array, tuned: Array) -> Array:
        one = partial(self._one, k, _wide(base, tuned))
        return one(base, tuned)[None] if base.ndim == 2 else k.each(lambda *pair: (one(*pair),), base, tuned)[0]

    def _one(self, k: Kernel, wide: DType, base: Array, tuned: Array) -> Array:
        new = k.convert(tuned, wide)
        change = k.sub(new, k.convert(base, wide))
        bits = min(_mantissa(k, x) for x in (base, tuned))
        step = k.xp.where(k.xp.not_equal(change, 0), _power(k, new) * 2.0**-bits, 0.0)
        head = k.xp.stack([k.square(change), k.square(step) / 12])
        few = 2 * self.count <= min(change.shape)
        s = factors(k, change, self.count, self.method)[1] if few else singular_values(k, change)
        return k.xp.concatenate([head, k.xp.square(k.convert(s[: self.count], F64))])


def _mantissa(k: Kernel, x: Array) -> int:
    """Stored bits of the mantissa of a dtype."""
    import ml_dtypes

    return int(ml_dtypes.finfo(x.dtype).nmant)  # type: ignore[no-untyped-call]


def _power(k: Kernel, x: Array) -> Array:
    """The power of two at or below |x|, 0 for 0 and subnormal numbers; x: float32 or float64."""
    import numpy as np

    raw, mask = (np.uint32, 0x7F800000) if x.dtype == np.float32 else (np.uint64, 0x7FF0000000000000)
    return k.from_bits(k.bits(x) & raw(mask), x.dtype)


@dataclass(frozen=True)
class AddFactors(TensorOp):
    """A weight with the changes of adapters: base + sum of scale * B @ A, in the order of the adapters.

    base: float[out, in] ([in, out] for a pair that is transposed), or [experts, ...]; then A and B of every adapter, as
    in `ExtractFactors` -> the shape and dtype of base. Computed in float32 (float64 for float64), rounded once.
    """

    kind = "whole"
    varies = SUMMED
    transposed: tuple[bool, ...]
    scales: tuple[float, ...]

    def infer(self, base: Spec, *given: Spec) -> tuple[Spec, ...]:
        for spec in (base, *given):
            check_floats(spec)
        for a, b, transposed in zip(given[::2], given[1::2], self.transposed, strict=True):
            number, out, inner = matrices(base, transposed)
            rank = a.shape[0] // number if len(a.shape) == 2 else 0
            if a.shape != (rank * number, inner) or b.shape != (out, rank * number) or not rank:
                raise PlanError("the adapter does not fit the weight", expected=str(base), found=f"A {a}, B {b}")
        return (base,)

    def workspace_bytes(self, base: Spec, *given: Spec) -> int:
        return 3 * base.size * 8

    def cut(self, base: Spec, *given: Spec) -> Cut:
        axis = longer_side(base)
        is_last = axis == len(base.shape) - 1
        sides = [(1, None) if is_last != transposed else (None, 0) for transposed in self.transposed]
        return Cut((axis, *(side for pair in sides for side in pair)), (axis,))

    def cut_workspace_bytes(self, count: int, cut: Cut, base: Spec, *given: Spec) -> int:
        return 5 * base.size * 8 // count + 2 * 8 * max(spec.size for spec in given)

    def apply(self, k: Kernel, base: Array, *given: Array) -> Array:
        wide = _wide(base, *given)
        total = k.convert(base, wide)
        for a, b, transposed, scale in zip(given[::2], given[1::2], self.transposed, self.scales, strict=True):
            number, out, inner = matrices(base, transposed)
            a, b = k.convert(a, wide), k.convert(b, wide)
            if base.ndim == 2:
                change = k.matmul(b, a)
            else:
                parts = k.xp.transpose(b.reshape(out, -1, number), (2, 0, 1))  # [experts, out, rank]
                change = k.matmul(parts, a.reshape(number, -1, inner))
            change = k.xp.swapaxes(change, -1, -2) if transposed else change
            total = total + k.mul(change, k.number(scale, change))
        return k.narrow(total, base)
