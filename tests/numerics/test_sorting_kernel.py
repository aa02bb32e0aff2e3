"""Which elements outrank others, where NumPy sorts between two functions: what ranking all of a row says."""

from __future__ import annotations

from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery_jax.numerics.sorting_kernel import SortingKernel

SHAPES = [(4, 1), (5, 8), (3, 129), (2, 1000)]


def outranking(x: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """By the rank of every element in its row; of equal magnitudes the first has the lowest."""
    return np.abs(x).argsort(1, kind="stable").argsort(1, kind="stable") > ranks


def in_two(x: np.ndarray, ranks: np.ndarray, is_narrow: bool) -> tuple[np.ndarray, bool]:
    """What the kernel finds, and whether it is sure."""
    with jax.enable_x64(True):
        zeros = np.int32(0), np.int64(0)
        first = SortingKernel(zeros, is_narrow)
        first.outranks(jax.numpy.asarray(x), jax.numpy.asarray(ranks))
        (wanted,) = first.wanted
        second = SortingKernel(zeros, is_narrow, [jax.numpy.asarray(np.sort(np.asarray(wanted), axis=1))])
        found: Any = second.outranks(jax.numpy.asarray(x), jax.numpy.asarray(ranks))
        return np.asarray(found), bool(second.is_sure())


def _deltas(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """What models of bfloat16 have that their base has not: many equal magnitudes, and few bits in each."""
    base = rng.standard_normal(shape)
    tuned = base + rng.standard_normal(shape) * 0.05
    return tuned.astype(ml_dtypes.bfloat16).astype("f4") - base.astype(ml_dtypes.bfloat16).astype("f4")


def _neighbours(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Magnitudes of which many differ in the last bits alone."""
    return (np.float32(1) + rng.integers(0, 9, shape) * np.float32(2.0**-23)) * rng.choice([-1, 1], shape)


KINDS: dict[str, Any] = {
    "deltas of bfloat16": _deltas,
    "neighbours": _neighbours,
    "continuous": lambda rng, shape: rng.standard_normal(shape),
    "one magnitude": lambda rng, shape: np.full(shape, -0.3),
    "zeros of both signs": lambda rng, shape: np.where(rng.random(shape) < 0.5, 0.0, -0.0),
    "mostly zeros": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
    "of all sizes": lambda rng, shape: rng.standard_normal(shape) * 2.0 ** rng.integers(-145, 120, shape),
    "infinite": lambda rng, shape: rng.choice([1.0, -np.inf, np.inf, 3e38], shape),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES))
def test_what_is_sure_is_what_ranking_says(kind: str, seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    x = KINDS[kind](rng, shape).astype("f4")
    ranks = rng.integers(-1, shape[1], shape).astype("i4")
    expected = outranking(x, ranks)
    found, is_sure = in_two(x, ranks, False)
    assert is_sure
    np.testing.assert_array_equal(found, expected)
    found, is_sure = in_two(x, ranks, True)
    if is_sure:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("is_narrow", [False, True])
def test_few_bits_leave_no_doubt_and_order_in_the_last_ones_does(is_narrow: bool) -> None:
    rng = np.random.default_rng(3)
    coarse = np.round(rng.standard_normal((8, 1000)) * 64).astype("f4")
    found, is_sure = in_two(coarse, rng.integers(-1, 1000, coarse.shape).astype("i4"), is_narrow)
    assert is_sure
    fine = _neighbours(rng, (8, 1000)).astype("f4")
    assert in_two(fine, rng.integers(0, 1000, fine.shape).astype("i4"), is_narrow)[1] == (not is_narrow)
    everything = np.full(fine.shape, -1, "i4")
    found, is_sure = in_two(fine, everything, is_narrow)
    assert is_sure and found.all()


def test_rows_too_long_for_the_bits_of_a_place_are_sorted_by_64() -> None:
    x = np.round(np.random.default_rng(5).standard_normal((1, 70_000)), 2).astype("f4")
    ranks = np.random.default_rng(6).integers(-1, 70_000, x.shape).astype("i4")
    found, is_sure = in_two(x, ranks, True)
    assert is_sure
    np.testing.assert_array_equal(found, outranking(x, ranks))
