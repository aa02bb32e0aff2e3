"""Sums over whole tensors, in the order that `kit.reduction` says."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from surgery_jax.kit.reduction import BLOCK, LANES
from surgery_jax.merging.spans import Gram
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


@pytest.mark.parametrize("size", [3, BLOCK, 9 * BLOCK - 5, 16 * BLOCK, 23 * BLOCK + 77, 24 * BLOCK])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_products_are_added_in_one_order_wherever_and_however_many_at_once(size: int, dtype: Any) -> None:
    tensors = [RNG.standard_normal(size).astype(dtype) for _ in range(2)]
    wide = [x.astype(np.float64) for x in tensors]
    wanted = [summed(a * b) for a, b in combinations_with_replacement(wide, 2)]
    gram = Gram(2, False)
    with jax.enable_x64(True):
        made = jax.jit(lambda zeros, *x: gram.apply(DeviceKernel(zeros), *x))((np.int32(0), np.int64(0)), *tensors)
        assert np.asarray(made).tolist() == wanted
    assert np.asarray(gram.apply(HostKernel(), *tensors)).tolist() == wanted
