"""Names of leaves stand for paths of keys, one to one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery_jax.core.errors import StorageError
from surgery_jax.storage.keys import MAX_DEPTH, join_keys, nest, split_name

keys = st.text(st.sampled_from("ab.\\0 é"), max_size=5)


@given(st.lists(keys, min_size=1, max_size=5))
def test_every_path_of_keys_has_a_name_that_stands_for_it_alone(path: list[str]) -> None:
    assert split_name(join_keys(path)) == tuple(path)


@given(keys)
def test_every_name_is_refused_or_stands_for_a_path_whose_name_it_is(name: str) -> None:
    try:
        path = split_name(name)
    except StorageError:
        assert "\\" in name
    else:
        assert join_keys(path) == name


def test_names_grow_into_nested_dictionaries_in_their_order() -> None:
    tree = nest([("b.x", 1), ("a\\.b.c", 2), ("b.w", 3), ("", 4)], "out")
    assert tree == {"b": {"x": 1, "w": 3}, "a.b": {"c": 2}, "": 4}
    assert list(tree["b"]) == ["x", "w"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.b", "a.b.c"], "'a.b' and 'a.b.c'"),
        (["a.b.c.d", "a.b"], "'a.b' and 'a.b.c.d'"),
        (["a.b", "a.b"], "twice"),
        (["a\\b"], "escapes nothing"),
        (["a\\"], "escapes nothing"),
        ([".".join("a" * (MAX_DEPTH + 1))], "too deep"),
    ],
)
def test_names_without_a_place_in_one_tree_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(StorageError, match="out") as error:
        nest([(name, 0) for name in names], "out")
    assert words in str(error.value)
