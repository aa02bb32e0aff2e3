"""What has a norm or an angle for every row, and none of the whole tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from ..core.specs import Spec
from ..kit.kernel import Array, Kernel
from ..kit.operations import TensorOp
from ..kit.reduction import halved
from ..kit.rules import check_floats
from .spans import Products, vectors

__all__ = ["RowSpan", "row_sums"]


def row_sums(k: Kernel, x: Array) -> Array:
    """The sums along the last axis, which stays with length 1; they depend on nothing but the row."""
    return halved(k.add, x, k)


@dataclass(frozen=True)
class RowSpan(TensorOp):
    """As `spans.Span`, for the vectors along an axis: the last one, or the first.

    all: float, one shape of at least two axes and one dtype -> the same shape and dtype. In float64, rounded to float32
    and then to the dtype.
    """

    kind = "whole"
    is_based: bool
    along_first: bool = False

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        """Of each tensor what its vectors are multiplied by: float64 [..., 1]."""
        raise NotImplementedError

    def infer(self, *specs: Spec) -> tuple[Spec, ...]:
        check_floats(specs[0])
        return (specs[0],)

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> TensorOp | None:
        return None if self.along_first else self

    def workspace_bytes(self, *specs: Spec) -> int:
        return 8 * specs[0].size * (2 * len(specs) + 2)

    def apply(self, k: Kernel, *arrays: Array) -> Array:
        found = vectors([k.widen(x) for x in arrays], self.is_based)
        total = arrays[-1].astype("float64") if self.is_based else k.xp.zeros(arrays[0].shape, "float64")
        turned = [k.xp.moveaxis(x, 0, -1) if self.along_first else x for x in found]
        pairs = [row_sums(k, k.mul(a, b)) for a, b in combinations_with_replacement(turned, 2)]
        for x, factor in zip(found, self.factors(k, Products(len(found), pairs)), strict=True):
            total = total + k.mul(x, k.xp.moveaxis(factor, -1, 0) if self.along_first else factor)
        return k.cast(total, k.dtype(arrays[0]))
