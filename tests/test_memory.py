"""Plans on trees in memory: `from_flax`, `apply`, `to_flax`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from running import assert_same_bits, read_checkpoint, write_checkpoint

from surgery_jax import (
    Options,
    Problems,
    StorageError,
    apply,
    check,
    convert,
    diff,
    from_flax,
    inspect,
    plan_of,
    run,
    to_flax,
)
from surgery_jax.core.dtypes import DTYPES

quiet = Options(sync=False)


def tree() -> dict[str, Any]:
    return {
        "params": {
            "v1.5": {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)},
            "dense": {"kernel": np.arange(12.0, dtype=np.float32).reshape(3, 4).T, "bias": np.zeros((0, 2), np.int8)},
        },
        "step": 7, "none": None, "name": "x", "number": 2j, "empty": {}, "scalar": np.float32(3),
    }  # fmt: skip


def assert_same_tree(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, left), right in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        if isinstance(right, str):
            assert left == right
        else:
            assert_same_bits(np.asarray(left), np.asarray(right), str(path))


def test_a_tree_that_no_step_changes_comes_back_without_a_copy() -> None:
    given = tree()
    found = to_flax(apply(plan_of({"transforms": []}), {"model": from_flax(given)}))
    assert_same_tree(found, given)
    ours, theirs = found["params"]["v1.5"]["kernel"], given["params"]["v1.5"]["kernel"]
    assert np.shares_memory(ours, np.asarray(theirs))
    assert type(found["scalar"]) is np.float32 and found["step"] == 7


def test_what_a_plan_changes_is_new_and_the_rest_is_handed_on() -> None:
    w, v = np.arange(6, dtype=np.float32), np.ones((2, 2), np.float32)
    before = w.copy()
    steps = [
        {"scale_": {"target": "a.w", "by": 2}},
        {"move": {"from": "b.v", "to": "c.v"}},
        {"delete": {"target": "d"}},
    ]
    plan = plan_of({"inputs": ["model::somewhere/else"], "transforms": steps, "output": "not/written"})
    found = to_flax(apply(plan, {"model": from_flax({"a": {"w": w}, "b": {"v": v}, "d": v})}))
    assert found.keys() == {"a", "c"} and np.shares_memory(found["c"]["v"], v)
    assert_same_bits(found["a"]["w"], before * 2)
    assert_same_bits(w, before)
    assert found["a"]["w"].flags.writeable and found["a"]["w"].ctypes.data % 64 == 0
    assert not Path("not").exists()


def test_trees_and_files_meet_in_one_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    w = np.arange(8, dtype=np.float32)
    write_checkpoint(tmp_path / "base.safetensors", {"w": w, "x": w})
    steps = [
        {"subtract_": {"from": "base::w", "to": "tuned::w"}},
        {"copy": {"from": "base::x", "to": "tuned::x"}},
        {"save": {"path": "kept.safetensors", "alias": "base"}},
        {"dump": {"target": "tuned::w"}},
    ]
    plan = plan_of({"inputs": ["base::base.safetensors"], "transforms": steps})
    lines: list[str] = []
    held = {"tuned": from_flax({"w": jnp.asarray(w) * 3})}
    found = to_flax(apply(plan, held, quiet, show=lines.append))
    assert_same_bits(found["w"], w * 2)
    assert_same_bits(found["x"], w)
    assert read_checkpoint(tmp_path / "kept.safetensors").keys() == {"w", "x"} and "float32" not in lines[0] and lines


def test_a_tree_is_written_checked_inspected_and_compared_like_a_file(tmp_path: Path) -> None:
    held = from_flax(tree())
    plan = plan_of({"inputs": ["m::x"], "transforms": [], "output": str(tmp_path / "a.msgpack")})
    check(plan, inputs={"m": held})
    run(plan, quiet, inputs={"m": held})
    assert diff(held, tmp_path / "a.msgpack").is_empty
    restored = serialization.msgpack_restore((tmp_path / "a.msgpack").read_bytes())
    assert_same_tree(restored, tree())
    info = inspect(held, stats=True, filter="dense.kernel")
    assert info.format == "memory" and info.tensors[0].statistics is not None
    assert info.tensors[0].statistics.max == 11


def test_files_become_trees_whose_arrays_are_views_of_them(tmp_path: Path) -> None:
    held = from_flax(tree())
    run(plan_of({"output": str(tmp_path / "a.msgpack")}), quiet, inputs={"model": held})
    convert(tmp_path / "a.msgpack", tmp_path / "b", quiet, shard="none")
    for path in (tmp_path / "a.msgpack", tmp_path / "b"):
        found = to_flax(path)
        assert_same_tree(found, tree())
        assert not found["params"]["dense"]["kernel"].flags.writeable
        assert found["params"]["v1.5"]["kernel"].base is not None


def test_train_states_and_modules_of_nnx_are_trees() -> None:
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=optax.adam(0.1))  # type: ignore[no-untyped-call]
    plan = plan_of({"transforms": [{"scale_": {"target": r"params\.w", "by": 2}}]})
    found = serialization.from_state_dict(state, to_flax(apply(plan, {"m": from_flax(state)})))
    assert_same_bits(np.asarray(found.params["w"]), np.full(3, 2, np.float32))
    assert found.opt_state[0].count == 0 and found.step == 0
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    kernel = np.asarray(module.kernel[...])
    plan = plan_of({"transforms": [{"scale_": {"target": "kernel", "by": 2}}]})
    nnx.update(module, to_flax(apply(plan, {"m": from_flax(nnx.state(module))})))
    assert_same_bits(np.asarray(module.kernel[...]), kernel * 2)


@pytest.mark.parametrize("dtype", [entry.array for entry in DTYPES if entry.array])
def test_every_dtype_of_arrays_goes_through(dtype: str) -> None:
    array = np.zeros((2, 3), np.dtype(getattr(ml_dtypes, dtype, dtype)))
    steps = [{"reshape_": {"target": "w", "shape": [3, 2]}}, {"copy": {"from": "w::[1]", "to": "row"}}]
    found = to_flax(apply(plan_of({"transforms": steps}), {"m": from_flax({"w": array})}))
    assert_same_bits(found["w"], array.reshape(3, 2))
    assert_same_bits(found["row"], array[0, :2])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "no arrays"),
        ({"a": None}, "no arrays"),
        (np.ones(2), "not a tree"),
        ({"a": object()}, "'a' is no array"),
        ({"a": np.array(["x"])}, "dtype"),
        ({"a": np.ones(2, np.complex128)}, "dtype"),
        ({"a": 2**70}, "dtype"),
        ({"a": jax.ShapeDtypeStruct((2,), jnp.float32)}, "dtype"),
        ({"a": jax.random.key(0)}, "'a'"),
        ({1: np.ones(2), "1": np.ones(2)}, "no different texts"),
        ({(1, 2): np.ones(2)}, "no different texts"),
    ],
)
def test_what_is_no_tree_of_arrays_is_refused(given: Any, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        from_flax(given)


def test_a_tree_without_end_is_refused() -> None:
    endless: dict[str, Any] = {"w": np.ones(2)}
    endless["again"] = endless
    with pytest.raises(StorageError, match="too deep"):
        from_flax(endless)


def test_a_failed_assertion_gives_no_tree_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = [{"save": "kept.safetensors"}, {"assert": {"iszero": "w"}}]
    with pytest.raises(Problems, match="iszero"):
        apply(plan_of({"transforms": steps}), {"m": from_flax({"w": np.ones(2)})}, quiet)
    assert not list(tmp_path.iterdir())


def test_names_that_make_no_tree_are_refused() -> None:
    held = from_flax({"w": np.ones(2)})
    found = apply(plan_of({"transforms": [{"copy": {"from": "w", "to": "w.x"}}]}), {"m": held})
    with pytest.raises(StorageError, match="a leaf and a branch"):
        to_flax(found)


def test_a_plan_that_gives_nothing_is_an_error() -> None:
    with pytest.raises(Problems, match="uniquely"):
        apply(plan_of({"transforms": [{"delete": {"target": "w"}}]}), {"m": from_flax({"w": np.ones(2)})})
