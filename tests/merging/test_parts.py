"""What merge methods are made of, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest
from running import dtype

from surgery_jax.merging.methods.slerp import SlerpSpan
from surgery_jax.merging.numbers import NumberMask
from surgery_jax.merging.spans import Gram
from surgery_jax.merging.tasks import AddTasks
from surgery_jax.merging.weighted import Delta, Weighted
from surgery_jax.numerics.angles import angle_of, cosine, sine
from surgery_jax.numerics.kernels import HostKernel

RNG = np.random.default_rng(16)
DTYPES = ("float32", "bfloat16", "float16", "float64")


def drawn(name: str = "float32", shape: tuple[int, ...] = (5, 7)) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype(name))


def weighted(op: Weighted, *arrays: np.ndarray) -> np.ndarray:
    total = sum(w * x.astype(np.float64) for w, x in zip(op.weights, arrays, strict=True))
    return np.asarray(total / op.divisor).astype(arrays[0].dtype)


def delta(op: Delta, model: np.ndarray, base: np.ndarray) -> np.ndarray:
    made = model.astype(np.float64) - base.astype(np.float64)
    return made if base.dtype == np.float64 else made.astype(np.float32)


def added(op: AddTasks, base: np.ndarray, *deltas: np.ndarray) -> np.ndarray:
    parts = np.stack([w * x.astype(np.float64) for w, x in zip(op.weights, deltas, strict=True)])
    mask = np.sign(parts) == np.where(parts.sum(0) >= 0, 1, -1) if op.elects else np.ones(parts.shape, bool)
    total = (parts * mask).sum(0)
    if op.normalize:
        divisor = (np.reshape(op.weights, (-1,) + (1,) * base.ndim) * mask).sum(0)
        total = total / np.where(np.abs(divisor) < 1e-8, 1, divisor)
    return (base.astype(np.float64) + op.lambda_ * total).astype(base.dtype)


def gram(op: Gram, *arrays: np.ndarray) -> np.ndarray:
    wide = [x.astype(np.float64).reshape(-1) for x in arrays]
    wide = [x - wide[-1] for x in wide[:-1]] if op.is_based else wide
    return np.array([a @ b for a, b in combinations_with_replacement(wide, 2)])


def products(*arrays: np.ndarray) -> np.ndarray:
    return gram(Gram(len(arrays), False), *arrays)


def along(op: SlerpSpan, a: np.ndarray, b: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    x, y = a.astype(np.float64), b.astype(np.float64)
    angle = np.arccos(np.clip((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), -1, 1))
    made = (np.sin((1 - op.t) * angle) * x + np.sin(op.t * angle) * y) / np.sin(angle)
    return np.asarray(made).astype(a.dtype)


def pair_with_products(name: str) -> list[np.ndarray]:
    arrays = [drawn(name), drawn(name)]
    return [*arrays, products(*arrays)]


def with_nan(name: str) -> np.ndarray:
    array = drawn(name)
    array[1, 2:4] = np.nan
    return array


REFERENCES: dict[str, tuple[list[Any], Callable[..., Any], str]] = {
    "Weighted": ([(Weighted((0.3, -2.0, 1.5), 0.7), [drawn(n) for _ in "abc"]) for n in DTYPES], weighted, "close"),
    "Delta": ([(Delta(), [drawn(n), drawn(n)]) for n in DTYPES], delta, "bits"),
    "AddTasks": (
        [
            (AddTasks(elects, normalize, (0.5, 0.25, 1.5), 1.25), [drawn(n), *(drawn(wide) for _ in "abc")])
            for n, wide in (("float32", "float32"), ("bfloat16", "float32"), ("float64", "float64"))
            for elects in (False, True)
            for normalize in (False, True)
        ],
        added,
        "close",
    ),
    "Gram": (
        [(Gram(2, is_based), [drawn(n) for _ in range(2 + is_based)]) for n in DTYPES for is_based in (False, True)],
        gram,
        "close",
    ),
    "SlerpSpan": ([(SlerpSpan(False, 0.3), pair_with_products(n)) for n in DTYPES], along, "close"),
    "NumberMask": (
        [(NumberMask(), [with_nan(n), *(drawn(n) for _ in range(more))]) for n in DTYPES for more in (0, 1)],
        lambda op, model, *base: ~np.isnan(model.astype(np.float64)),
        "bits",
    ),
}


def test_angles_and_their_functions_equal_those_of_the_library() -> None:
    kernel, c, a = HostKernel(), np.linspace(-1, 1, 20001), np.linspace(-np.pi, np.pi, 20001)
    np.testing.assert_allclose(angle_of(kernel, c), np.arccos(c), rtol=0, atol=1e-15)
    np.testing.assert_allclose(sine(kernel, a), np.sin(a), rtol=0, atol=2e-15)
    np.testing.assert_allclose(cosine(kernel, a), np.cos(a), rtol=0, atol=2e-15)
    small = 10.0 ** -np.arange(1, 8)
    np.testing.assert_allclose(angle_of(kernel, np.cos(small)), np.arccos(np.cos(small)), rtol=1e-14)
    assert angle_of(kernel, np.float64(-1)) == pytest.approx(np.pi, abs=1e-15)
