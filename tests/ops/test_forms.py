"""What steps with a destination, and steps that select, promise whatever they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, assert_same_bits

from surgery_jax import PlanError, Problems

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.full((2, 3), 2, np.float32)
TENSORS = {
    "a": A,
    "b": B,
    "half": np.zeros((2, 3), np.float16),
    "flat": np.zeros(6, np.float32),
    "block": np.zeros((4, 3), np.float32),
    "ids": np.array([300, 2**40], np.int64),
    "mask": np.array([True, False]),
    "narrow": np.ones(4, np.float16),
    "wave": np.ones(2, np.complex64),
}
THREE = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, m=TENSORS)


def refused(bench: Bench, *steps: Any) -> str:
    with pytest.raises((PlanError, Problems)) as caught:
        bench.compile(list(steps))
    return str(caught.value)


@pytest.mark.parametrize("word", THREE)
@pytest.mark.parametrize(
    ("to", "there", "result"),
    [
        ("flat", "float32[6]", "float32[2, 3]"),
        ("half", "float16[2, 3]", "float32[2, 3]"),
        ("block::[0]", "float32[3]", "float32[2, 3]"),
        ("block::[:3]", "float32[3, 3]", "float32[2, 3]"),
        ("block::[:, :2]", "float32[4, 2]", "float32[2, 3]"),
    ],
)
def test_what_exists_keeps_its_shape_and_dtype(bench: Bench, word: str, to: str, there: str, result: str) -> None:
    text = refused(bench, {word: {"from_a": "a", "from_b": "b", "to": to}})
    assert to in text and there in text and result in text


@pytest.mark.parametrize("word", THREE)
def test_a_destination_of_the_same_shape_and_dtype_is_written(bench: Bench, word: str) -> None:
    found = bench.tensors(
        [
            {word: {"from_a": "a", "from_b": "b", "to": "block::[1:3]"}},
            {word: {"from_a": "a", "from_b": "b", "to": "b"}},
        ]
    )
    expected = np.zeros((4, 3), np.float32)
    expected[1:3] = THREE[word](A, B)
    assert_same_bits(found["block"], expected)
    assert_same_bits(found["b"], THREE[word](A, B))


def test_the_advice_for_a_destination_of_another_shape_works(bench: Bench) -> None:
    text = refused(bench, {"add": {"from_a": "a", "from_b": "b", "to": "flat"}})
    assert "copy one to a new name and write there" in text
    found = bench.tensors([{"copy": {"from": "a", "to": "sum"}}, {"add": {"from_a": "a", "from_b": "b", "to": "sum"}}])
    assert_same_bits(found["sum"], A + B)


# ----------------------------------------------------------------------------------------------------------- where


def test_a_step_takes_only_tensors_of_the_dtypes_that_it_names(bench: Bench) -> None:
    found = bench.tensors([{"cast_": {"target": ".+", "to": "bfloat16", "where": {"dtype": "float"}}}])
    floats = {name for name, array in TENSORS.items() if array.dtype.kind == "f"}
    assert {name for name, array in found.items() if array.dtype.name == "bfloat16"} == floats
    for name in TENSORS.keys() - floats:
        assert_same_bits(found[name], TENSORS[name])


@pytest.mark.parametrize(
    ("dtype", "taken"),
    [
        ("float", ["a", "b", "half", "flat", "block", "narrow"]),
        ("int", ["ids"]),
        ("bool", ["mask"]),
        ("complex", ["wave"]),
        ("float32", ["a", "b", "flat", "block"]),
        ("fp16", ["half", "narrow"]),
        (["int", "bool"], ["ids", "mask"]),
        (["float16", "complex"], ["half", "narrow", "wave"]),
    ],
    ids=str,
)
def test_dtypes_are_kinds_or_names_or_lists_of_them(bench: Bench, dtype: Any, taken: list[str]) -> None:
    found = bench.tensors(
        [{"delete": {"target": ".+", "where": {"dtype": dtype}}}, {"zeroes": {"target": "z", "shape": [1]}}]
    )
    assert found.keys() == TENSORS.keys() - set(taken) | {"z"}


FLOATS = {"where": {"dtype": "float"}}
SELECTING: list[Any] = [
    {"copy": {"from": "(ids|half)", "to": r"\1.new", **FLOATS}},
    {"move": {"from": "(ids|half)", "to": r"\1.new", **FLOATS}},
    {"scale": {"from": "(ids|half)", "to": r"\1.new", "by": 2, **FLOATS}},
    {"cast": {"from": "(ids|half)", "to": r"\1.new", "dtype": "int8", **FLOATS}},
    {"reshape": {"from": "(ids|half)", "to": r"\1.new", "shape": [6], **FLOATS}},
    {"unstack": {"from": "(ids|half)", "to": r"\1.new.\g<index>", **FLOATS}},
    {"phlora": {"target": "(ids|half)", "target_a": r"\1.new.a", "target_b": r"\1.new.b", "rank": 1, **FLOATS}},
]


@pytest.mark.parametrize("step", SELECTING, ids=lambda step: next(iter(step)))
def test_every_step_that_selects_can_select_by_dtype(bench: Bench, step: Any) -> None:
    names = [name for name, _ in bench.compile([step]).symbolic.saves[0].tensors]
    assert any(name.startswith("half.new") for name in names)
    assert not any(name.startswith("ids.new") for name in names)


def test_steps_that_combine_select_by_what_they_read(bench: Bench) -> None:
    found = bench.tensors([{"add_": {"from": "(a|ids)", "to": r"\1", "where": {"dtype": "int"}}}])
    assert_same_bits(found["ids"], TENSORS["ids"] * 2)
    assert_same_bits(found["a"], A)


def test_nothing_of_a_dtype_is_an_error_that_names_those_that_are_there(bench: Bench) -> None:
    text = refused(bench, {"cast_": {"target": "a|ids", "to": "float16", "where": {"dtype": "complex"}}})
    assert "of 2 tensors that match a|ids none is of dtype complex" in text and "float32, int64" in text


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("float", "{ dtype: float }"),
        ({"dtyp": "float"}, "{ dtype: float }"),
        ({"dtype": "flaot32"}, "did you mean float32?"),
        ({"dtype": []}, "no dtype is named"),
        ({"dtype": "float", "shape": [1]}, "unknown key 'shape'"),
    ],
    ids=str,
)
def test_a_condition_of_the_wrong_form_says_what_is_expected(bench: Bench, where: Any, said: str) -> None:
    assert said in refused(bench, {"cast_": {"target": ".+", "to": "float16", "where": where}})


@pytest.mark.parametrize("step", [{"zeroes": {"target": "z", "shape": [1], **FLOATS}}, {"exit": FLOATS}], ids=str)
def test_steps_that_select_nothing_have_no_such_key(bench: Bench, step: Any) -> None:
    assert "unknown keys: ['where']" in refused(bench, step)
