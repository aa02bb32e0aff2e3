"""`normal` and `uniform`: their distributions, and the same bits wherever and with whatever they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from running import Bench, assert_same_bits, dtype
from scipy import stats

from surgery_jax import Options, Problems, explain, plan_of
from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.kit.draws import Moments
from surgery_jax.numerics.host_kernel import HostKernel
from surgery_jax.ops.normal import Normal
from surgery_jax.ops.uniform import Uniform

RNG = np.random.default_rng(21)
PLACES = np.arange(35, dtype=np.uint64).reshape(5, 7)
STORED = {
    "mlp.0": (RNG.standard_normal((600, 500)) * 0.3 + 2).astype("f4"),
    "mlp.1": (RNG.standard_normal((40, 30)) * 5 - 1).astype(dtype("bfloat16")),
    "other": np.ones(3, "f4"),
}


def words(op: Normal | Uniform) -> tuple[np.ndarray, np.ndarray]:
    with jax.enable_x64(True), jax.threefry_partitionable(True):
        key = jax.random.wrap_key_data(np.array([op.first, op.second], np.uint32))
        drawn = np.asarray(jax.random.bits(key, (35,), np.uint64)).reshape(5, 7)
    return (drawn >> np.uint64(32)).astype(np.float64), (drawn & np.uint64(0xFFFFFFFF)).astype(np.float64)


def normal(op: Normal, position: np.ndarray, *statistics: np.ndarray) -> np.ndarray:
    a, b = words(op)
    mean, std = statistics[0] if statistics else (op.mean, op.std)
    drawn = np.sqrt(-2 * np.log((a + 1) * 2.0**-32)) * np.cos(2 * np.pi * (b * 2.0**-32))
    return (mean + std * drawn).astype(op.dtype.numpy)


def uniform(op: Uniform, position: np.ndarray) -> np.ndarray:
    a, b = words(op)
    return (op.low + (op.high - op.low) * ((a * 2.0**21 + np.floor(b / 2**11)) * 2.0**-53)).astype(op.dtype.numpy)


REFERENCES = {
    "Normal": (
        [(Normal(mean=1.0, std=0.5).of("w", 1, BY_NAME[name]), [PLACES]) for name in ("float32", "float64")]
        + [(Normal(mean=None, std=None).of("w", 1, BY_NAME["bfloat16"]), [PLACES, np.array([3.0, 0.5])])],
        normal,
        "close",
    ),
    "Uniform": ([(Uniform(low=-1.0, high=2.0).of("w", 1, BY_NAME["float32"]), [PLACES])], uniform, "close"),
    "Moments": (
        [(Moments(), [array]) for array in STORED.values()],
        lambda op, x: np.array([x.astype(np.float64).mean(), x.astype(np.float64).std()]),
        "single",
    ),
}


def drawn(root: Path, steps: list[Any], **options: Any) -> dict[str, np.ndarray]:
    return Bench(root, m=STORED).tensors(steps, **options)


def test_names_and_seeds_make_tensors_differ_and_nothing_else_does(tmp_path: Path) -> None:
    steps = [{"normal": {"from": r"mlp\.(\d)", "to": r"new.\1", "std": 0.1}}]
    found = drawn(tmp_path / "a", steps)
    tight = drawn(tmp_path / "b", steps, memory="4MiB", workers=1)
    for name in ("new.0", "new.1"):
        assert_same_bits(found[name], tight[name])
        assert found[name].dtype == STORED[name.replace("new", "mlp")].dtype
    alone = [{"normal": {"to": "new.0", "shape": [600, 500], "std": 0.1}}]
    assert_same_bits(drawn(tmp_path / "c", alone)["new.0"], found["new.0"])
    shaped = drawn(tmp_path / "e", [{"normal": {"from": r"mlp\.(\d)", "to": r"new.\1", "shape": [7, 2], "std": 0.1}}])
    assert_same_bits(shaped["new.0"].reshape(-1), found["new.0"].reshape(-1)[:14])
    assert shaped["new.1"].shape == (7, 2) and shaped["new.1"].dtype == STORED["mlp.1"].dtype
    other = drawn(tmp_path / "d", [{"normal": {"to": "new.0", "shape": [600, 500], "std": 0.1, "seed": 1}}])
    assert abs(np.corrcoef(other["new.0"].reshape(-1), found["new.0"].reshape(-1))[0, 1]) < 0.01
    assert stats.kstest(found["new.0"].reshape(-1) / 0.1, "norm").pvalue > 1e-3


@pytest.mark.parametrize("word", ["normal", "uniform"])
def test_shapes_may_be_those_of_a_scalar_and_of_nothing(tmp_path: Path, word: str) -> None:
    steps = [{word: {"to": f"new.{n}", "shape": shape}} for n, shape in enumerate(([], [0], [3, 0, 2], [1]))]
    found = drawn(tmp_path, [*steps, {word: {"from": r"new\.1", "to": "new.4", "shape": []}}])
    assert [found[f"new.{n}"].shape for n in range(5)] == [(), (0,), (3, 0, 2), (1,), ()]
    assert found["new.0"] != found["new.4"]
    with pytest.raises(Problems, match="none below 0"):
        drawn(tmp_path / "b", [{word: {"to": "x", "shape": [-1]}}])


@pytest.mark.parametrize("memory", ["2GiB", "3MiB"])
def test_a_tensor_is_drawn_anew_with_its_own_mean_and_deviation(tmp_path: Path, memory: str) -> None:
    steps = [{"normal_": {"target": r"mlp\..+", "mean": "like", "std": "like"}}]
    found = drawn(tmp_path, steps, memory=memory, workers=1)
    for name in ("mlp.0", "mlp.1"):
        before, after = (side[name].astype(np.float64) for side in (STORED, found))
        assert abs(before.mean() - after.mean()) < 5 * before.std() / np.sqrt(before.size)
        assert abs(after.std() / before.std() - 1) < 5 / np.sqrt(before.size)
        assert not np.array_equal(before, after)
    assert_same_bits(found["other"], STORED["other"])
    kinds = [group.kind for group in explain(plan_of(Bench(tmp_path, m=STORED).plan(steps)), Options()).groups]
    assert set(kinds) == {"reductions"}


def test_a_part_of_a_tensor_is_drawn_with_the_statistics_of_that_part(tmp_path: Path) -> None:
    steps = [{"normal_": {"target": "mlp.0::[100:200]", "mean": "like", "std": 0}}]
    found = drawn(tmp_path, steps)["mlp.0"]
    mean = np.float32(STORED["mlp.0"][100:200].astype(np.float64).mean())
    np.testing.assert_allclose(found[100:200], np.full((100, 500), mean), rtol=1e-6)
    assert_same_bits(found[:100], STORED["mlp.0"][:100])
    assert_same_bits(found[200:], STORED["mlp.0"][200:])


def test_uniform_numbers_fill_their_interval(tmp_path: Path) -> None:
    found = drawn(tmp_path, [{"uniform": {"to": "new", "shape": [300, 500], "low": -2, "high": 3}}])["new"]
    assert -2 <= found.min() and found.max() < 3
    assert stats.kstest((found.reshape(-1) + 2) / 5, "uniform").pvalue > 1e-3


def test_moments_are_the_same_whole_and_in_tiles() -> None:
    x = STORED["mlp.0"]
    mean, std = Moments().apply(HostKernel(), x)
    assert abs(mean - x.astype(np.float64).mean()) < 1e-12 and abs(std - x.astype(np.float64).std()) < 1e-12


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"normal": {"to": "new", "std": 1}}, "needs `from` or `shape`"),
        ({"normal": {"to": "new", "shape": [3], "std": "like"}}, "`like` needs a tensor"),
        ({"normal": {"to": "new", "shape": [3], "std": -1}}, "std must not be negative"),
        ({"normal": {"to": "new", "shape": [3], "dtype": "int8"}}, "needs a floating-point tensor"),
        ({"uniform": {"to": "new", "shape": [3], "low": 2, "high": 1}}, "low must be below high"),
        ({"uniform": {"to": "new", "shape": [-3]}}, "not a shape"),
    ],
)
def test_what_gives_no_distribution_is_refused(tmp_path: Path, step: dict[str, Any], said: str) -> None:
    with pytest.raises(Problems, match=said):
        Bench(tmp_path, m=STORED).compile([step])


def test_a_shape_is_not_taken_from_a_slice_that_ends_beyond_the_tensor(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m=STORED)
    steps = [{"normal": {"from": "mlp.1::[:64, :]", "to": "router"}}]
    with pytest.raises(Problems, match="ends at 64, beyond axis 0 of shape"):
        bench.compile(steps)
    steps = [{"normal": {"from": "mlp.1::[:40, :]", "to": "router"}}]
    assert bench.tensors(steps)["router"].shape == (40, 30)
