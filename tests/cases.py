"""Cases of operations, and what a test of one offers to `tests/ops/test_contract.py`, which goes over all of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from running import assert_same_bits, assert_same_values
from strategies import array_of

import surgery_jax.kit.predicates as asserts
from surgery_jax.core.dtypes import BY_NAME, by_numpy
from surgery_jax.core.specs import Spec
from surgery_jax.kit.base import TensorOp, words
from surgery_jax.kit.made import Made

Case = tuple[TensorOp, list[np.ndarray]]
Compare = Callable[[Sequence[np.ndarray], Any], None]  # raises AssertionError; the results first
# Class name -> (cases, the same in plain NumPy or in the oracle, how exact): `bits`, `values` (NaNs are alike), `close`
# (to a few units of the dtype), `single` (float64 of values computed in float32), `made` for what has no operands, or a
# comparison of the test's own. A test of an operation has such a table under the name REFERENCES.
References = dict[str, tuple[list[Case], Callable[..., Any], str | Compare]]


def pair(name: str, seed: int = 1) -> list[np.ndarray]:
    return [array_of(name, (5, 7), 3 * seed), array_of(name, (5, 7), 3 * seed + 3)]


def ordinary(name: str, *shape: int) -> np.ndarray:
    return array_of(name, shape, 3)


def gaussian(name: str, seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(BY_NAME[name].numpy)


def gaussian_pair(name: str, *shape: int) -> list[np.ndarray]:
    return [gaussian(name, seed, *shape) for seed in (3, 4)]


def spec(name: str, *shape: int) -> Spec:
    return Spec(shape, BY_NAME[name])


def spec_of(array: np.ndarray) -> Spec:
    found = by_numpy(array.dtype)
    assert found is not None
    return Spec(array.shape, found)


def elements(op: Made, start: int, count: int) -> np.ndarray:
    out = np.empty(count, op.spec.dtype.numpy)
    op.put(start, out)
    return out


def assert_matches(found: Sequence[np.ndarray], expected: Any, how: str | Compare) -> None:
    if not isinstance(how, str):
        how(found, expected)
    elif how == "single":
        np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    elif how == "close":
        assert (found[0].shape, found[0].dtype) == (expected.shape, expected.dtype)
        tolerance = {1: 0.0, 2: 2e-2, 4: 1e-5, 8: 1e-12}[expected.dtype.itemsize]
        np.testing.assert_allclose(
            found[0].astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance
        )
    else:
        (assert_same_values if how == "values" else assert_same_bits)(found[0], expected)


def references() -> References:
    """What the tests of single operations and assertions give in their `REFERENCES`: a new one needs no line here."""
    found: References = {}
    for path in sorted(Path(__file__).parent.glob("*/test_*.py")):
        if "\nREFERENCES: " in path.read_text() or "\nREFERENCES = {" in path.read_text():
            described = importlib.util.spec_from_file_location(f"references_of_{path.stem}", path)
            assert described is not None and described.loader is not None
            module = importlib.util.module_from_spec(described)
            described.loader.exec_module(module)
            assert not found.keys() & module.REFERENCES.keys(), path
            found |= module.REFERENCES
    return found


def all_ops(cls: type = TensorOp) -> Iterator[type[TensorOp]]:
    """All operations that words and predicates have."""
    words(), asserts.predicates()
    for sub in cls.__subclasses__():
        if sub.__module__.startswith("surgery_jax."):
            yield sub
        yield from all_ops(sub)
