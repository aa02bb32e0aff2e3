"""Promises of slices: their text and what they select."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.errors import PlanError
from surgery_jax.language.slices import Indices, Stride, check_not_clamped, parse_slice, resolve_slice

BOUNDS = st.none() | st.integers(-7, 7)
PARTS = st.lists(st.integers(-5, 5) | st.builds(Stride, BOUNDS, BOUNDS, st.none() | st.integers(1, 4)), max_size=4).map(
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
        ("[]", ()), ("[ ]", ()), ("[+1]", (1,)), ("[1_0]", (10,)), ("[0:4:]", (Stride(0, 4, None),)),
        ("[[3, -1], 0:2]", (Indices((3, -1)), Stride(0, 2, None))),
        ("[:,[0]]", (Stride(None, None, None), Indices((0,)))),
        ("[0 : 3]", (Stride(0, 3, None),)), ("[::2]", (Stride(None, None, 2),)), ("[0::2, 1]", (Stride(0, None, 2), 1)),
    ],
)  # fmt: skip
def test_these_texts_are_slices(text, parts):
    assert parse_slice(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", "[", "0", "[0,]", "[,0]", "[a]", "[0:4:0]", "[3:0:-1]", "[::-1]", "[1:2:3:4]", "[: :2]", "[...]", "[None]",
     "[[]]", "[[0:2]]", "[[[0]]]", "[[0]", "[0]]", "[[0],]", "[0.5]", "[0 1]"],
)  # fmt: skip
def test_these_texts_are_no_slices(text):
    with pytest.raises(PlanError, match="invalid slice"):
        parse_slice(text)


SETS = st.lists(st.integers(-3, 2), min_size=1, max_size=5).map(lambda places: Indices(tuple(places)))


@given(st.tuples(SETS | st.just(Stride(None, None, None)), SETS | st.just(Stride(None, 2, None))))
def test_index_sets_select_what_numpy_selects_along_each_axis(parts):
    array = np.arange(36).reshape(3, 3, 4)
    sets = [np.arange(3)[list(p.places) if isinstance(p, Indices) else slice(p.start, p.stop)] for p in parts]
    axes, shape, removed = resolve_slice(parts, array.shape)
    places = [axis.places if isinstance(axis, Indices) else range(axis[0], axis[0] + axis[1] * axis[2], axis[1])
              for axis in axes]  # fmt: skip
    expected = array[np.ix_(*sets, np.arange(4))]
    assert [int(array[place]) for place in product(*places)] == expected.ravel().tolist()
    assert shape == expected.shape and removed == (False,) * 3


def test_a_slice_that_says_how_large_something_is_must_not_be_clamped():
    check_not_clamped(parse_slice("[:3, -4:, 1]"), (3, 4, 5))
    with pytest.raises(PlanError, match="ends at 8, beyond axis 1"):
        check_not_clamped(parse_slice("[:, :8]"), (3, 4))
    with pytest.raises(PlanError, match="out of range"):
        resolve_slice(parse_slice("[[0, 4]]"), (4,))
