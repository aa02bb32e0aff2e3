"""Task vectors of which NumPy ranks the elements between two compiled functions: what NumPy alone makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from running import Bench, assert_same_bits, read_checkpoint

RNG = np.random.default_rng(11)
SHAPE = (2051, 2048)  # rows that fill no whole tile, and enough elements that compiling is worth it


def _tuned() -> np.ndarray:
    """Few magnitudes, each of them often."""
    base = RNG.standard_normal(SHAPE, dtype="f4").astype(ml_dtypes.bfloat16).astype("f4")
    tuned = (base + 0.05 * RNG.standard_normal(SHAPE, dtype="f4")).astype(ml_dtypes.bfloat16).astype("f4")
    return (tuned - base).astype(ml_dtypes.bfloat16)


def _small() -> np.ndarray:
    """Some that devices would flush."""
    return RNG.standard_normal(SHAPE, dtype="f4") * np.where(RNG.random(SHAPE) < 0.1, 1e-39, 1e-3).astype("f4")


KINDS: dict[str, Any] = {
    "bfloat16": _tuned,
    "float16": lambda: RNG.standard_normal(SHAPE, dtype="f4").astype("f2"),
    "float32": lambda: RNG.standard_normal(SHAPE, dtype="f4"),
    "subnormal": _small,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_what_numpy_keeps(tmp_path: Path, kind: str) -> None:
    delta = KINDS[kind]()
    bench = Bench(tmp_path, b={"w": np.zeros_like(delta)}, m={"w": delta})

    def merged(memory: str, **more: Any) -> tuple[np.ndarray, Any]:
        own = {"density": 0.5, "epsilon": 0.3}
        step = {"method": "della_linear", "base": "b::w", "models": {"m": own}, "weight": 1, "to": "b::out", **more}
        report = bench.report([{"merge": step}], memory=memory)
        return read_checkpoint(bench.out)["out"], report

    alone, report = merged("1GiB", rescale=False)
    assert report.num_compilations == 0
    found, report = merged("1GiB")
    assert report.num_compilations >= 2 and (report.num_host_fallbacks > 0) == (kind == "subnormal")
    assert_same_bits(found != 0, alone != 0)
    factor = np.abs(delta.astype("f8")).sum() / np.abs(alone.astype("f8")).sum()
    assert_same_bits(found, (alone.astype("f4") * np.float32(factor)).astype(delta.dtype))
    if kind in ("bfloat16", "subnormal"):
        assert_same_bits(merged("96MiB")[0], found)
