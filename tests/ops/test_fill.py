"""What makes tensors of nothing: constants, given values, random numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import References, elements, spec
from strategies import FLOATS, NUMBERS

from surgery_jax.core.errors import PlanError
from surgery_jax.kit.made import Constant, Given, Random
from surgery_jax.ops.fill import Fill

REFERENCES: References = {
    "Constant": (
        [(Constant(spec(n, 3, 4), 2.7), []) for n in NUMBERS],
        lambda op: np.full((3, 4), 2.7 if op.spec.dtype.is_float else 2),
        "made",
    ),
    "Given": (
        [(Given(spec(n, 2, 3), (1.5, -2, 7)), []) for n in FLOATS],
        lambda op: np.array([[1.5, -2, 7]] * 2),
        "made",
    ),
    "Random": (
        [(Random(spec(n, 5, 7), "uniform", -1.0, 2.0, 7), []) for n in FLOATS],
        lambda op: oracle.drawn({"low": -1, "high": 2, "seed": 7}, (5, 7), op.spec.dtype.numpy)[0],
        "made",
    ),
}


def test_a_constant_that_does_not_fit_is_refused() -> None:
    nan = float("nan")
    for name, value in [("uint8", 300.0), ("float16", 1e6), ("int64", nan), ("int64", 2.0**63), ("uint64", -1.0)]:
        with pytest.raises(PlanError, match="does not fit"):
            Fill("constant", value).made(spec(name, 2))
    assert elements(Fill("constant", 2.0**63 - 1024).made(spec("int64", 2)), 0, 1)[0] == 2**63 - 1024
    assert elements(Fill("constant", float("inf")).made(spec("float16", 2)), 0, 1)[0] == np.inf
    assert float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max) == 448
