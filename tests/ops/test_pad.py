"""`pad` and `resize`: lengths, and what new places are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import Bench, assert_same_bits, dtype
from scipy import stats

from surgery_jax import Problems
from surgery_jax.ops.pad import Average

RNG = np.random.default_rng(9)
E = (RNG.standard_normal((10, 6)) + 1).astype(dtype("bfloat16"))


def average(op: Average, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64).mean(op.axis, keepdims=True).astype(x.dtype)


REFERENCES = {
    "Average": (
        [
            (Average(axis), [RNG.standard_normal((5, 4, 3)).astype(dtype(name))])
            for name in ("float32", "bfloat16", "float64")
            for axis in (0, 1, 2)
        ],
        average,
        "close",
    )
}


def test_pad_adds_zeros_at_both_ends_and_keeps_what_is_there(tmp_path: Path) -> None:
    steps = [{"pad": {"from": "e", "to": "new", "before": 1, "after": 2, "dim": -1}}]
    bench = Bench(tmp_path, m={"e": E, "n": np.arange(4)})
    assert_same_bits(bench.tensors(steps)["new"], np.pad(E, [(0, 0), (1, 2)]))
    assert_same_bits(bench.tensors([{"pad_": {"target": "n", "after": 3}}])["n"], np.pad(np.arange(4), (0, 3)))


@pytest.mark.parametrize("options", [{}, {"memory": "3MiB", "workers": 1}], ids=["ample", "tight"])
def test_new_rows_are_the_mean_rounded_once(tmp_path: Path, options: dict[str, str]) -> None:
    stored = {"e": E, "l": RNG.standard_normal((300, 200)).astype("f4")}
    found = Bench(tmp_path, m=stored).tensors(
        [{"resize_": {"target": "l|e", "multiple_of": 64, "init": "mean"}}], **options
    )
    for name, before in stored.items():
        added = -len(before) % 64
        mean = before.astype(np.float64).mean(0).astype(before.dtype)
        assert_same_bits(found[name], np.concatenate([before, np.tile(mean, (added, 1))]), name)


def test_normal_rows_have_the_deviation_that_is_given_and_differ_by_name_and_seed(tmp_path: Path) -> None:
    stored = {"a": np.zeros((4, 500), "f4"), "b": np.zeros((4, 500), "f4"), "c": (RNG.standard_normal((4, 500)) * 3)}
    stored["c"] = stored["c"].astype("f4")
    bench = Bench(tmp_path, m=stored)
    step = {"target": ".+", "size": 100, "init": "normal"}
    found = bench.tensors([{"resize_": {**step, "std": 0.5, "seed": 1}}])
    assert stats.kstest(found["a"][4:].reshape(-1) / 0.5, "norm").pvalue > 0.001
    assert not np.array_equal(found["a"][4:], found["b"][4:])
    assert_same_bits(found["a"][:4], stored["a"])
    assert not np.array_equal(bench.tensors([{"resize_": {**step, "std": 0.5, "seed": 2}}])["a"], found["a"])
    like = bench.tensors([{"resize_": {**step, "mean": "like", "std": "like"}}])["c"][4:]
    assert abs(like.std() / stored["c"].std() - 1) < 0.05
    both = bench.tensors([{"pad_": {"target": "a", "before": 5, "after": 5, "init": "normal"}}])["a"]
    assert not np.array_equal(both[:5], both[-5:])


def test_resize_takes_away_what_is_beyond(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"e": E})
    steps = [
        {"resize": {"from": "e", "to": "less", "size": 3}},
        {"resize": {"from": "e", "to": "same", "multiple_of": 5}},
    ]
    found = bench.tensors(steps)
    assert_same_bits(found["less"], E[:3])
    assert_same_bits(found["same"], E)
    for fields, problem in [
        ({}, "needs one of size and multiple_of"),
        ({"size": 3, "multiple_of": 4}, "needs one of size and multiple_of"),
        ({"size": 0}, "positive"),
        ({"size": 30, "dim": 5}, "no axis 5"),
        ({"size": 30, "init": "ones"}, "unknown value 'ones'"),
    ]:
        with pytest.raises(Problems, match=problem):
            bench.compile([{"resize_": {"target": "e", **fields}}])
    with pytest.raises(Problems, match="must not be negative"):
        bench.compile([{"pad_": {"target": "e", "after": -1}}])
