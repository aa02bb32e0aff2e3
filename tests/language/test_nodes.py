"""Plans of ordinary Python values: what they may hold, and where their errors say they are."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, assert_same_bits

from surgery_jax import PlanError, Problems, check, plan_of
from surgery_jax.core.errors import Mark
from surgery_jax.language.nodes import node_of, plain


class Word(enum.StrEnum):
    TARGET = "a"


def plain_of(value: Any) -> object:
    return plain(node_of(value, Mark("plan", 0, 0)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(2), 2),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (Path("a/b"), "a/b"),
        (Word.TARGET, "a"),
        (np.str_("x"), "x"),
        ({3: (1, 2)}, {"3": [1, 2]}),
    ],
    ids=repr,
)
def test_values_of_numpy_and_paths_become_plain_ones(value: Any, expected: object) -> None:
    found = plain_of(value)
    assert found == expected and type(found) is type(expected)


def test_arrays_of_jax_and_torch_become_plain_ones() -> None:
    jnp, torch = pytest.importorskip("jax.numpy"), pytest.importorskip("torch")
    assert plain_of({"a": jnp.float32(0.5), "b": torch.arange(2), "c": torch.tensor(1.5)}) == {
        "a": 0.5,
        "b": [0, 1],
        "c": 1.5,
    }


def test_a_plan_of_such_values_runs_and_writes_to_a_path(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"a": np.ones(3, np.float32)})
    steps = [
        {"scale_": {"target": "a", "by": np.float32(2)}},
        {"fill": {"from": "a", "to": "b", "mode": "tensor", "values": np.arange(3)}},
    ]
    found = bench.tensors(steps)
    assert_same_bits(found["a"], np.full(3, 2, np.float32))
    assert_same_bits(found["b"], np.arange(3, dtype=np.float32))


STEPS: list[tuple[Any, str]] = [
    ({"scale_": {"target": "none", "by": 2}}, "transforms[1].scale_.target"),
    ({"scale_": {"target": "a", "by": "twice"}}, "transforms[1].scale_.by"),
    ({"scale_": {"target": "a", "byy": 2}}, "transforms[1].scale_.byy"),
    ({"scael_": {}}, "transforms[1].scael_"),
    ({"scale_": {"target": "a", "by": np.float32}}, "transforms[1].scale_.by"),
    ({"scale_": {"target": "a", "by": 10**5000}}, "transforms[1].scale_.by"),
    ({"scale_": {"target": "\ud800", "by": 1}}, "transforms[1].scale_.target"),
    ({"concat": {"from": ["a", "none"], "to": "b"}}, "transforms[1].concat.from[1]"),
    ({"assert": {"exists": "none"}}, "transforms[1].assert"),
    (
        {"execute": {"transforms": [{"delete": {"target": "none"}}]}},
        "transforms[1].execute.transforms[0].delete.target",
    ),
    (object(), "transforms[1]"),
]


@pytest.mark.parametrize(("step", "place"), STEPS, ids=range(len(STEPS)))
def test_errors_say_where_in_the_values_they_are(tmp_path: Path, step: Any, place: str) -> None:
    bench = Bench(tmp_path, m={"a": np.ones(3, np.float32)})
    with pytest.raises((PlanError, Problems)) as caught:
        bench.compile([{"scale_": {"target": "a", "by": 1}}, step])
    error = caught.value.single[0]
    assert str(error.where) == place
    assert str(error).startswith(f"{place}: ")
    assert error.as_json()["where"] == error.as_json()["path"] == place


@pytest.mark.parametrize(
    ("content", "place"),
    [([1], "plan"), ("x", "plan"), ({"inputs": 3}, "inputs"), ({"output": {"path": "a", "shrad": 1}}, "output.shrad")],
    ids=str,
)
def test_what_is_no_plan_is_an_error_with_a_place(content: Any, place: str) -> None:
    with pytest.raises(PlanError) as caught:
        check(plan_of(content))
    assert str(caught.value.where) == place


def test_values_within_themselves_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(PlanError, match="levels deep"):
        plan_of({"transforms": endless})
