"""The low-rank kernel against NumPy's decomposition in float64: how good, which signs, and always the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import References, ordinary
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Bench, assert_same_bits, read_checkpoint
from scipy.stats import chi2

from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.errors import SurgeryError
from surgery_jax.numerics import lanczos, lowrank
from surgery_jax.numerics.blas import one_thread_each
from surgery_jax.numerics.host_kernel import HostKernel
from surgery_jax.numerics.kernels import DeviceKernel
from surgery_jax.numerics.lowrank import METHODS, factors, singular_values
from surgery_jax.ops.phlora import BestFactors, LowRank


def assert_product(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    a, b = (array.astype(np.float64) for array in found)
    tolerance = 1e-2 if found[0].dtype.itemsize == 2 else 1e-5
    np.testing.assert_allclose(b @ a, expected[1] @ expected[0], rtol=tolerance, atol=tolerance)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=0)
    np.testing.assert_allclose(*norms, rtol=tolerance, atol=tolerance)


REFERENCES: References = {
    "LowRank": (
        [(LowRank(2), [ordinary(n, *shape)]) for n in ("float32", "bfloat16", "float64") for shape in ((6, 4), (3, 5))],
        lambda op, x: oracle.round_float(np.matmul(*oracle.factors(x, op.rank)[::-1]), x.dtype),
        "close",
    ),
    "BestFactors": (
        [
            (BestFactors(2), [ordinary(n, *shape)])
            for n in ("float32", "float16", "float64")
            for shape in ((6, 4), (3, 5))
        ],
        lambda op, x: oracle.factors(x, op.rank),
        assert_product,
    ),
}

SPECTRA = {
    "equal": lambda i: np.ones(len(i)),
    "power 1/4": lambda i: i**-0.25,
    "power 1/2": lambda i: i**-0.5,
    "power 1": lambda i: 1 / i,
    "power 2": lambda i: i**-2.0,
    "halves": lambda i: 0.5 ** np.minimum(i, 60),
    "zero": lambda i: 0 * i,
}
NAMES = ("flat", "noisy", "noisier", "tiny noise", "low rank", *SPECTRA)
NOISE = {"noisy": 0.05, "noisier": 0.05, "tiny noise": 1e-5, "low rank": 0.0}
Triplets = tuple[np.ndarray, np.ndarray, np.ndarray]


def tall_or_wide(m: int, n: int) -> list[tuple[str, tuple[int, int]]]:
    """All spectra in tall matrices, and two in wide ones: those are turned first, whatever their spectrum."""
    return [*((name, (m, n)) for name in NAMES), ("noisy", (n, m)), ("flat", (n, m))]


def matrix(name: str, m: int, n: int, rank: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    """`noisy`: of that rank, and noise of 5 %; `noisier`: of a quarter of the rank, so that rank reaches the noise."""
    rng = np.random.default_rng(seed)
    if name == "flat":
        return rng.standard_normal((m, n)).astype(dtype)
    if name in NOISE:
        r = max(rank // 4, 1) if name == "noisier" else rank
        w = rng.standard_normal((m, r)) @ rng.standard_normal((r, n)) / np.sqrt(r)
        return np.asarray(w + NOISE[name] * rng.standard_normal((m, n))).astype(dtype)
    k = min(m, n)
    with one_thread_each():
        u, v = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m, n))
    return np.asarray((u * SPECTRA[name](np.arange(1.0, k + 1))) @ v.T).astype(dtype)


@cache
def compiled(rank: int, method: str) -> Any:
    return jax.jit(lambda w: factors(device_kernel(), w, rank, method))


def device_kernel() -> DeviceKernel:
    return DeviceKernel((jnp.zeros((), np.int32), jnp.zeros((), np.int64)))


def on_device(w: np.ndarray, rank: int, method: str = "auto") -> Triplets:
    with jax.enable_x64(True):
        u, s, vt = compiled(rank, method)(jnp.asarray(w))
        return np.asarray(u), np.asarray(s), np.asarray(vt)


def on_host(w: np.ndarray, rank: int, method: str = "auto") -> Triplets:
    with np.errstate(all="ignore"), one_thread_each():
        return factors(HostKernel(), w, rank, method)


@lru_cache(maxsize=1)
def exact_of(content: bytes, shape: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
    """The singular values of a matrix, which several methods are held against, in float64."""
    with one_thread_each():
        w = np.frombuffer(content, dtype).reshape(shape)
        return np.linalg.svd(w.astype(np.float64), compute_uv=False)


def check(w: np.ndarray, rank: int, found: Triplets, ratio: float) -> None:
    """Shapes, signs, orthonormal factors, singular values, and a residual within `ratio` of the optimum or within what
    a full decomposition in that dtype leaves."""
    u, s, vt = found
    r = min(rank, *w.shape)
    assert (u.shape, s.shape, vt.shape) == ((w.shape[0], r), (r,), (r, w.shape[1]))
    assert {x.dtype for x in found} == {w.dtype}
    eps = float(np.finfo(w.dtype).eps)
    exact = exact_of(w.tobytes(), w.shape, w.dtype)
    norm = float(np.linalg.norm(exact))
    optimum = float(np.linalg.norm(exact[r:]))
    product = (u * s).astype(np.float64) @ vt.astype(np.float64)
    residual = float(np.linalg.norm(w.astype(np.float64) - product))
    assert residual <= ratio * optimum + 100 * eps * norm, f"{residual} instead of {optimum} of {norm}"
    np.testing.assert_allclose(vt @ vt.T, np.eye(r), atol=200 * eps)
    np.testing.assert_allclose(u.T @ u, np.eye(r), atol=200 * eps)
    assert (np.diff(s) <= 0).all() and (s >= 0).all()
    assert (vt[np.arange(r), np.argmax(np.abs(vt), axis=1)] > 0).all()


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 64), n=st.integers(1, 64), rank=st.integers(1, 70), name=st.sampled_from(NAMES),
    method=st.sampled_from(METHODS), seed=st.integers(0, 99),
    scale=st.sampled_from((1.0, 1e-30, 1e30)), dtype=st.sampled_from((np.float32, np.float64)),
)  # fmt: skip
def test_small_matrices_of_every_shape(
    m: int, n: int, rank: int, name: str, method: str, seed: int, scale: float, dtype: Any
) -> None:
    w = (matrix(name, m, n, min(rank, m, n), np.float64, seed) * scale).astype(dtype)
    check(w, rank, on_host(w, rank, method), 1.001)


@pytest.mark.parametrize(("name", "shape"), tall_or_wide(512, 256))
def test_matrices_of_some_size_are_factored_as_well_on_a_device_as_on_the_host(
    name: str, shape: tuple[int, int]
) -> None:
    for dtype in (np.float32, np.float64):
        w = matrix(name, *shape, 8, dtype)
        check(w, 8, on_host(w, 8, "exact"), 1 + 1e-6)
        check(w, 8, on_device(w, 8, "exact"), 1 + 1e-6)


@pytest.mark.parametrize(("name", "shape"), tall_or_wide(680, 600))
def test_longer_thin_sides_are_within_the_ratio_of_the_optimum(name: str, shape: tuple[int, int]) -> None:
    w = matrix(name, *shape, 8)
    for method, ratio in (("auto", 1.001), ("exact", 1 + 1e-6), ("randomized", 1.01)):
        check(w, 8, on_host(w, 8, method), ratio)


@pytest.mark.parametrize("name", ["flat", "noisy", "power 2", "low rank", "zero"])
def test_a_device_takes_the_same_way(name: str) -> None:
    w = matrix(name, 680, 600, 8)
    for method, ratio in (("auto", 1.001), ("randomized", 1.01)):
        found = on_device(w, 8, method)
        check(w, 8, found, ratio)
        for there, here in zip(found[1:2], on_host(w, 8, method)[1:2], strict=True):
            np.testing.assert_allclose(there, here, atol=1e-5 * max(float(here[0]), 1e-30))


@pytest.mark.parametrize("rank", [1, 40, 130, 299, 300, 599, 600])
def test_any_rank_of_a_longer_thin_side(rank: int) -> None:
    w = matrix("power 1/2", 650, 600, 8)
    for method, ratio in (("auto", 1.001), ("randomized", 1.01)):
        check(w, rank, on_host(w, rank, method), ratio)


def test_what_the_fixed_start_cannot_see_is_found_all_the_same() -> None:
    """Large singular values whose left vectors are orthogonal to the block that the Krylov space begins with, and to
    all that follows from it."""
    m, n, rank = 680, 600, 8
    block = lowrank._scattered(HostKernel(), m, rank + lowrank.EXTRA, np.float64)
    rng = np.random.default_rng(0)
    left = np.linalg.qr(np.concatenate([block, rng.standard_normal((m, 104))], axis=1))[0]
    left[:, :100] @= np.linalg.qr(rng.standard_normal((100, 100)))[0]
    right = np.linalg.qr(rng.standard_normal((n, 120)))[0]
    s = np.concatenate([np.linspace(2, 1, 100), np.linspace(3, 2.9, 20)])
    w = ((left * s) @ right.T).astype(np.float32)
    with pytest.raises(AssertionError):
        check(w, rank, on_host(w, rank, "randomized"), 1.01)
    check(w, rank, on_host(w, rank), 1.001)


@pytest.mark.parametrize(
    "name", ["flat", "noisy", "noisier", "tiny noise", "power 1/4", "power 1/2", "power 1", "low rank"]
)
def test_products_alone_prove_what_fine_tunes_and_weights_look_like(name: str) -> None:
    w = matrix(name, 1300, 1000, 8)
    with one_thread_each():
        found = lanczos.search(HostKernel(), w, 8, 1.001, lowrank.ROUNDINGS)
    assert found.is_proven
    np.testing.assert_allclose(found.image, w @ found.v, atol=1e-4 * np.linalg.norm(w))
    check(w, 8, on_host(w, 8), 1.001)


@pytest.mark.parametrize("rank", [9, 40])
def test_a_remainder_that_hides_behind_large_values_is_factored_as_well(rank: int) -> None:
    """Eight values of a million times the energy of flat noise: what the Gram matrix of all would round away."""
    rng = np.random.default_rng(3)
    large = rng.standard_normal((1500, 8)) @ rng.standard_normal((8, 1300))
    w = (large + 1e-3 * rng.standard_normal((1500, 1300))).astype(np.float32)
    u, s, vt = on_host(w, rank)
    exact = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    left = np.linalg.norm(w - (u * s).astype(np.float64) @ vt) / np.linalg.norm(exact[rank:])
    assert left <= 1.001


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(150, 260), steps=st.integers(1, 6), seed=st.integers(0, 10**6),
    spectrum=st.sampled_from(("uniform", "power", "equal", "two beyond")),
)  # fmt: skip
def test_no_eigenvalue_exceeds_what_a_random_start_allows(n: int, steps: int, seed: int, spectrum: str) -> None:
    rng = np.random.default_rng(seed)
    values = {
        "uniform": np.sort(rng.random(n))[::-1],
        "power": np.arange(1.0, n + 1) ** -rng.uniform(0.2, 2),
        "equal": np.ones(n),
        "two beyond": np.r_[1.3, 1.2, rng.random(n - 2)],
    }[spectrum]
    assert bound(values, rng.standard_normal((n, 16)), steps) >= values[0] * (1 - 1e-9)


def test_that_bound_is_close_and_rests_on_the_start() -> None:
    rng = np.random.default_rng(0)
    values, start = np.r_[2.0, np.linspace(1, 0, 239)], rng.standard_normal((240, 16))
    assert bound(values, start, 8) <= 2.01
    start[0] = 0.0  # as no random start is: nothing of the first eigenvector
    assert bound(values, start, 8) < 1.1


def bound(values: np.ndarray, start: np.ndarray, steps: int) -> float:
    """The number that the module proves to be no less than the first of some eigenvalues, from a plain Krylov space."""
    basis, first = np.linalg.qr(np.sqrt(values)[:, None] * start)  # of a diagonal matrix with these singular values
    block = basis
    for _ in range(steps):
        image = values[:, None] * block
        for _ in range(2):
            image = image - basis @ (basis.T @ image)
        block, step = np.linalg.qr(image)
        ritz, vectors = np.linalg.eigh(basis.T @ (values[:, None] * basis))
        basis = np.concatenate([basis, block], axis=1)
    quantile = chi2.ppf(lanczos.FAILURE, start.shape[1])
    return lanczos._limit(ritz[::-1], vectors[:, ::-1], first, step, quantile)


def test_the_quantile_is_below_that_of_the_distribution() -> None:
    for width in (lanczos.NARROW, lanczos.WIDE):
        assert 0.5 * chi2.ppf(lanczos.FAILURE, width) < lanczos.quantile(width) <= chi2.ppf(lanczos.FAILURE, width)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e4m3fn"])
def test_narrow_floats_are_factored_in_float32(name: str) -> None:
    w = matrix("noisy", 90, 70, 4).astype(BY_NAME[name].numpy)
    check(w.astype(np.float32), 4, on_host(w, 4), 1.001)


# --------------------------------------------------------------------------------------------------- in plans


def plan_of_factors(**more: Any) -> dict[str, Any]:
    return {"phlora": {"target": "(.+)", "target_a": r"\1.a", "target_b": r"\1.b", "rank": 8} | more}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(tmp_path: Path, method: str, value: float) -> None:
    bad = matrix("flat", 60, 50, 8)
    bad[3, 4] = value
    bench = Bench(tmp_path, m={"good": matrix("flat", 60, 50, 8), "bad": bad})
    with pytest.raises(SurgeryError, match="cannot be factored: bad holds NaN or infinity"):
        bench.report([plan_of_factors(method=method)])


def test_an_overflow_behind_a_factorisation_is_not_taken_for_a_bad_matrix(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": np.full((6, 5), 1e30, np.float32)})
    found = bench.tensors([plan_of_factors(), {"cast_": {"target": "w.a", "to": "float16"}}])
    assert np.isinf(found["w.a"].astype(np.float32)).any()


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": np.ones((4, 3), np.float32)})
    with pytest.raises(SurgeryError, match="unknown value 'exakt'") as refused:
        bench.report([plan_of_factors(method="exakt")])
    assert "did you mean exact?" in str(refused.value)


def test_neither_company_nor_devices_nor_threads_change_a_bit(tmp_path: Path) -> None:
    names = ("flat", "noisy", "power 1", "low rank")
    tensors = {name.replace(" ", "_"): matrix(name, 680, 600, 8) for name in names}
    together = Bench(tmp_path, m=tensors).tensors([plan_of_factors()])
    for name in tensors:
        alone = Bench(tmp_path, m={name: tensors[name]}).tensors([plan_of_factors()])
        for side in (f"{name}.a", f"{name}.b"):
            assert_same_bits(alone[side], together[side])
    bench = Bench(tmp_path, m=tensors)
    variables = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "OPENBLAS_NUM_THREADS": "2"}
    code = (
        "import json, sys, surgery_jax as s;"
        "s.run(s.plan_of(json.loads(sys.argv[1])), s.Options(workers=1, overwrite=True))"
    )
    plan = json.dumps(bench.plan([plan_of_factors()]))
    subprocess.run([sys.executable, "-c", code, plan], check=True, env=variables)
    elsewhere = read_checkpoint(bench.out)
    for name, array in together.items():
        assert_same_bits(elsewhere[name], array)


@pytest.mark.parametrize("name", NAMES)
def test_all_singular_values(name: str) -> None:
    for dtype, loss in ((np.float32, 1e-6), (np.float64, 1e-13)):
        w = matrix(name, 130, 80, 8, dtype)
        expected = np.linalg.svd(w.astype(np.float64), compute_uv=False)
        with jax.enable_x64(True):
            there = np.asarray(jax.jit(lambda x: singular_values(device_kernel(), x))(w))
        for found in (singular_values(HostKernel(), w), there):
            np.testing.assert_allclose(found, expected, rtol=loss, atol=loss * expected[0])
            assert (np.diff(found) <= 0).all()
