"""Changing a JSON object as a text, compared with changing its value; what is not changed stays as it is spelled."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.json_text import parsed, put, removed, renamed

TEXT = """{
  "architectures": [ "A" ],
  "eps": 1e-5,
    "odd":   {"deep": 1, "more": [1,2]},
  "last": "\\u00e9"
}
"""


def test_a_value_is_replaced_where_it_stands() -> None:
    assert put(TEXT, ["eps"], 0.5) == TEXT.replace("1e-5", "0.5")
    assert put(TEXT, ["odd", "deep"], [2]) == TEXT.replace('"deep": 1', '"deep": [\n      2\n    ]')


def test_a_new_value_comes_last_and_looks_like_its_neighbours() -> None:
    assert put(TEXT, ["new"], {"a": 1}) == TEXT.replace('00e9"\n', '00e9",\n  "new": {\n    "a": 1\n  }\n')
    assert put(TEXT, ["odd", "third"], True) == TEXT.replace("[1,2]}", '[1,2], "third": true}')
    assert put('{"a":1,"b":2}', ["c"], 3) == '{"a":1,"b":2,"c":3}'
    assert put("{}", ["a", "b"], 1) == '{"a": {"b": 1}}'


def test_values_go_with_their_commas() -> None:
    assert removed(TEXT, ["architectures"]) == TEXT.replace('"architectures": [ "A" ],\n  ', "")
    assert removed(TEXT, ["odd", "more"]) == TEXT.replace(', "more": [1,2]', "")
    assert removed('{"a": {"b": 1}}', ["a", "b"]) == '{"a": {}}'


def test_a_key_is_renamed_in_its_place() -> None:
    assert renamed(TEXT, ["eps"], "rms_norm_eps") == TEXT.replace('"eps"', '"rms_norm_eps"')
    with pytest.raises(ValueError, match="last"):
        renamed(TEXT, ["eps"], "last")
    with pytest.raises(KeyError, match="none"):
        renamed(TEXT, ["none"], "new")


@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize(("opened", "closed"), [('{"a":', "}"), ("[", "]")])
def test_an_object_nested_without_end_is_refused_and_not_descended_into(depth: int, opened: str, closed: str) -> None:
    def nested(levels: int) -> str:
        return '{"dtype": "float32", "deep": ' + opened * levels + "1" + closed * levels + "}"

    assert parsed(nested(98))["dtype"] == "float32"
    with pytest.raises(ValueError, match="too deeply"):
        parsed(nested(depth))


KEYS = st.text('ab{}":, \\é', min_size=1, max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4), KEYS, VALUES, st.sampled_from([None, 1, 2, "\t"]), st.booleans())
def test_a_changed_text_is_the_text_of_the_changed_value(
    table: dict[str, object], key: str, value: object, indent: object, escaped: bool
) -> None:
    text = json.dumps(table, indent=indent, ensure_ascii=escaped)  # type: ignore[arg-type]
    found = put(text, [key], value)
    assert list(parsed(found).items()) == list((table | {key: value}).items())
    if key in table:
        assert list(parsed(removed(text, [key])).items()) == [(k, v) for k, v in table.items() if k != key]
    else:
        assert parsed(removed(found, [key])) == table
        for old in table:
            expected = [(key if k == old else k, v) for k, v in table.items()]
            assert list(parsed(renamed(text, [old], key)).items()) == expected
    if not escaped and key not in table and table:
        assert put(removed(found, [key]), [key], value) == found
