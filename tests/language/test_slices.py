"""Promises of slices: their text and what they select."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.errors import PlanError
from surgery_jax.language.slices import Range, parse_slice, resolve_slice

BOUNDS = st.none() | st.integers(-7, 7)
PARTS = st.lists(st.integers(-5, 5) | st.builds(Range, BOUNDS, BOUNDS, st.none() | st.integers(1, 4)), max_size=4).map(
    tuple
)


def numpy_index(parts):
    return tuple(part if isinstance(part, int) else slice(part.start, part.stop, part.step) for part in parts)


@given(PARTS, st.lists(st.integers(0, 5), max_size=4).map(tuple))
def test_a_slice_selects_what_numpy_selects(parts, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    try:
        expected = array[numpy_index(parts)]
    except IndexError:
        with pytest.raises(PlanError):
            resolve_slice(parts, shape)
        return
    axes, result, removed = resolve_slice(parts, shape)
    assert result == expected.shape and len(axes) == len(removed) == len(shape)
    places = [[start + step * i for i in range(count)] for start, step, count in axes]
    assert [int(array[place]) for place in product(*places)] == expected.ravel().tolist()
    assert removed == tuple(i < len(parts) and isinstance(parts[i], int) for i in range(len(shape)))


@given(PARTS, st.sampled_from(["", " ", "  "]))
def test_a_printed_slice_is_read_back(parts, blank):
    text = "[" + ",".join(f"{blank}{part}{blank}" for part in parts) + "]"
    assert parse_slice(text) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[]", ()), ("[ ]", ()), ("[+1]", (1,)), ("[1_0]", (10,)), ("[0:4:]", (Range(0, 4, None),)),
        ("[0 : 3]", (Range(0, 3, None),)), ("[::2]", (Range(None, None, 2),)), ("[0::2, 1]", (Range(0, None, 2), 1)),
    ],
)  # fmt: skip
def test_these_texts_are_slices(text, parts):
    assert parse_slice(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", "[", "0", "[0,]", "[,0]", "[a]", "[0:4:0]", "[3:0:-1]", "[::-1]", "[1:2:3:4]", "[: :2]", "[...]", "[None]",
     "[[0]]", "[0.5]", "[0 1]"],
)  # fmt: skip
def test_these_texts_are_no_slices(text):
    with pytest.raises(PlanError, match="invalid slice"):
        parse_slice(text)
