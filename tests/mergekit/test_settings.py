"""Forms of parameters: values, gradients and filters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax import PlanError
from surgery_jax.core.errors import Mark
from surgery_jax.language.document import parse_yaml
from surgery_jax.language.nodes import Mapping, node_of
from surgery_jax.mergekit.settings import check_settings, resolve, value_at


def at(text: str, tensor: str = "", position: float = 0.0, kind: str = "number") -> object:
    node = parse_yaml(f"v: {text}", "config.yml", interpolate=False).entries["v"]  # type: ignore[union-attr]
    found = value_at(node, kind, tensor, position)
    return found and found.value


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), st.floats(0, 1))
def test_a_gradient_is_piecewise_linear(values: list[float], position: float) -> None:
    found = value_at(node_of(values, Mark("config.yml", 1, 1)), "number", "", position)
    assert found is not None
    np.testing.assert_allclose(
        found.value, np.interp(position * (len(values) - 1), range(len(values)), values), atol=1e-9
    )


@pytest.mark.parametrize(
    ("text", "tensor", "position", "value"),
    [
        ("0.5", "w", 0.0, 0.5),
        ("'1e-1'", "w", 0.0, 0.1),
        ("[true, false]", "w", 0.99, True),
        ("[true, false]", "w", 1.0, False),
        ("[{ filter: mlp, value: 1 }, { value: 2 }]", "layers.0.mlp.up", 0.0, 1),
        ("[{ filter: mlp, value: 1 }, { value: 2 }]", "layers.0.attn.q", 0.0, 2),
        ("[{ filter: a, value: 1 }, { filter: ab, value: 2 }]", "ab", 0.0, 1),
        ("[{ filter: '*', value: [0, 4] }]", "w", 0.25, 1.0),
        ("{ filter: mlp, value: 1 }", "attn", 0.0, None),
        ("[{ filter: m.p, value: 1 }]", "mlp", 0.0, None),
        ("[]", "w", 0.0, None),
    ],
)
def test_a_value_is_that_of_the_first_filter_in_the_name(
    text: str, tensor: str, position: float, value: object
) -> None:
    assert at(text, tensor, position) == value


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("boolean", "1.0", True),
        ("boolean", "0", False),
        ("boolean", "'yes'", True),
        ("boolean", "'1'", True),
        ("boolean", "[{ filter: w, value: 0.0 }, { value: 1.0 }]", False),
        ("boolean", "[1.0, 0.0]", True),  # not 0.5 in the middle
        ("boolean", "2", 2),
        ("boolean", "'perhaps'", "perhaps"),
        ("integer", "1200.0", 1200),
        ("integer", "'7'", 7),
        ("integer", "7.5", 7.5),
        ("number", "1.0", 1.0),
        ("number", "'true'", "true"),
    ],
)
def test_a_value_is_of_the_kind_of_its_parameter_or_stays_to_be_refused(kind: str, text: str, value: object) -> None:
    found = at(text, "w", 0.5, kind)
    assert (type(found), found) == (type(value), value)


def test_the_first_scope_that_says_something_counts() -> None:
    scopes = [
        parse_yaml(text, "config.yml", interpolate=False)
        for text in ("weight: { filter: mlp, value: 1 }", "density: 3", "weight: 2")
    ]
    assert all(isinstance(scope, Mapping) for scope in scopes)
    assert [resolve("weight", "number", scopes, name, 0.0).value for name in ("mlp", "attn")] == [1, 2]  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("weight: [1, { value: 2 }]", 9),
        ("weight: { filter: a }", 9),
        ("weight: ~", 9),
        ("weight: { value: 1, fliter: a }", 21),
    ],
)
def test_what_is_no_value_is_told_with_its_place(text: str, column: int) -> None:
    with pytest.raises(PlanError) as error:
        check_settings(parse_yaml(text, "config.yml", interpolate=False), "parameters")
    assert str(error.value.where) == f"config.yml:1:{column}"
