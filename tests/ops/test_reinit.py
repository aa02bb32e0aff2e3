"""`reinit`: the places that are drawn anew, how many and what, and that tensors share them."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from running import Bench, assert_same_bits, dtype
from scipy import stats

from surgery_jax import Options, Problems, explain, plan_of
from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.specs import Spec
from surgery_jax.ops.reinit import Reinit

RNG = np.random.default_rng(7)


def bits(first: float, second: float, count: int) -> np.ndarray:
    with jax.enable_x64(True), jax.threefry_partitionable(True):
        key = jax.random.wrap_key_data(np.array([first, second], np.uint32))
        return np.asarray(jax.random.bits(key, (count,), np.uint64))


def drawn(op: Reinit, source: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    """The words of JAX's generator: those of the places in order, and Box and Muller's formula of those of elements."""
    mean, std = rest[0] if len(rest) > 1 else (op.mean, op.std)
    words = bits(op.chosen_first, op.chosen_second, int(op.length))
    chosen = words.argsort().argsort() < op.count
    place = (np.arange(source.size) // int(op.inner) % int(op.length)).reshape(source.shape)
    found = bits(op.first, op.second, source.size).reshape(source.shape)
    a, b = (found >> np.uint64(32)).astype(np.float64), (found & np.uint64(0xFFFFFFFF)).astype(np.float64)
    noise = np.sqrt(-2 * np.log((a + 1) * 2.0**-32)) * np.cos(2 * np.pi * (b * 2.0**-32))
    return np.where(chosen[place], (mean + std * noise).astype(source.dtype), source)


PLACES = np.arange(35, dtype=np.uint64).reshape(5, 7)


def case(name: str, dim: int, *statistics: np.ndarray) -> tuple[Reinit, list[np.ndarray]]:
    given = {} if statistics else {"mean": 1.0, "std": 0.5}
    op = Reinit(0.5, dim, 3, **given).of("w", "shared", Spec((5, 7), BY_NAME[name]))
    return op, [RNG.standard_normal((5, 7)).astype(dtype(name)), *statistics, PLACES]


REFERENCES = {
    "Reinit": (
        [
            case("float32", 0),
            case("float64", 1),
            case("bfloat16", -1, np.array([3.0, 0.5])),
        ],
        drawn,
        "close",
    )
}


def experts(count: int = 3) -> dict[str, np.ndarray]:
    shapes = {"gate": (11, 6), "up": (11, 6), "down": (6, 11)}
    return {
        f"x.{e}.{name}": (RNG.standard_normal(shape) * 0.3 + 1).astype("f4")
        for e in range(count)
        for name, shape in shapes.items()
    }


STEPS = [
    {"reinit_": {"target": "(x\\.\\d+)\\.(?:gate|up)", "ratio": 0.5, "share": "\\1", "seed": 5}},
    {"reinit_": {"target": "(x\\.\\d+)\\.down", "ratio": 0.5, "dim": 1, "share": "\\1", "seed": 5}},
]


def test_the_matrices_of_an_expert_have_the_same_places_drawn_anew_and_experts_have_others(tmp_path: Path) -> None:
    stored = experts()
    bench = Bench(tmp_path, m=stored)
    assert len(explain(plan_of(bench.plan(STEPS)), Options()).groups) <= 2
    found = bench.tensors(STEPS)
    places = {}
    for name, before in stored.items():
        changed = found[name] != before
        axis = 1 if name.endswith("down") else 0
        places[name] = np.flatnonzero(changed.any(axis=1 - axis))
        assert changed.take(places[name], axis).all(), "whole rows or columns"
        assert len(places[name]) == 6  # 5.5, half to even
    for e in range(3):
        one, *others = (places[f"x.{e}.{name}"].tolist() for name in ("gate", "up", "down"))
        assert one == others[0] == others[1]
    assert len({tuple(places[f"x.{e}.gate"]) for e in range(3)}) == 3
    assert not np.array_equal(found["x.0.gate"][places["x.0.gate"]], found["x.0.up"][places["x.0.gate"]])


def test_what_is_drawn_has_mean_and_deviation_of_the_whole_tensor(tmp_path: Path) -> None:
    wide = (RNG.standard_normal((400, 500)) * 0.3 + 2).astype("f4")
    bench = Bench(tmp_path, m={"w": wide})
    steps = [{"reinit_": {"target": "w", "ratio": 0.25, "dim": 1}}]
    found = bench.tensors(steps)["w"]
    changed = (found != wide).all(axis=0)
    assert changed.sum() == 125
    assert stats.kstest((found[:, changed].reshape(-1) - wide.mean()) / wide.std(), "norm").pvalue > 0.001
    assert_same_bits(found, bench.tensors(steps, memory="3MiB", workers=1)["w"])
    assert_same_bits(bench.tensors([{"reinit_": {"target": "w", "ratio": 0}}])["w"], wide)
    assert (bench.tensors([{"reinit_": {"target": "w", "ratio": 1}}])["w"] != wide).all()


def test_a_new_tensor_is_drawn_by_its_new_name_and_slices_by_theirs(tmp_path: Path) -> None:
    dense = RNG.standard_normal((8, 6)).astype("f4")
    steps = [
        {"reinit": {"from": "w", "to": f"{name}", "ratio": 0.5, "share": share}}
        for name, share in (("e.0", "e.0"), ("e.1", "e.1"), ("f.0", "e.0"))
    ]
    found = Bench(tmp_path / "new", m={"w": dense}).tensors(steps)
    places = {name: tuple(np.flatnonzero((found[name] != dense).any(1))) for name in ("e.0", "e.1", "f.0")}
    assert places["e.0"] == places["f.0"] != places["e.1"]
    assert not np.array_equal(found["e.0"], found["f.0"])
    fused = np.zeros((2, 8, 6), "f4")
    part = {"ratio": 1, "mean": 0, "std": 1}
    steps = [{"reinit_": {"target": f"w::[{e}]", "share": f"expert {e}", **part}} for e in range(2)]
    found = Bench(tmp_path / "fused", m={"w": fused}).tensors(steps)
    assert not np.array_equal(found["w"][0], found["w"][1]) and (found["w"] != 0).all()


def test_bad_shares_and_integers_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": np.ones((3, 4), "f4"), "n": np.arange(4)})
    for fields, problem in [
        ({"target": "w", "ratio": 1.5}, "ratio is from 0 to 1"),
        ({"target": "w", "ratio": 0.5, "dim": 2}, "no axis 2"),
        ({"target": "n", "ratio": 0.5}, "needs a floating-point tensor"),
        ({"target": "w", "ratio": 0.5, "std": -1}, "std must not be negative"),
    ]:
        with pytest.raises(Problems, match=problem):
            bench.compile([{"reinit_": fields}])
