"""Decompositions, held to NumPy in float64, and what other threads do meanwhile."""

import threading
import time

import numpy as np
import pytest

from surgery_jax.numerics import lapack


def symmetric(n: int, dtype: str, shift: float = 0.0) -> np.ndarray:
    x = np.random.default_rng(n).standard_normal((n, n + 5))
    return (x @ x.T / n + shift * np.eye(n)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 1), (7, 7), (60, 3), (301, 40)])
def test_leading_eigenvectors_are_those_of_numpy(dtype: str, n: int, count: int) -> None:
    x = symmetric(n, dtype)
    before = x.copy()
    values, vectors = lapack.leading(x, count)
    np.testing.assert_array_equal(x, before)
    assert values.dtype == vectors.dtype == x.dtype
    tolerance = 50 * np.finfo(dtype).eps
    right = np.linalg.eigvalsh(x.astype(np.float64))[-count:]
    np.testing.assert_allclose(values, right, rtol=tolerance, atol=tolerance * right[-1])
    np.testing.assert_allclose(x @ vectors, vectors * values, atol=tolerance * right[-1])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 61, 300])
def test_a_matrix_is_positive_if_its_smallest_eigenvalue_is(dtype: str, n: int) -> None:
    x = symmetric(n, dtype)
    least = np.linalg.eigvalsh(x.astype(np.float64))[0]
    assert lapack.is_positive(x + (0.01 - least).astype(dtype) * np.eye(n, dtype=dtype))
    assert not lapack.is_positive(x - (0.01 + least).astype(dtype) * np.eye(n, dtype=dtype))


@pytest.mark.parametrize(("call", "n"), [(lapack.is_positive, 2000), (lambda x: lapack.leading(x, 20), 800)])
def test_other_threads_go_on_while_a_matrix_is_decomposed(call, n) -> None:  # type: ignore[no-untyped-def]
    x = np.random.default_rng(n).random((n, n)) / n
    x = x + x.T + 3 * np.eye(n)
    taken = []

    def decompose() -> None:
        began = time.thread_time()
        call(x)
        taken.append(time.thread_time() - began)

    thread = threading.Thread(target=decompose)
    began = time.thread_time()
    thread.start()
    while thread.is_alive():
        pass
    # of the processor: where Python's lock is held, this thread stands still all the time
    assert time.thread_time() - began > taken[0] / 10
