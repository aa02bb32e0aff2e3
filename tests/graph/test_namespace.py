"""The namespace of a plan as a value: copies that are cheap, and independent of each other whatever happens to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import Bench

from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.errors import Mark, Problems
from surgery_jax.core.specs import Spec
from surgery_jax.graph.namespace import Binding, Namespace, SymbolicModel
from surgery_jax.graph.node import Graph, Node
from surgery_jax.kit.made import Constant

GRAPH = Graph()
SPEC = Spec((2,), BY_NAME["float32"])
ALIASES, NAMES = ["a", "b", "c"], ["x.w", "x.b", "y.w", "z"]
Plain = dict[str, dict[str, tuple[int, int, int]]]  # alias -> name -> (number of the version, reads, writes)


def version(number: int) -> Node:
    return GRAPH.apply(Constant(SPEC, float(number)), (), None)[0]


def shown(space: Namespace) -> Plain:
    return {
        alias: {
            name: (int(slot.node.op.value), slot.reads, slot.writes) for name, slot in space.held(alias).slots.items()
        }
        for alias in space.models
    }


def change(space: Namespace, plain: Plain, what: str, alias: str, name: str, number: int) -> None:
    """The same change of a namespace and of plain dictionaries, if it can be made."""
    there = plain.get(alias)
    if what == "add alias" and there is None:
        space.add(alias)
        plain[alias] = {}
    elif there is None:
        return
    elif what == "remove alias":
        space.remove(alias)
        del plain[alias]
    elif what == "rename alias" and name not in plain:
        space.rename(alias, name)
        renamed = {name if key == alias else key: value for key, value in plain.items()}
        plain.clear()
        plain.update(renamed)
    elif what == "create" and name not in there:
        space.writable(alias).add(name, Binding(version(number)))
        there[name] = (number, 0, 1)
    elif name not in there:
        return
    elif what == "rebind":
        space.rebind(alias, name, version(number))
        there[name] = (number, there[name][1], there[name][2] + 1)
    elif what == "read":
        space.count(alias, name, number)
        there[name] = (there[name][0], there[name][1] + number, there[name][2])
    elif what == "drop":
        space.writable(alias).drop(name)
        del there[name]


CHANGES = st.tuples(
    st.integers(0, 7),  # which of the copies
    st.sampled_from(["copy", "add alias", "remove alias", "rename alias", *["create", "rebind", "read", "drop"] * 2]),
    st.sampled_from(ALIASES),
    st.sampled_from(NAMES),
    st.integers(0, 5),
)


@given(st.lists(CHANGES, max_size=40))
def test_copies_are_independent_whatever_happens_to_them(changes: list[tuple[int, str, str, str, int]]) -> None:
    spaces: list[tuple[Namespace, Plain]] = [(Namespace({}, {}), {})]
    for which, what, alias, name, number in changes:
        space, plain = spaces[which % len(spaces)]
        if what == "copy":
            spaces.append((space.copy(), {alias: dict(names) for alias, names in plain.items()}))
        else:
            change(space, plain, what, alias, name, number)
    for space, plain in spaces:
        assert shown(space) == plain
        assert [list(names) for names in shown(space).values()] == [list(names) for names in plain.values()]
        for alias, names in plain.items():
            assert space.held(alias).index.sorted() == sorted(names)


def test_a_copy_shares_a_model_until_one_of_the_two_changes_it() -> None:
    space = Namespace({}, {})
    for alias in ALIASES:
        space.add(alias).add("w", Binding(version(1)))
    twin = space.copy()
    assert all(space.models[alias] is twin.models[alias] for alias in ALIASES)
    twin.rebind("a", "w", version(2))
    held = twin.held("a")
    twin.rebind("a", "w", version(3))
    assert twin.held("a") is held is not space.held("a")  # copied once
    assert twin.held("b") is space.held("b")
    assert shown(space)["a"]["w"] == (1, 0, 1)
    space.count("b", "w", 1)
    assert twin.held("b").slots["w"].reads == 0


def test_dry_run_gives_back_what_was_before_with_aliases_that_were_managed_meanwhile() -> None:
    space = Namespace({"m": None}, {"m": ("m.safetensors", Mark("p", 1, 1))})
    space.add("other").add("w", Binding(version(1)))
    dry = space.dry()
    model = SymbolicModel()
    model.add("w", Binding(version(5)))
    dry.opened("m", model)
    dry.rebind("m", "w", version(6))
    dry.rebind("other", "w", version(7))
    dry.count("other", "w", 3)
    dry.rename("other", "another")
    dry.add("kept", for_good=True)
    dry.add("lost")
    dry.flags["verbose"] = True
    back = dry.ended()
    assert back is space and back.flags["verbose"]
    assert shown(back) == {"m": {"w": (5, 0, 1)}, "another": {"w": (1, 0, 1)}, "kept": {}}


@pytest.mark.parametrize("slice_", ["", "::[0]"])
def test_a_step_on_what_a_failed_step_would_have_made_tells_nothing_new(slice_: str, tmp_path: Path) -> None:
    steps: list[Any] = [
        {"reshape": {"from": "w", "to": "made", "shape": [5]}},
        {"scale_": {"target": f"made{slice_}", "by": 2}},
        {"noise_": {"target": f"made{slice_}", "std": 0.1}},
        {"cast": {"from": f"made{slice_}", "to": "half", "dtype": "float16"}},
        {"add_": {"from": f"made{slice_}", "to": f"half{slice_}"}},
    ]
    with pytest.raises(Problems) as found:
        Bench(tmp_path, m={"w": np.ones(4, np.float32)}).compile(steps)
    assert len(found.value.errors) == 1 and "reshape" in str(found.value)
