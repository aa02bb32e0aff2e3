"""Seeded random numbers: torch's, bit for bit; recorded numbers test the promise without torch too."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peaks import peak_bytes

from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.errors import PlanError
from surgery_jax.core.specs import Spec
from surgery_jax.kit.made import Random
from surgery_jax.numerics import streams

FLOATS = ["float16", "bfloat16", "float32", "float64"]
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
F32 = BY_NAME["float32"]


def uniform(seed: int, shape: tuple[int, ...], dtype: Any, low: float, high: float) -> Any:
    """All numbers at once."""
    out = np.empty(shape, dtype.numpy)
    streams.uniform(seed, out.size, dtype, low, high, 0, out.reshape(-1))
    return out


def normal(seed: int, shape: tuple[int, ...], dtype: Any, mean: float, std: float) -> Any:
    out = np.empty(shape, dtype.numpy)
    streams.normal(seed, out.size, dtype, mean, std, 0, out.reshape(-1))
    return out


def _bits(numbers: Any) -> Any:
    return numbers.reshape(-1).view(BITS[numbers.dtype.itemsize])


def test_a_seeded_uniform_is_the_recorded_one() -> None:
    expected = [[0.53492254, 0.19880319, 0.6592117], [0.6568903, 0.23276156, 0.4250614]]
    np.testing.assert_array_equal(uniform(7, (2, 3), F32, 0, 1), np.array(expected, np.float32))


def test_few_seeded_normals_are_the_recorded_ones() -> None:
    expected = [[0.9853205, 1.0786141, 1.0946822], [0.8885656, 1.1690791, 0.9105172]]
    np.testing.assert_array_equal(normal(7, (2, 3), F32, 1, 0.1), np.array(expected, np.float32))


# Bits of four of 20 numbers from torch 2.13: two before the last block of 16, and its two ends.
RECORDED_NORMALS = {
    "float16": [0xBC90, 0xC08E, 0xC155, 0xC070],
    "bfloat16": [0xBF92, 0xC012, 0xC02B, 0xC00E],
    "float32": [0xBF91F456, 0xC011B738, 0x3F659A97, 0xBE5A9158],
    "float64": [0x3FE43DBA34E94E5D, 0x4009E20F53CC4C77, 0x400B51BC44DD094A, 0x3FFD1BDF321A248A],
}


@pytest.mark.parametrize("name", FLOATS)
def test_a_block_of_normals_and_its_replaced_end_are_the_recorded_ones(name: str) -> None:
    found = _bits(normal(7, (20,), BY_NAME[name], 0.5, 2))
    assert [int(found[at]) for at in (0, 3, 4, 19)] == RECORDED_NORMALS[name]


@pytest.mark.parametrize("seed", [7, 7 + 2**32, 7 - 2**32])
def test_only_the_low_32_bits_of_a_seed_count(seed: int) -> None:
    np.testing.assert_array_equal(uniform(seed, (9,), F32, 0, 1), uniform(7, (9,), F32, 0, 1))


@pytest.mark.parametrize("draw", [uniform, normal])
@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (4, 5), (2, 3, 5)])
def test_shape_and_dtype_are_those_asked_for(draw: Any, name: str, shape: tuple[int, ...]) -> None:
    found = draw(3, shape, BY_NAME[name], 0.25, 0.5)
    assert found.shape == shape and found.dtype == BY_NAME[name].numpy and found.flags.c_contiguous


@pytest.mark.parametrize("name", FLOATS)
def test_a_uniform_never_reaches_its_upper_bound(name: str) -> None:
    # In 16 bits many sums round up to 1; near 1000 many float32 sums do.
    for low, high in [(0.0, 1.0), (1000.0, 1001.0)]:
        found = uniform(7, (100_000,), BY_NAME[name], low, high).astype(np.float64)
        assert low <= found.min() and (found.max() < high or low == found.max())


@pytest.mark.parametrize("low, high", [(0.0, 70000.0), (-70000.0, 0.0), (-60000.0, 60000.0), (1.0, 0.0), (0.0, np.nan)])
def test_bounds_that_the_dtype_cannot_hold_are_refused(low: float, high: float) -> None:
    with pytest.raises(PlanError, match="float16 cannot hold uniform numbers"):
        uniform(7, (3,), BY_NAME["float16"], low, high)


@pytest.mark.parametrize("name", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_memory_beside_the_result_is_what_is_reserved_for_it(distribution: str, name: str) -> None:
    spec = Spec((800_011,), BY_NAME[name])
    made = Random(spec, distribution, 0.1, 0.7, 7)
    out = np.empty(600_000, spec.dtype.numpy)
    made.put(0, out[:16])  # what is imported does not count
    assert Random.scratch_bytes / 4 < peak_bytes(lambda: made.put(200_005, out)) < Random.scratch_bytes


@settings(max_examples=60, deadline=None)
@given(
    draw=st.sampled_from([streams.uniform, streams.normal]),
    name=st.sampled_from(FLOATS),
    size=st.integers(1, 90) | st.sampled_from([streams.BLOCK + 5, 3 * streams.BLOCK]),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_any_parts_in_any_order_are_those_of_the_whole(
    draw: Any, name: str, size: int, seed: int, data: st.DataObject
) -> None:
    dtype = BY_NAME[name]
    whole = np.empty(size, dtype.numpy)
    draw(seed, size, dtype, 0.25, 1.5, 0, whole)
    for _ in range(4):
        start = data.draw(st.integers(0, size - 1))
        part = np.empty(data.draw(st.integers(1, size - start)), dtype.numpy)
        draw(seed, size, dtype, 0.25, 1.5, start, part)
        np.testing.assert_array_equal(_bits(part), _bits(whole[start : start + part.size]))


def test_parts_drawn_by_several_threads_are_those_of_the_whole() -> None:
    size, step = 40 * streams.BLOCK + 7, streams.BLOCK + 3
    whole = normal(5, (size,), F32, 0, 1)
    found = np.empty_like(whole)

    def put(start: int) -> None:
        streams.normal(5, size, F32, 0, 1, start, found[start : start + step])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(put, range(0, size, step)))
    np.testing.assert_array_equal(_bits(found), _bits(whole))


@given(
    numbers=st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    factor=st.floats(-1e6, 1e6) | st.floats(-1e-300, 1e-300),
    term=st.floats(-1e6, 1e6) | st.floats(-1e-300, 1e-300),
)
@example(numbers=[0.3, 0.7], factor=2.0**-1023, term=-5e-324)
def test_a_fused_sum_is_rounded_once(numbers: list[float], factor: float, term: float) -> None:
    numbers = [x for x in numbers if abs(x) > 1e-100]  # smaller ones are never drawn
    found = streams._fma64(np.array(numbers, np.float64), factor, term)
    assert found.tolist() == [float(Fraction(x) * Fraction(factor) + Fraction(term)) for x in numbers]


SIZES = st.one_of(st.integers(0, 40), st.sampled_from([1000, streams.BLOCK, streams.BLOCK + 1, 2 * streams.BLOCK + 15]))
PARAMETERS = (
    st.floats(-1000, 1000, width=32)
    | st.floats(-10, 10)
    | st.floats(-1e-300, 1e-300)
    | st.sampled_from([0.0, 0.02, 0.1, 1.0])
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(FLOATS), size=SIZES, seed=st.integers(-(2**40), 2**40), a=PARAMETERS, b=PARAMETERS)
def test_uniforms_equal_those_of_torch(name: str, size: int, seed: int, a: float, b: float) -> None:
    torch = pytest.importorskip("torch", minversion="2.13")
    low, high = min(a, b), max(a, b)
    expected = torch.empty(size, dtype=getattr(torch, name))
    expected.uniform_(low, high, generator=torch.Generator().manual_seed(seed))
    _equal_to_torch(uniform(seed, (size,), BY_NAME[name], low, high), expected)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="torch's normals differ in last bits elsewhere"
)
@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(FLOATS), size=SIZES, seed=st.integers(-(2**40), 2**40), a=PARAMETERS, b=PARAMETERS)
def test_normals_equal_those_of_torch(name: str, size: int, seed: int, a: float, b: float) -> None:
    torch = pytest.importorskip("torch", minversion="2.13")
    mean, std = a, abs(b)
    expected = torch.empty(size, dtype=getattr(torch, name))
    expected.normal_(mean, std, generator=torch.Generator().manual_seed(seed))
    _equal_to_torch(normal(seed, (size,), BY_NAME[name], mean, std), expected)


def _equal_to_torch(found: Any, expected: Any) -> None:
    import torch

    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
    np.testing.assert_array_equal(_bits(found), _bits(expected.view(integer).numpy()))
