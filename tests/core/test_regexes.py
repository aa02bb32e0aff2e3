"""Expressions of users end in time, and so do our own, whatever text they are given."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import write_checkpoint

from surgery_jax import PlanError, Problems, check, diff, inspect, plan_of, spectrum
from surgery_jax.core import regexes
from surgery_jax.core.errors import Mark, SurgeryError
from surgery_jax.language.interpolate import escape, interpolate
from surgery_jax.language.names import NameIndex, Selector, could_produce, parse_reference
from surgery_jax.language.nodes import Mapping, Scalar, Sequence

HERE = Mark("plan.yaml", 1, 1)
NAMES = [f"model.layers.{n}.self_attn.{part}_proj.weight" for n in range(40) for part in "qkvo"]
ENDLESS = ["(.+)+(.+)+x", "(.*)(.*)(.*)(.*)(.*)(.*)x", r"(\w|\w\w|\.)*!", "(?:(?:a|b|.)+)+!", "(?:){1000000000}!"]
ORDINARY = [r"(.+)\.layers\.(\d+)\.(.+)", r"(\w+\.)*weight", r"model\.layers\.(?P<index>\d+)\..+\.(q|k|v|o)_proj\..*"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m.safetensors", {name: np.zeros(1, np.float32) for name in NAMES[:8]})


def within(seconds: float, work: Any) -> str:
    """What an error says that comes soon."""
    began = time.monotonic()
    with pytest.raises((PlanError, Problems)) as caught:
        work()
    assert time.monotonic() - began < seconds
    return str(caught.value)


@pytest.mark.parametrize("expr", ENDLESS)
def test_an_expression_without_end_is_an_error(expr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regexes, "LIMIT_S", 1)
    selector = Selector(parse_reference(Scalar(expr, HERE), "m"))
    text = within(20, lambda: selector.match(NameIndex(NAMES)))
    assert str(HERE) in text and "takes too long" in text


@pytest.mark.parametrize("expr", ORDINARY)
def test_ordinary_expressions_match_as_ever(expr: str) -> None:
    selector = Selector(parse_reference(Scalar(expr, HERE), "m"))
    assert selector.match(NameIndex(NAMES)) == sorted(filter(re.compile(expr).fullmatch, NAMES))


def test_what_takes_a_moment_at_each_of_many_names_is_tried_without_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"{name}.{number}" for number in range(500) for name in NAMES]
    monkeypatch.setattr("subprocess.run", None)
    for expr in (ORDINARY[0], ORDINARY[2]):
        assert regexes.ends_in_time(re.compile(expr), names)
    quadratic = re.compile(r"(.+)\.(.+)z")  # each name is short work; all of them are not
    monkeypatch.setattr(regexes, "LIMIT_S", 0.01)
    assert not regexes.ends_in_time(quadratic, names)


def test_patterns_of_segments_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regexes, "LIMIT_S", 1)
    regex = Sequence((Scalar("~(.+)+x", HERE),), HERE)
    assert "takes too long" in within(20, lambda: Selector(parse_reference(regex, "m")).match(NameIndex(["a" * 60])))
    twice = Sequence(tuple(Scalar(token, HERE) for token in ["*a", "*b", "*c", "*d", "*a", "!"]), HERE)
    many = Selector(parse_reference(twice, "m"))
    assert "too many ways" in within(20, lambda: many.match(NameIndex([".".join("a" * 100) + ".!"])))


def test_filters_are_bounded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regexes, "LIMIT_S", 1)
    for work in (inspect, spectrum, lambda path, filter: diff(path, path, filter=filter)):
        assert "takes too long" in within(20, lambda work=work: work(model, filter="(.+)+(.+)+x"))


@pytest.mark.parametrize("word", ["skip", "modules_to_save"])
def test_patterns_of_extraction_are_bounded(model: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regexes, "LIMIT_S", 1)
    step = {"base": "b::(.+)", "tuned": r"t::\1", "to": "a", "rank": 1, word: "(.+)+(.+)+x"}
    plan = plan_of({"inputs": [f"b::{model}", f"t::{model}"], "transforms": [{"lora_extract": step}]})
    assert "takes too long" in within(20, lambda: check(plan))


# ---------------------------------------------------------------------------------------------------- our own patterns


def steps(model: Path, *content: Any) -> None:
    check(plan_of({"inputs": [str(model)], "transforms": list(content)}))


def references(text: str) -> None:
    interpolate(Mapping({"a": Scalar(text, HERE), "\\'": Scalar("x", HERE)}, {"a": HERE, "\\'": HERE}, HERE))


LONG = 200_000
OWN = {
    "backslashes": lambda model: escape(Scalar("\\" * LONG, HERE)),
    "a quote that stays open": lambda model: references("${" + "\\'" * (LONG // 2)),
    "references with open quotes": lambda model: references("${\\'}" * (LONG // 5)),
    "a slice that stays open": lambda model: steps(model, {"copy": {"from": "m::[" + "::" * LONG, "to": "x"}}),
    "groups that stay open": lambda model: steps(
        model, {"copy": {"from": "none", "to": r"\g<" * (LONG // 3)}}, {"delete": {"target": "other"}}
    ),
    "many groups": lambda model: steps(
        model, {"copy": {"from": "(none)", "to": r"\1a" * 10_000}}, {"assign": {"from": NAMES[0], "to": "a" * LONG}}
    ),
}


@pytest.mark.parametrize("kind", OWN)
def test_our_own_patterns_take_time_in_proportion_to_the_text(model: Path, kind: str) -> None:
    began = time.process_time()
    try:
        OWN[kind](model)
    except SurgeryError:
        pass
    assert time.process_time() - began < 10  # a quadratic one takes minutes


@given(st.lists(st.sampled_from(["a", ".", "b", "ab"]), max_size=6), st.lists(st.sampled_from("ab."), max_size=8))
def test_a_template_could_produce_what_the_same_pattern_of_wildcards_matches(parts: list[str], name: list[str]) -> None:
    template = r"\1".join(parts)
    found = could_produce(parse_reference(Scalar("x" + template, HERE), "m"), "x" + "".join(name))
    assert found == bool(re.fullmatch("x" + ".*".join(map(re.escape, parts)), "x" + "".join(name)))
