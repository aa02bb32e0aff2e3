"""Trees of tensor names: the reference's look for ordinary names, and some clear layout for all others."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.trees import format_number, render_json, render_tree

# Outputs of brainsurgery 0.2.12 for these tensors.
ORDINARY = {
    f"h.{i}.{name}": f"shape=[{3 + (i == 5 and name == 'w')}]" for i in range(12) for name in ("attn.b", "w")
} | {
    "wte.y": "shape=[]",
    "wte-x.y": "shape=[1]",
    "L.1.0": "shape=[1]",
    "L.0.0": "shape=[1]",
    "L.0.1": "shape=[1]",
    "e.1.w": "shape=[2]",
    "e.2.w": "shape=[2]",
    "e.4.w": "shape=[2]",
}
FOLDED = """\
├── L
│   ├── [0]
│   │   └── [0-1]  shape=[1]
│   └── [1]
│       └── [0]  shape=[1]
├── e
│   ├── [1-2]
│   │   └── w  shape=[2]
│   └── [4]
│       └── w  shape=[2]
├── h
│   ├── [0-4]
│   │   ├── attn
│   │   │   └── b  shape=[3]
│   │   └── w  shape=[3]
│   ├── [5]
│   │   ├── attn
│   │   │   └── b  shape=[3]
│   │   └── w  shape=[4]
│   └── [6-11]
│       ├── attn
│       │   └── b  shape=[3]
│       └── w  shape=[3]
├── wte-x
│   └── y  shape=[1]
└── wte
    └── y  shape=[]"""


def test_equal_neighbours_in_a_list_are_folded_and_others_are_not() -> None:
    assert render_tree(ORDINARY, fold=True) == FOLDED


def test_items_stand_in_order_of_their_indices_whatever_the_order_of_the_names() -> None:
    assert render_tree(dict(reversed(ORDINARY.items())), fold=True) == FOLDED


def test_without_folding_every_item_has_its_own_line() -> None:
    expected = """\
└── h
    ├── [1]  x
    ├── [2]  x
    └── [10]  x"""
    assert render_tree({"h.10": "x", "h.2": "x", "h.1": "x"}, fold=False) == expected


def test_an_alias_is_a_common_line_above_all_names() -> None:
    entries = {"h.0.w": "shape=[4]", "h.1.w": "shape=[4]", "ln": "shape=[4]"}
    expected = """\
└── model.v2
    ├── h
    │   └── [0-1]
    │       └── w  shape=[4]
    └── ln  shape=[4]"""
    assert render_tree(entries, fold=True, root="model.v2") == expected


def test_an_alias_without_tensors_is_a_line_alone() -> None:
    assert render_tree({}, fold=True, root="a") == "└── a"
    assert render_json({}, root="a") == '{"a":{}}'


def test_nothing_is_an_empty_text_and_an_empty_object() -> None:
    assert render_tree({}, fold=True) == ""
    assert render_json({}) == "{}"


def test_different_texts_keep_items_apart() -> None:
    expected = """\
└── h
    ├── [0-1]  mean=1
    └── [2]  mean=2"""
    assert render_tree({"h.0": "mean=1", "h.1": "mean=1", "h.2": "mean=2"}, fold=True) == expected


def test_names_may_begin_with_a_number() -> None:
    expected = """\
├── [0-1]
│   └── weight  x
└── [2]
    └── bias  x"""
    entries = {"0.weight": "x", "1.weight": "x", "2.bias": "x"}
    assert render_tree(entries, fold=True) == expected
    assert render_json(entries) == '{"0":{"weight":"x"},"1":{"weight":"x"},"2":{"bias":"x"}}'


def test_numbers_come_before_words_among_siblings() -> None:
    expected = """\
└── a
    ├── [0-1]  x
    ├── -b  y
    └── c  z"""
    entries = {"a.0": "x", "a.1": "x", "a.-b": "y", "a.c": "z"}
    assert render_tree(entries, fold=True) == expected
    assert render_json(entries) == '{"a":{"-b":"y","0":"x","1":"x","c":"z"}}'


def test_a_name_that_is_a_prefix_of_others_keeps_its_text_above_them() -> None:
    expected = """\
└── m
    └── a  x
        ├── [0]  y
        └── b  z
            └── c  z"""
    entries = {"m.a": "x", "m.a.0": "y", "m.a.b": "z", "m.a.b.c": "z"}
    assert render_tree(entries, fold=True) == expected
    assert render_json(entries) == '{"m":{"a":"x","a.0":"y","a.b":"z","a.b.c":"z"}}'


def test_a_list_item_that_is_also_a_prefix_turns_the_list_into_a_mapping() -> None:
    assert render_json({"h.0": 1, "h.0.w": 2, "h.1.w": 3}) == '{"h":{"0":1,"0.w":2,"1":{"w":3}}}'


def test_two_spellings_of_one_index_are_both_shown() -> None:
    expected = """\
└── a
    ├── [7]  x
    └── 07  y"""
    assert render_tree({"a.7": "x", "a.07": "y"}, fold=True) == expected
    assert render_json({"a.7": 1, "a.07": 2}) == '{"a":{"07":2,"7":1}}'


def test_digits_of_other_scripts_are_words() -> None:
    assert render_tree({"a.²": "x", "a.٣": "y"}, fold=True).splitlines()[1:] == ["    ├── ²  x", "    └── ٣  y"]


def test_a_huge_index_costs_no_list_of_that_length() -> None:
    huge = "9" * 5000
    assert render_tree({"a.1000000": "x"}, fold=True) == "└── a\n    └── [1000000]  x"
    assert render_json({"a.1000000": 1, f"b.{huge}": 2}) == f'{{"a":{{"1000000":1}},"b":{{"{huge}":2}}}}'


def test_holes_of_a_list_are_null() -> None:
    assert render_json({"h.1.w": {"shape": [4], "dtype": "F32"}}) == '{"h":[null,{"w":{"dtype":"F32","shape":[4]}}]}'


def test_line_breaks_and_terminal_codes_in_names_are_escaped() -> None:
    assert render_tree({"a\n└── b": "x", "\x1b[2J": "y"}, fold=True) == "├── \\x1b[2J  y\n└── a\\n└── b  x"


def test_names_of_thousands_of_parts_do_not_exhaust_the_stack() -> None:
    deep = ".".join(["a"] * 5000)
    assert render_tree({deep: "x"}, fold=True).endswith("a.a  x")
    assert deep.count("a") == render_json({deep: 1}).count("a")


NAMES = st.lists(st.sampled_from(["", "a", "b", "0", "1", "01", "2000"]), min_size=1, max_size=4).map(".".join)


@given(st.dictionaries(NAMES, st.integers(), max_size=12))
def test_every_value_of_any_set_of_names_is_found_again_under_its_name(entries: dict[str, int]) -> None:
    found: dict[str, int] = {}

    def walk(node: object, name: list[str]) -> None:
        if isinstance(node, int):
            found[".".join(name)] = node
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in pairs:
            walk(child, [*name, str(key)])

    walk(json.loads(render_json(entries)), [])
    # A list tells indices, not their spelling: 01 is found as 1.
    assert sorted(found.values()) == sorted(entries.values())
    assert {name.replace("01", "1") for name in found} == {name.replace("01", "1") for name in entries}
    assert len(render_tree({name: "x" for name in entries}, fold=False).split("  x")) == len(entries) + 1


def test_a_hundred_thousand_names_are_folded_in_linear_time() -> None:
    entries = {f"m.layers.{i}.e.{j}.{w}": "shape=[4]" for i in range(50) for j in range(500) for w in "abcd"}
    start = time.process_time()
    assert "[0-49]" in render_tree(entries, fold=True)
    assert time.process_time() - start < 10  # about 0.5 s; quadratic work would take minutes


@pytest.mark.parametrize(
    "number, text",
    [
        (0.5, "0.5"),
        (1 / 3, "0.333333"),
        (1234567.0, "1.23457e+06"),
        (2.0, "2"),
        (float("nan"), "nan"),
        (-1e-9, "-1e-09"),
    ],
)
def test_numbers_are_shown_with_six_significant_digits(number: float, text: str) -> None:
    assert format_number(number) == text
