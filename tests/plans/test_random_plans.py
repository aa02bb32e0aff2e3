"""Whole plans drawn at random give the bits that a slow interpreter gives."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import Oracle, Tensor, is_float
from running import Bench, assert_same_bits, assert_same_values
from strategies import plans

from surgery_jax import SurgeryError

DRAWN = settings(
    derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip


def assert_agrees(found: np.ndarray, expected: Tensor, what: str) -> None:
    if expected.quality == "close":
        assert (found.dtype, found.shape) == (expected.array.dtype, expected.array.shape), what
        tolerance = 2e-2 if found.dtype.itemsize < 4 else 1e-4
        wide = expected.array.astype(np.float64)
        np.testing.assert_allclose(found.astype(np.float64), wide, rtol=tolerance, atol=tolerance * 1e3, err_msg=what)
    elif expected.quality == "values" and is_float(found.dtype):
        assert_same_values(found, expected.array, what)
    else:
        assert_same_bits(found, expected.array, what)


@settings(DRAWN, max_examples=80)
@given(plans())
def test_a_plan_gives_what_evaluating_step_by_step_gives(drawn: tuple) -> None:
    tensors, steps, _ = drawn
    text = yaml.safe_dump({"transforms": steps})
    expected = Oracle.of(m=tensors)
    for step in yaml.safe_load(text)["transforms"]:
        expected.step(step)
    with tempfile.TemporaryDirectory() as root:
        found = Bench(Path(root), m=tensors).tensors(steps)
    assert found.keys() == expected.models["m"].keys()
    for name, tensor in expected.models["m"].items():
        assert_agrees(found[name], tensor, f"{name} after {text}")


@settings(DRAWN, max_examples=15)
@given(plans(max_steps=3), st.data())
def test_the_opposite_of_an_assertion_that_holds_fails_and_writes_nothing(drawn: tuple, data: st.DataObject) -> None:
    tensors, steps, state = drawn
    name = data.draw(st.sampled_from(sorted(state.models["m"])))
    expression = {"iszero": name}
    wrong = {"not": expression} if state._attempt(expression) else expression
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root), m=tensors)
        before = bench.left()
        with pytest.raises(SurgeryError) as failed:
            bench.report([*steps, {"assert": wrong}])
        assert failed.value.exit_code == 1
        assert bench.left() == before
