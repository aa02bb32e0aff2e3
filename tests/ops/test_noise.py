"""`noise`: a distribution, and the same bits for the same seed, name and position, wherever they are computed."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from running import Bench, assert_same_bits, dtype
from scipy import stats

from surgery_jax import Problems
from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.specs import Spec
from surgery_jax.kit.made import Positions
from surgery_jax.numerics import threefry
from surgery_jax.numerics.host_kernel import HostKernel
from surgery_jax.ops.noise import Noise

RNG = np.random.default_rng(11)
STORED = {
    "long": RNG.standard_normal((700, 900)).astype("f4"),
    "other": np.zeros((700, 900), "f4"),
    "short": RNG.standard_normal(5).astype(dtype("bfloat16")),
    "wide": RNG.standard_normal((30, 20)),
}


def box_muller(op: Noise, source: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The words of JAX's generator, and the library's logarithm and cosine."""
    with jax.enable_x64(True), jax.threefry_partitionable(True):
        key = jax.random.wrap_key_data(np.array([op.first, op.second], np.uint32))
        drawn = np.asarray(jax.random.bits(key, (int(position.max()) + 1,), np.uint64))[position]
    a, b = (drawn >> np.uint64(32)).astype(np.float64), (drawn & np.uint64(0xFFFFFFFF)).astype(np.float64)
    noise = np.sqrt(-2 * np.log((a + 1) * 2.0**-32)) * np.cos(2 * np.pi * (b * 2.0**-32))
    return (source.astype(np.float64) + op.std * noise).astype(source.dtype)


PLACES = np.arange(35, dtype=np.uint64).reshape(5, 7)
CASES = [
    (
        Noise(0.5, 3).named("w"),
        [RNG.standard_normal((5, 7)).astype(dtype(name)), PLACES],
    )
    for name in ("float32", "bfloat16", "float64")
]
REFERENCES = {
    "Noise": (CASES, box_muller, "close"),
    "Positions": ([(Positions(Spec((5, 7), BY_NAME["uint64"])), [])], lambda op: PLACES, "made"),
}


@pytest.mark.parametrize("options", [{}, {"memory": "4MiB", "workers": 1}], ids=["ample", "tight"])
def test_noise_depends_on_seed_and_name_and_not_on_how_it_is_made(tmp_path: Path, options: dict[str, str]) -> None:
    steps = [{"noise_": {"target": ".+", "std": 0.1, "seed": 4}}]
    found = Bench(tmp_path / "all", m=STORED).tensors(steps, **options)
    for name, array in STORED.items():
        alone = Bench(tmp_path / name, m={name: array}).tensors(steps)
        assert_same_bits(found[name], alone[name], name)
    noise = found["long"] - STORED["long"], found["other"]
    assert abs(np.corrcoef(noise[0].reshape(-1), noise[1].reshape(-1))[0, 1]) < 0.01
    again = Bench(tmp_path / "seed", m=STORED).tensors([{"noise_": {"target": "other", "std": 0.1, "seed": 5}}])
    assert not np.array_equal(again["other"], found["other"])


def test_noise_is_normal() -> None:
    drawn = threefry.normal(HostKernel(), threefry.key_of(1, "w"), np.arange(200_000, dtype=np.uint64))
    assert stats.kstest(drawn, "norm").pvalue > 0.001
    even = threefry.uniform(HostKernel(), threefry.key_of(1, "w"), np.arange(200_000, dtype=np.uint64))
    assert stats.kstest(even, "uniform").pvalue > 0.001


def test_negative_deviations_and_integers_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": STORED["long"], "n": np.arange(4)})
    with pytest.raises(Problems, match="std must not be negative"):
        bench.compile([{"noise_": {"target": "w", "std": -1}}])
    with pytest.raises(Problems, match="needs a floating-point tensor"):
        bench.compile([{"noise_": {"target": "n", "std": 1}}])
