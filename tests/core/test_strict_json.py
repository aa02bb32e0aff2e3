"""JSON from anyone: what has two readings is refused, and all else is what the standard library reads."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.strict_json import at, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_has_one_reading_is_what_the_standard_library_reads(value: object) -> None:
    assert read_json(json.dumps(value)) == value


@pytest.mark.parametrize("text", ['{"r": 8, "r": 4}', '[{"a": {"b": 1, "\\u0062": 1}}]'])
def test_a_key_that_comes_twice_is_refused_at_any_depth(text: str) -> None:
    with pytest.raises(ValueError, match=r"the key '(r|b)' twice"):
        read_json(text)


def test_numbers_that_json_lacks_are_in_configurations_but_not_in_headers() -> None:
    assert read_json('{"time_step_limit": [0.0, Infinity]}') == {"time_step_limit": [0.0, math.inf]}
    for word in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(ValueError, match=f"{word} is not JSON"):
            read_json(f"[{word}]", constants=False)


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="too deeply"):
        read_json("[" * 100_000)


def test_what_is_not_on_a_path_is_said() -> None:
    table = {"a": {"b": [1]}}
    assert at(table, "a", "b") == [1] and at(table) is table
    with pytest.raises(KeyError, match="c"):
        at(table, "a", "c")
    with pytest.raises(TypeError, match="list where an object with 'c' is expected"):
        at(table, "a", "b", "c")
