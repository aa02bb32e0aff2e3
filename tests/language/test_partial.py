"""Promises of partial evaluation: what is known becomes a value, and the expression that is left gives what the whole
one would give."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.errors import Mark
from surgery_jax.language.braces import split
from surgery_jax.language.expressions import evaluate
from surgery_jax.language.partial import partly

CONFIG = {"n": 3, "xs": [4, 5, 6]}
KNOWN = {
    "low": -2, "inf": math.inf, "nan": math.nan, "zero": -0.0, "none": None, "items": [1, 2], "n": 7,
    "large": 1 << 4000, "text": "\n'\"${q}\\ }", "table": {"k": -math.inf, "${": [True, None]},
}  # fmt: skip


def partly_of(text, known=KNOWN):
    return partly(text, "config", ("alias",), lambda part: evaluate(part, known | {"config": {"alias": {"n": 8}}}))


def both(text, known=KNOWN):
    """The value of an expression, and of what is left when all but the config is known."""
    config = CONFIG | {"alias": {"n": 8}}
    return evaluate(text, known | {"config": config}), evaluate(partly_of(text, known), {"config": CONFIG})


@pytest.mark.parametrize(
    "text",
    [
        "[config.n, inf, -inf]", "config.n + nan", "[config.n, zero]", "low ** config.n", "[config.n, none, table]",
        "[config.n, text]", "f'{config.n}{text}{n} {{'", "f'{low}' + str(config.n)", "config.xs[low:]",
        "config.xs[:n - 5]", "config.n + config.alias.n", "[config.n + n for n in items] + [n]",
        "[n * config.n for n in [n, n + 1]]", "{f'k{i}': config.n for i in items if i > low}",
        "[i for row in [items, [n]] for i in row if i < config.n]", "sum(config.n * i for i in range(n))",
        "config.n if inf > n else low", "config.n in [low, n] or n", "config.n + large", "config.n - (n - 2)",
    ],
)  # fmt: skip
def test_what_is_left_gives_what_the_whole_expression_gives(text):
    whole, left = both(text)
    assert repr(whole) == repr(left)  # tells -0.0 from 0.0, and knows nan


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8") | st.sampled_from("${}'\"\\")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(VALUES)
def test_any_value_is_put_back_as_it_is_and_stays_within_its_braces(value):
    whole, left = both("[config.n, value, f'{config.n}{value}']", {"value": value})
    assert repr(whole) == repr(left)
    reference = partly_of("[config.n, value, f'{config.n}{value}']", {"value": value})
    assert "${" not in reference
    assert split(f"a${{{reference}}}b", Mark("plan", 1, 1)) == [(False, "a"), (True, reference), (False, "b")]


def test_what_needs_no_config_or_is_no_expression_is_left_alone():
    for text in ("n + 1", "config.alias.n", "config.n +", "config."):
        assert partly_of(text) is None


def test_what_no_text_may_have_is_refused_where_the_rest_is_evaluated():
    assert partly_of("f'{config.n!r}'") == "f'{config.n!r}'"
