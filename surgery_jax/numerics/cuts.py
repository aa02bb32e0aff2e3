"""How operations on tensors that are too large for one device are spread over several: what they say about it."""

from __future__ import annotations

from typing import NamedTuple

from ..core.specs import Spec

__all__ = ["BLOCKS", "STRANDS", "Cut", "factoring_bytes", "longer_side"]

STRANDS = 16  # of a cut axis: no more devices than these are used
BLOCKS = 4  # of a strand, at least

# What factoring holds at once, by measurement; `tests/execute/test_sharding.py` holds it to that.
COPIES = 3  # of the matrix in the dtype of the arithmetic: converted, scaled, turned, what is left of it
SQUARES = 5  # of the thin side, in float64: a Gram matrix with its eigenvectors and the workspace of finding them
KRYLOV = 6  # blocks of a Krylov space,
EXTRA = 16  # whose columns are so many more than the rank


class Cut(NamedTuple):
    """The axis along which every operand and every result of an operation is cut; None for one that each device has as
    a whole."""

    operands: tuple[int | None, ...]
    results: tuple[int | None, ...]


def longer_side(spec: Spec) -> int:
    """The axis along which a matrix is cut; spec: [m, n], or [..., m, n] of several."""
    first = len(spec.shape) - 2
    return first if spec.shape[first] >= spec.shape[first + 1] else first + 1


def factoring_bytes(count: int, x: Spec, rank: int, itemsize: int) -> int:
    """Bytes that each of `count` devices needs to factor a padded matrix in a dtype of that many bytes, or to find its
    singular values, beside its part of the matrix and of the results."""
    thin, long = sorted(x.shape[-2:])
    columns = min(KRYLOV * (rank + EXTRA), thin)
    under_way = (STRANDS // count).bit_length() - 1  # sums of Gram matrices of strands
    total = 8 * (SQUARES + under_way) * thin * thin
    total += itemsize * ((COPIES * thin + columns) * long // count + COPIES * thin * columns)
    if 2 * rank > thin or itemsize == 8:  # a full decomposition: by triangles of all strands, or by each device
        total += itemsize * COPIES * (STRANDS * thin * thin if long >= STRANDS * thin else thin * long)
    return total
