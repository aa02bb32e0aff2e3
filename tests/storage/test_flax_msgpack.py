"""Flax msgpack files: against `flax.serialization` and the msgpack library."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import optax
import pytest
from flax import serialization as flax
from flax.training.train_state import TrainState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import assert_same_bits, dtype
from storing import bytes_of, sample, spec, write

from surgery_jax import Options, convert, diff, plan_of, run
from surgery_jax.core.dtypes import DTYPES, by_numpy
from surgery_jax.core.errors import StorageError
from surgery_jax.core.ranges import ranges
from surgery_jax.storage.flax.write import MAX_CHUNK, lay_tree
from surgery_jax.storage.formats import open_checkpoint, open_single, resolve_save_tensor
from surgery_jax.storage.keys import MAX_DEPTH, join_keys

HELD = [entry.name for entry in DTYPES if entry.array]
quiet = Options(sync=False, overwrite=True)


def flat(tree: Any, above: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    if isinstance(tree, list):
        tree = {str(number): item for number, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return {join_keys(above): np.asarray(None if isinstance(tree, msgpack.ExtType) else tree)}
    return {name: leaf for key, child in tree.items() for name, leaf in flat(child, (*above, key)).items()}


def found_in(path: Path) -> dict[str, np.ndarray]:
    entries = open_checkpoint(str(path)).entries
    return {
        name: np.frombuffer(bytes_of(entry), entry.spec.dtype.numpy).reshape(entry.spec.shape)
        for name, entry in entries.items()
    }


def assert_same_tree(found: Any, expected: Any) -> None:
    left, right = flat(found), flat(expected)
    assert left.keys() == right.keys()
    for name, array in right.items():
        assert_same_bits(left[name], array, name)


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4), (0, 5), (70000,)])
def test_a_file_is_byte_for_byte_what_flax_writes_for_every_dtype(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    made, data = sample(name, *shape)
    array = np.frombuffer(data, dtype(name)).reshape(shape)
    write(tmp_path / "a.msgpack", {"params.w": (made, data)})
    assert (tmp_path / "a.msgpack").read_bytes() == flax.msgpack_serialize({"params": {"w": array}})
    entry = open_checkpoint(str(tmp_path / "a.msgpack")).entries["params.w"]
    assert (entry.spec, bytes_of(entry)) == (made, data)
    assert_same_tree(flax.msgpack_restore((tmp_path / "a.msgpack").read_bytes()), {"params": {"w": array}})


keys = st.text(st.sampled_from("ab.\\1é"), max_size=4) | st.sampled_from(["k" * 32, "k" * 300])
arrays = st.tuples(st.sampled_from(HELD), st.lists(st.integers(0, 4), max_size=3)).map(
    lambda made: np.zeros(made[1], dtype(made[0]))
)
trees = st.dictionaries(
    keys, st.recursive(arrays, lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=20), max_leaves=20),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(trees)
def test_a_tree_goes_through_us_byte_for_byte(tree: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        first, second = Path(directory, "a.msgpack"), Path(directory, "b.msgpack")
        first.write_bytes(flax.msgpack_serialize(tree))
        assert found_in(first).keys() == flat(tree).keys()
        convert(first, second, quiet)
        assert second.read_bytes() == flax.msgpack_serialize(_sorted_as_jax(tree))


def _sorted_as_jax(tree: Any) -> Any:
    return {key: _sorted_as_jax(tree[key]) for key in sorted(tree)} if isinstance(tree, dict) else tree


STATE = {
    "params": {"v1.5": {"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}},
    "step": 5, "large": 2**63 + 5, "negative": -3, "rate": 0.5, "on": True, "scalar": np.float32(2),
    "nothing": None, "name": "adam", "number": 1 - 2j, "opt": {"0": {}, "1": {"mu": np.ones(3), "nu": {}}},
}  # fmt: skip


def test_leaves_that_are_no_tensors_survive_a_way_through_other_formats(tmp_path: Path) -> None:
    (tmp_path / "a.msgpack").write_bytes(flax.msgpack_serialize(STATE))
    convert(tmp_path / "a.msgpack", tmp_path / "b.safetensors", quiet)
    convert(tmp_path / "b.safetensors", tmp_path / "c.msgpack", quiet)
    found = flax.msgpack_restore((tmp_path / "c.msgpack").read_bytes())
    assert found == {**STATE, "params": found["params"], "opt": found["opt"]}
    assert_same_tree(found["params"], STATE["params"])
    assert found["opt"].keys() == {"0", "1"} and found["opt"]["0"] == found["opt"]["1"]["nu"] == {}
    assert type(found["step"]) is np.int64 and type(found["scalar"]) is np.float32 and found["on"] is np.True_


def test_leaves_that_are_no_tensors_go_with_their_branch(tmp_path: Path) -> None:
    (tmp_path / "a.msgpack").write_bytes(flax.msgpack_serialize(STATE))
    plan = {
        "inputs": [f"m::{tmp_path / 'a.msgpack'}"],
        "transforms": [
            {"delete": {"target": r"opt\..+"}},
            {"move": {"from": "step", "to": "nothing"}},
            {"copy": {"from": "rate", "to": "name.rate"}},
        ],
        "output": str(tmp_path / "b.msgpack"),
    }
    run(plan_of(plan), quiet)
    found = flax.msgpack_restore((tmp_path / "b.msgpack").read_bytes())
    assert "opt" not in found and found["nothing"] == 5 and found["name"] == {"rate": np.asarray(0.5)}
    assert found["number"] == 1 - 2j


def test_a_part_of_a_tree_has_its_leaves_alone(tmp_path: Path) -> None:
    tree = {"a": {"b": {"w": np.ones(2), "n": np.int8(3), "e": {}}, "none": None}, "step": 4, "x": {"y": {}}}
    (tmp_path / "a.msgpack").write_bytes(flax.msgpack_serialize(tree))
    for part, branch in (("a", tree["a"]), ("a.b", tree["a"]["b"])):
        convert(f"{tmp_path / 'a.msgpack'}#{part}", tmp_path / "b.msgpack", quiet)
        found = flax.msgpack_restore((tmp_path / "b.msgpack").read_bytes())
        assert jax.tree.structure(found) == jax.tree.structure(branch)
        assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()) and type(x) is type(y), found, branch))


def test_a_train_state_is_edited_and_restored(tmp_path: Path) -> None:
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    chain = optax.chain(optax.clip(1.0), optax.adam(0.1))
    state = TrainState.create(apply_fn=None, params=params, tx=chain)  # type: ignore[no-untyped-call]
    (tmp_path / "a.msgpack").write_bytes(flax.to_bytes(state))
    plan = {
        "inputs": [f"m::{tmp_path / 'a.msgpack'}"],
        "transforms": [{"scale_": {"target": r"params\..+kernel", "by": 2}}],
        "output": str(tmp_path / "b.msgpack"),
    }
    run(plan_of(plan), quiet)
    found = flax.from_bytes(state, (tmp_path / "b.msgpack").read_bytes())
    assert_same_bits(np.asarray(found.params["dense"]["kernel"]), np.full((2, 3), 2, np.float32), "kernel")
    assert found.step == 0 and found.opt_state[1][0].count == 0


def packed(tree: Any) -> bytes:
    """The file of a tree whose keys stay in their order."""
    return flax.msgpack_serialize(tree, in_place=True)


def chunked(array: np.ndarray, elements: int) -> dict[str, Any]:
    """A leaf as Flax writes one that is too large."""
    pieces = [array.reshape(-1)[begin : begin + elements] for begin in range(0, array.size, elements)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(axis): length for axis, length in enumerate(array.shape)},
        "chunks": {str(index): piece for index, piece in enumerate(pieces)},
    }


def test_chunked_leaves_are_moved_and_computed_with(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
    (tmp_path / "a.msgpack").write_bytes(packed({"p": {"w": chunked(array, 300), "v": array}}))
    assert_same_bits(found_in(tmp_path / "a.msgpack")["p.w"], array, "w")
    plan = {
        "inputs": [f"m::{tmp_path / 'a.msgpack'}"],
        "transforms": [
            {"scale": {"from": "p.w", "to": "doubled", "by": 2}},
            {"copy": {"from": "p.w::[3:47]", "to": "part"}},
            {"permute": {"from": "p.w", "to": "turned", "order": [1, 0]}},
        ],
        "output": str(tmp_path / "b.safetensors"),
    }
    report = run(plan_of(plan), quiet)
    assert report.bytes_moved == array.nbytes * 2 + array[3:47].nbytes
    found = found_in(tmp_path / "b.safetensors")
    for name, expected in [("p.w", array), ("doubled", array * 2), ("part", array[3:47]), ("turned", array.T)]:
        assert_same_bits(found[name], expected, name)


def test_large_leaves_are_laid_out_in_chunks_as_flax_does(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((50, 41)).astype(np.float32)
    made = [("p.w", spec("float32", 50, 41)), ("p.v", spec("float32", 3))]
    layout = lay_tree(tmp_path / "a", made, {}, max_chunk=1000)
    content = bytearray(layout.files[0].size)
    for offset, data in layout.files[0].fixed:
        content[offset : offset + len(data)] = data
    for name, tensor in {"p.w": array, "p.v": array[0, :3]}.items():
        at, raw = 0, tensor.tobytes()
        for _, offset, count in ranges(*layout.places[name], layout.rest.get(name, ()), 0, len(raw)):
            content[offset : offset + count] = raw[at : at + count]
            at += count
    assert content == packed({"p": {"w": chunked(array, 250), "v": array[0, :3]}})
    assert_same_bits(flax.msgpack_restore(bytes(content))["p"]["w"], array, "w")


def test_a_leaf_beyond_the_limit_of_flax_is_written_in_chunks(tmp_path: Path) -> None:
    assert MAX_CHUNK == flax.MAX_CHUNK_SIZE
    made = spec("bfloat16", 3, MAX_CHUNK // 4)
    layout = lay_tree(tmp_path / "a", [("w", made), ("v", spec("bfloat16", MAX_CHUNK // 2))], {})
    assert [begin for begin, _, _ in layout.rest["w"]] == [MAX_CHUNK] and "v" not in layout.rest
    with (tmp_path / "a.msgpack").open("wb") as stream:  # the elements are a hole in the file
        stream.truncate(layout.files[0].size)
        for offset, data in layout.files[0].fixed:
            stream.seek(offset)
            stream.write(data)
    entry = open_checkpoint(str(tmp_path / "a.msgpack")).entries["w"]
    assert entry.extent is not None and entry.spec == made
    assert (0, entry.extent.offset) == layout.places["w"]
    assert [part[::2] for part in entry.extent.rest] == [part[::2] for part in layout.rest["w"]]


def test_an_array_of_its_own_is_a_tensor_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "w.msgpack").write_bytes(flax.to_bytes(np.arange(3)))
    name, entry, _ = open_single(str(tmp_path / "w.msgpack"), "auto")
    assert name is None and bytes_of(entry) == np.arange(3).tobytes()
    with pytest.raises(StorageError, match="load"):
        open_checkpoint(str(tmp_path / "w.msgpack"))


def test_a_file_with_an_unknown_suffix_is_known_by_its_first_key(tmp_path: Path) -> None:
    for number, tree in enumerate([{"params": {"w": np.ones(3)}}, {"w" * 40: np.ones(3)}, {"w": np.ones(1, "i1")}]):
        (tmp_path / f"{number}.ckpt").write_bytes(flax.msgpack_serialize(tree))
        assert open_checkpoint(str(tmp_path / f"{number}.ckpt")).format == "flax"


def test_one_tensor_is_saved_under_its_name(tmp_path: Path) -> None:
    write(resolve_save_tensor(str(tmp_path / "w"), "flax"), {"a.w": sample("bfloat16", 2)})
    assert flat(flax.msgpack_restore((tmp_path / "w").read_bytes())).keys() == {"a.w"}


def packed_types() -> list[str]:
    return [entry.name for entry in DTYPES if not entry.array]


@pytest.mark.parametrize("name", packed_types())
def test_dtypes_that_arrays_do_not_have_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=name):
        lay_tree(tmp_path / "a", [("w", spec(name, 8))], {})


@pytest.mark.parametrize("names", [["a", "a.b"], ["a.b.c", "a.b"], ["\\x"], [".".join("a" * 300)]])
def test_names_that_make_no_tree_are_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        lay_tree(tmp_path / "a", [(name, spec("int8", 1)) for name in names], {})


# --- what others may have broken


def refusal(content: bytes) -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.msgpack")
        path.write_bytes(content)
        with pytest.raises(StorageError) as caught:
            open_checkpoint(str(path))
    assert caught.value.exit_code == 3 and caught.value.where == str(path)
    return str(caught.value)


def ext(shape: Any, name: Any, data: Any, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, name, data)))


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": ext((3,), "float32", bytes(8))}, "do not fit"),
        ({"a": ext((3,), "float32", "x" * 12)}, "do not fit"),
        ({"a": ext((3,), "float31", bytes(12))}, "float32"),
        ({"a": ext((3,), "complex128", bytes(48))}, "no tensors: a (an array of complex128)"),
        ({"a": ext((3,), "half", bytes(6))}, "dtype"),
        ({"a": ext((-1,), "int8", b"")}, "impossible"),
        ({"a": ext((1.5,), "int8", b"")}, "impossible"),
        ({"a": ext((2**40, 2**40, 0), "int8", b"")}, "too large"),
        ({"a": ext((1,) * 65, "int8", b"x")}, "not complete"),
        ({"a": ext(3, "int8", b"xxx")}, "not complete"),
        ({"a": msgpack.ExtType(1, b"\x93\x90")}, "cut off"),
        ({"a": msgpack.ExtType(1, b"")}, "cut off"),
        ({"a": msgpack.ExtType(1, b"\xc1")}, "means nothing"),
        ({"a": msgpack.ExtType(7, b"x")}, "extension type 7"),
        ({"a": b"bytes"}, "bytes"),
        ({"a": {1: np.ones(2)}}, "no text"),
        ({}, "no tensors"),
        ([], "no tensors"),
        ({"a": {}}, "no tensors"),
    ],
)
def test_trees_that_flax_does_not_write_are_refused(tree: Any, words: str) -> None:
    content = msgpack.packb(tree, default=lambda x: ext(x.shape, x.dtype.name, x.tobytes()), strict_types=True)
    assert words in refusal(content)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_leaves_that_are_no_tensors_here_are_left_out_and_told(tmp_path: Path) -> None:
    tree = {
        "params": {"w": np.ones(2, np.float32), "packed": np.ones(3, ml_dtypes.int4), "seal": b"bytes"},
        "wide": np.ones(2, np.complex128),
        "other": msgpack.ExtType(7, b"x"),
    }
    (tmp_path / "a.msgpack").write_bytes(flax.msgpack_serialize(tree))
    found = open_checkpoint(str(tmp_path / "a.msgpack"))
    assert list(found.entries) == ["params.w"]
    (told,) = found.left_out
    for words in (
        "params.packed (an array of int4)",
        "params.seal (bytes)",
        "wide (an array of complex128)",
        "other (extension type 7)",
    ):
        assert words in told
    part = open_checkpoint(f"{tmp_path}/a.msgpack#params")
    assert part.left_out == ("no tensors: packed (an array of int4), seal (bytes)",)
    assert bytes_of(part.entries["w"]) == tree["params"]["w"].tobytes()


def test_broken_structures_are_refused_at_once() -> None:
    array = flax.msgpack_serialize({"a": np.ones(2)})[1:]
    assert "cut off" in refusal(b"\xdf\xff\xff\xff\xff" + array)
    assert "cut off" in refusal(b"\xdd\xff\xff\xff\xff" + array)
    assert "twice" in refusal(b"\x82" + array + array)
    assert "after the tree" in refusal(b"\x81" + array + b"x")
    assert "too deep" in refusal(b"\x81\xa1a" * 100_000 + b"\xc0")
    assert "UTF-8" in refusal(b"\x81\xa1\xff\xc0")
    names = b"\x81\xdb" + (1 << 20).to_bytes(4, "big") + b"k" * (1 << 20)
    assert "too long" in refusal(names + b"\xdd" + (300).to_bytes(4, "big") + b"\x01" * 300)
    nested: Any = np.ones(2)
    for _ in range(MAX_DEPTH):
        nested = {"a": nested}
    assert list(open_deep(nested)) == [".".join("a" * MAX_DEPTH)]


def open_deep(tree: Any) -> Any:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.msgpack")
        path.write_bytes(packed(tree))
        return open_checkpoint(str(path)).entries


@pytest.mark.parametrize(
    "change",
    [
        {"chunks": {"0": np.ones(4)}},
        {"chunks": {"1": np.ones(3), "0": np.ones(3)}},
        {"chunks": {"0": np.ones(3), "1": np.ones(3, np.int64)}},
        {"chunks": {"0": np.ones((3, 1)), "1": np.ones((3, 1))}},
        {"chunks": {"0": 1.0, "1": 2.0}},
        {"chunks": {}},
        {"shape": {"0": -2, "1": -3}},
        {"shape": {"0": "2", "1": 3}},
        {"shape": [2, 3]},
        {"more": 1},
    ],
)
def test_chunks_that_do_not_make_an_array_are_refused(change: dict[str, Any]) -> None:
    tree = chunked(np.ones((2, 3)), 3)
    assert found_good({"a": tree})
    assert "'a" in refusal(packed({"a": tree | change}))


def found_good(tree: Any) -> bool:
    return list(open_deep(tree)) == ["a"]


VALID = packed(
    {"p": {"w": np.arange(6, dtype=np.int16).reshape(2, 3), "c": chunked(np.ones(4, np.int8), 3)}, "n": 7, "x": {}}
)


@pytest.mark.filterwarnings("ignore:.*left out")
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_changed_bytes_are_accepted_only_if_flax_reads_the_same(data: st.DataObject) -> None:
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=2) | st.sampled_from([b"\xc7", b"\x80", b"\x93", b"\xc4\x00"]))
        content[at : at + len(patch) * data.draw(st.booleans())] = patch
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.msgpack")
        path.write_bytes(content)
        try:
            ours = found_in(path)
        except StorageError as error:
            assert error.exit_code == 3 and error.where == str(path)
            return
    theirs = {
        name: leaf
        for name, leaf in flat(flax.msgpack_restore(bytes(content))).items()
        if by_numpy(leaf.dtype) is not None  # others are no tensors here: texts, bytes, dtypes of other programs
    }
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        assert_same_bits(ours[name], leaf, name)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[]",
        '{"scalars":[[]],"others":[]}',
        '{"scalars":[],"others":[["a","",[1]]]}',
        '{"scalars":[],"others":[["a","",["x","y"]]]}',
        '{"scalars":[],"others":[[1,"",null]]}',
    ],
)
def test_metadata_that_says_nothing_of_leaves_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="flax_leaves"):
        lay_tree(tmp_path / "a", [("w", spec("int8", 1))], {"flax_leaves": text})


def test_a_conversion_to_msgpack_and_back_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {f"layers.{n}.{name}": sample(name, 4, 3) for n, name in enumerate(HELD)})
    convert(tmp_path / "a.safetensors", tmp_path / "b.msgpack", quiet)
    convert(tmp_path / "b.msgpack", tmp_path / "c.safetensors", quiet)
    assert diff(tmp_path / "a.safetensors", tmp_path / "c.safetensors").is_empty
