"""`sum`: any number of operands, added in their order and rounded to their dtype once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import Bench, assert_same_bits, dtype

from surgery_jax import Problems
from surgery_jax.ops.sum import Sum

RNG = np.random.default_rng(8)


def drawn(name: str, shape: tuple[int, ...] = (4, 9)) -> np.ndarray:
    wide = RNG.standard_normal(shape) * 50
    return wide.astype(dtype(name))


def added(op: Sum, *arrays: np.ndarray) -> np.ndarray:
    narrow = arrays[0].dtype.itemsize == 2
    wide = [array.astype(np.float32) if narrow else array for array in arrays]
    total = wide[0]
    for other in wide[1:]:
        total = total + other
    return total.astype(arrays[0].dtype)


CASES = [(Sum(), [drawn(name) for _ in range(3)]) for name in ("bfloat16", "float16", "float32", "float64", "int8")]
REFERENCES = {"Sum": (CASES, added, "bits")}


def test_matches_of_the_first_operand_are_added_to_those_that_belong_to_them(tmp_path: Path) -> None:
    sides = {alias: {f"{n}.w": drawn("bfloat16") for n in "ab"} for alias in ("x", "y", "z")}
    bench = Bench(tmp_path, **sides, out={"keep": drawn("float32")})
    found = bench.tensors([{"sum": {"from": "x::(.+)", "and": [r"y::\1", r"z::\1"], "to": r"out::sum.\1"}}])
    for n in "ab":
        parts = [sides[alias][f"{n}.w"] for alias in ("x", "y", "z")]
        assert_same_bits(found[f"sum.{n}.w"], added(Sum(), *parts))


def test_missing_and_unequal_operands_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, x={"w": drawn("float32")}, y={"v": drawn("float32"), "w": drawn("float32", (3,))})
    for others, said in ((["y::no"], "sum and missing: y::no"), (["y::w"], "shapes differ"), ("y::w", "not a list")):
        with pytest.raises(Problems, match=said):
            bench.compile([{"sum": {"from": "x::w", "and": others, "to": "x::new"}}])
