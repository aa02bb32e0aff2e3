"""Sums over whole tensors, in the order that `kit.reduction` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from surgery_jax.kit.kernel import Array, Kernel
from surgery_jax.kit.reduction import BLOCK, LANES
from surgery_jax.merging.spans import Products, SpanFactors
from surgery_jax.numerics.host_kernel import HostKernel
from surgery_jax.numerics.kernels import DeviceKernel

RNG = np.random.default_rng(5)


def summed(x: np.ndarray) -> float:
    """Blocks whose rows are added one after the other, and then their columns; and blocks in pairs of neighbours."""
    cubes = np.pad(x, (0, -x.size % BLOCK)).reshape(-1, LANES, LANES)
    lanes = np.zeros((len(cubes), LANES))
    for row in range(LANES):
        lanes = lanes + cubes[:, row]
    blocks = np.zeros(len(cubes))
    for column in range(LANES):
        blocks = blocks + lanes[:, column]
    while len(blocks) > 1:
        even = len(blocks) // 2 * 2
        blocks = np.concatenate([blocks[0:even:2] + blocks[1:even:2], blocks[even:]])
    return float(blocks[0])


@dataclass(frozen=True)
class Told(SpanFactors):
    """The inner products themselves, of two vectors."""

    def given(self, stage: int) -> int:
        return 3

    def factors(self, k: Kernel, products: Products) -> Sequence[Array]:
        return [products(0, 0), products(0, 1), products(1, 1)]


@pytest.mark.parametrize("size", [3, BLOCK, 9 * BLOCK - 5, 16 * BLOCK, 23 * BLOCK + 77, 24 * BLOCK])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("is_based", [False, True])
def test_products_are_added_in_one_order_wherever_and_however_many_at_once(
    size: int, dtype: Any, is_based: bool
) -> None:
    tensors = [RNG.standard_normal(size).astype(dtype) for _ in range(2 + is_based)]
    wide = [x.astype(np.float64) for x in tensors]
    wide = [x - wide[-1] for x in wide[:2]] if is_based else wide
    wanted = [summed(a * b) for a, b in combinations_with_replacement(wide, 2)]
    op = Told(2, is_based)
    with jax.enable_x64(True):
        made = jax.jit(lambda zeros, *x: op.apply(DeviceKernel(zeros), *x))((np.int32(0), np.int64(0)), *tensors)
        assert np.asarray(made).tolist() == wanted
    assert np.asarray(op.apply(HostKernel(), *tensors)).tolist() == wanted


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("there", [0, 1, BLOCK, 9 * BLOCK + 3, 16 * BLOCK])
def test_what_is_not_there_is_not_added(there: int, is_padded: bool) -> None:
    whole = [RNG.standard_normal(16 * BLOCK).astype(np.float32) for _ in range(2)]
    tensors = [np.where(np.arange(x.size) < there, x, np.float32(0 if is_padded else np.nan)) for x in whole]
    wide = [x[:there].astype(np.float64) for x in whole]
    wanted = [summed(a * b) if there else 0.0 for a, b in combinations_with_replacement(wide, 2)]
    op = Told(2, False)

    def partial(kernel: Any, count: Any, *arrays: Any) -> Any:
        return op.together(kernel, 0, op.partial(kernel, 0, None, count, *arrays, is_padded=is_padded))

    with jax.enable_x64(True):
        zeros = np.int32(0), np.int64(0)
        made = jax.jit(lambda zeros, *x: partial(DeviceKernel(zeros), *x))(zeros, np.float64(there), *tensors)
        assert np.asarray(made).tolist() == wanted
    assert np.asarray(partial(HostKernel(), there, *tensors)).tolist() == wanted
