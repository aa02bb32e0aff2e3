"""`gates`: unit vectors of sums of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import Bench

from surgery_jax import Problems
from surgery_jax.ops.gates import PromptRows

RNG = np.random.default_rng(4)
ROWS = RNG.standard_normal((6, 5)).astype("f4")
COUNTS = ((1.0, 2.0, 0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0, 0.0, 0.0), (0.0,) * 6, (0.0, 0.0, 0.0, 1.0, 0.0, 1.0))


def units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-8)


def prompt_rows(op: PromptRows, rows: np.ndarray) -> np.ndarray:
    sums = units(np.array(op.counts) @ rows.astype(np.float64))
    half = len(sums) // 2
    return units(sums[:half] - sums[half:]).astype("f4")


REFERENCES = {"PromptRows": ([(PromptRows(COUNTS), (ROWS,))], prompt_rows, "bits")}


def test_rows_of_prompts_are_taken_by_their_numbers(tmp_path: Path) -> None:
    bench = Bench(tmp_path, model={"embedding": ROWS})
    lists = {"positive": [[0, 1, 1], [2]], "negative": [[], [3, 5]]}
    out = bench.tensors([{"gates": {"from": "embedding", "to": "gate", **lists}}])
    np.testing.assert_allclose(out["gate"], prompt_rows(PromptRows(COUNTS), ROWS), rtol=1e-6)


@pytest.mark.parametrize("positive", [[[6]], [[]], [0], "x", [[True]]])
def test_tokens_that_have_no_row_are_errors(tmp_path: Path, positive: object) -> None:
    with pytest.raises(Problems, match="gates"):
        bench = Bench(tmp_path, model={"embedding": ROWS})
        bench.compile([{"gates": {"from": "embedding", "to": "gate", "positive": positive}}])
