"""Orbax checkpoints: against Orbax itself."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orbax_trees import a_model, assert_equal_trees, load_standard, load_v0, load_v1, nested
from storing import bytes_of, sample, spec, write

import surgery_jax
from surgery_jax import Options
from surgery_jax.core.errors import BudgetError, PlanError, StorageError, SurgeryError
from surgery_jax.storage.formats import open_checkpoint, resolve_output
from surgery_jax.storage.keys import join_keys
from surgery_jax.storage.orbax.chunks import ChunkGrid, chunk_of
from surgery_jax.storage.orbax.laid import LaidArray
from surgery_jax.storage.orbax.zarr import describe, parse_array

pytestmark = pytest.mark.filterwarnings("ignore")

Pair = namedtuple("Pair", "mu nu")


def a_state() -> dict[str, Any]:
    """What training code saves: parameters, an optimizer state of containers, scalars, a random key, a text."""
    import jax
    import jax.numpy as jnp

    numbers = np.random.default_rng(0).standard_normal((24, 10)).astype(np.float32)
    return {
        "params": {
            "layer.0": {"kernel": jnp.asarray(numbers, jnp.bfloat16), "bias": jnp.arange(10, dtype=jnp.float32)},
            "head": {"kernel": jnp.asarray(numbers)},
        },
        "opt_state": [Pair(jnp.ones(3), jnp.zeros(3, jnp.int8)), (jnp.ones(()),), None, {}],
        "step": 7,
        "rate": 0.1,
        "kind": "adam",
        "host": np.arange(6, dtype=np.int64).reshape(2, 3),
        "rng": jax.random.key(3),
    }


def leaves_of(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a state under the name it has here."""
    import jax

    if isinstance(tree, dict):
        items = [(key, tree[key]) for key in tree]
    elif isinstance(tree, Pair):
        items = list(tree._asdict().items())
    elif isinstance(tree, list | tuple):
        items = [(str(number), item) for number, item in enumerate(tree)]
    elif tree is not None and not isinstance(tree, str):
        is_key = isinstance(tree, jax.Array) and jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key)
        yield join_keys(path), np.asarray(jax.random.key_data(tree) if is_key else tree)
        return
    else:
        return
    for key, item in items:
        yield from leaves_of(item, (*path, key))


def save_v1(path: Path, state: Any, **saving: bool) -> None:
    from orbax.checkpoint import v1 as ocp

    arrays = ocp.options.ArrayOptions(saving=ocp.options.ArrayOptions.Saving(**saving))
    with ocp.Context(array_options=arrays):
        ocp.save(path, state)


def save_v0(path: Path, state: Any, **options: bool) -> None:
    import orbax.checkpoint

    orbax.checkpoint.PyTreeCheckpointer(**options).save(path, state)


def save_standard(path: Path, state: Any) -> None:
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {key: value for key, value in state.items() if key != "kind"})


def save_step(path: Path, state: Any) -> None:
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(path, item_names=("items", "notes")) as manager:
        saved = {"items": ocp.args.PyTreeSave(state), "notes": ocp.args.JsonSave({"a": 1})}
        manager.save(12, args=ocp.args.Composite(**saved))


WAYS: dict[str, Callable[[Path, Any], None]] = {
    "v1": save_v1,
    "standard": save_standard,
    "step": save_step,
    **{
        f"v1-{'ocdbt' if ocdbt else 'files'}-zarr{3 if zarr3 else 2}-{'zstd' if zstd else 'raw'}": (
            lambda path, state, o=ocdbt, z=zarr3, c=zstd: save_v1(
                path, state, use_ocdbt=o, use_zarr3=z, use_compression=c
            )
        )
        for ocdbt, zarr3, zstd in np.ndindex(2, 2, 2)
        if not (ocdbt and zarr3 and zstd)
    },
    **{
        f"v0-{'ocdbt' if ocdbt else 'files'}-zarr{3 if zarr3 else 2}": (
            lambda path, state, o=ocdbt, z=zarr3: save_v0(path, state, use_ocdbt=o, use_zarr3=z)
        )
        for ocdbt, zarr3 in np.ndindex(2, 2)
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A state as Orbax writes it in one of the ways; written once."""
    root = tmp_path_factory.mktemp("saved")

    def of(way: str) -> Path:
        path = root / way
        if not path.exists():
            WAYS[way](path, a_state())
        return path

    return of


@pytest.fixture
def mine(saved: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of it that the test may change."""

    def of(way: str) -> Path:
        shutil.copytree(saved(way), tmp_path / way)
        return tmp_path / way

    return of


# --- reading


@pytest.mark.parametrize("way", WAYS)
def test_every_leaf_that_orbax_wrote_is_read_bit_for_bit(way: str, saved: Callable[[str], Path]) -> None:
    expected = dict(leaves_of(a_state()))
    found = open_checkpoint(str(saved(way)))
    assert found.format == "orbax"
    assert set(found.entries) == set(expected)
    for name, array in expected.items():
        entry = found.entries[name]
        assert (entry.spec.shape, entry.spec.dtype.numpy) == (array.shape, array.dtype), name
        assert bytes_of(entry) == array.tobytes(), name
        is_raw = way.endswith("raw") and "files" in way
        assert (entry.extent is not None) == is_raw, name


def test_a_key_with_a_dot_is_escaped(saved: Callable[[str], Path]) -> None:
    assert "params.layer\\.0.kernel" in open_checkpoint(str(saved("v1"))).entries


def test_nnx_states_are_read_with_and_without_value_leaves(tmp_path: Path) -> None:
    import orbax.checkpoint
    from flax import nnx

    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    kernel = np.asarray(state["kernel"][...])
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.save(tmp_path / "pure", nnx.to_pure_dict(state))
    for path, name in (("state", "kernel.value"), ("pure", "kernel")):
        assert bytes_of(open_checkpoint(str(tmp_path / path)).entries[name]) == kernel.tobytes()


def test_of_several_steps_or_items_one_must_be_named(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (9, 10):
            manager.save(step, args=ocp.args.StandardSave({"w": np.full(3, step)}))
    with pytest.raises(StorageError, match=r"(?s)several checkpoints.*9/default, 10/default.*10/default"):
        open_checkpoint(str(tmp_path / "run"))
    for path in ("run/9", "run/9/default"):
        assert bytes_of(open_checkpoint(str(tmp_path / path)).entries["w"]) == np.full(3, 9).tobytes()
    with ocp.CheckpointManager(tmp_path / "pair", item_names=("a", "b")) as manager:
        manager.save(0, args=ocp.args.Composite(a=ocp.args.StandardSave({"w": 1}), b=ocp.args.StandardSave({"w": 2})))
    with pytest.raises(StorageError, match="several"):
        open_checkpoint(str(tmp_path / "pair" / "0"))
    assert list(open_checkpoint(str(tmp_path / "pair/0/b")).entries) == ["w"]


def test_a_part_of_a_checkpoint_is_chosen_behind_a_hash(saved: Callable[[str], Path], tmp_path: Path) -> None:
    found = open_checkpoint(f"{saved('v1')}#params")
    assert set(found.entries) == {"layer\\.0.kernel", "layer\\.0.bias", "head.kernel"}
    assert set(open_checkpoint(f"{saved('v1')}#params.head").entries) == {"kernel"}
    with pytest.raises(StorageError, match=r"(?s)no part 'param'.*params"):
        open_checkpoint(f"{saved('v1')}#param")
    write(tmp_path / "a#b.safetensors", {"x.y": sample("float32", 3)})
    assert set(open_checkpoint(str(tmp_path / "a#b.safetensors")).entries) == {"x.y"}
    assert set(open_checkpoint(str(tmp_path / "a#b.safetensors#x")).entries) == {"y"}


def sharded(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], **saving: bool) -> np.ndarray:
    """An array that Orbax cuts into several chunks, with a smaller last one where they do not divide it."""
    import tensorstore as ts

    save_v1(path, {"w": np.zeros(shape, np.float32)}, **saving)
    array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    shutil.rmtree(path / "state" / "w")
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/state/w/"}}
    compressor = {"id": "zstd"} if saving["use_compression"] else None
    metadata = {"shape": shape, "chunks": chunks, "dtype": "<f4", "compressor": compressor}
    ts.open({**spec, "metadata": metadata, "create": True}).result().write(array).result()
    return array


@pytest.mark.parametrize("use_compression", [False, True])
@pytest.mark.parametrize(
    ("shape", "chunks", "is_raw"),
    [
        ((12, 4), (3, 4), True),
        ((13, 4), (5, 4), True),
        ((3, 7, 2), (1, 3, 2), True),
        ((1, 9), (1, 2), True),
        ((12, 4), (12, 2), False),
        ((6, 4, 5), (2, 4, 2), False),
        ((5, 3), (2, 4), False),
        ((3, 7, 2), (2, 3, 2), False),
    ],
)
def test_chunks_of_any_cut_are_read_and_moved_and_computed_with(
    shape: tuple[int, ...], chunks: tuple[int, ...], is_raw: bool, use_compression: bool, tmp_path: Path
) -> None:
    array = sharded(tmp_path / "in", shape, chunks, use_ocdbt=False, use_zarr3=False, use_compression=use_compression)
    entry = open_checkpoint(str(tmp_path / "in")).entries["w"]
    assert (entry.extent is not None) == (is_raw and not use_compression)
    assert bytes_of(entry) == array.tobytes()
    plan = {
        "inputs": [f"model::{tmp_path / 'in'}"],
        "transforms": [
            {"copy": {"from": "w", "to": "tail"}},
            {"copy": {"from": "w::[1:]" if shape[0] > 1 else "w", "to": "part"}},
            {"scale_": {"target": "tail", "by": 2}},
        ],
        "output": str(tmp_path / "out.safetensors"),
    }
    surgery_jax.run(surgery_jax.plan_of(plan))
    found = open_checkpoint(str(tmp_path / "out.safetensors")).entries
    assert bytes_of(found["w"]) == array.tobytes()
    assert bytes_of(found["part"]) == (array[1:] if shape[0] > 1 else array).tobytes()
    assert bytes_of(found["tail"]) == (array * 2).tobytes()


def test_a_large_compressed_array_is_read_block_by_block_within_the_budget(tmp_path: Path) -> None:
    array = sharded(tmp_path / "in", (4096, 1024), (64, 1024), use_ocdbt=False, use_zarr3=False, use_compression=True)
    options = Options(memory="8MiB", workers=2)
    report = surgery_jax.convert(tmp_path / "in", tmp_path / "out.safetensors", options)
    assert report.peak_buffer_bytes <= 8 << 20 < array.nbytes
    assert bytes_of(open_checkpoint(str(tmp_path / "out.safetensors")).entries["w"]) == array.tobytes()
    found = surgery_jax.inspect(tmp_path / "in", options, stats=True).tensors[0].statistics
    assert found is not None and found.max == float(array.max())
    with pytest.raises(BudgetError, match="decoded"):
        surgery_jax.convert(tmp_path / "in", tmp_path / "small.safetensors", Options(memory="1MiB", workers=1))
    assert not (tmp_path / "small.safetensors").exists()


@pytest.mark.parametrize("use_zarr3", [False, True])
@pytest.mark.parametrize("use_ocdbt", [False, True])
def test_leaves_of_dtypes_that_are_not_here_are_left_out_and_told(
    use_ocdbt: bool, use_zarr3: bool, tmp_path: Path
) -> None:
    import jax.numpy as jnp

    tree = {
        "params": {"w": jnp.ones((2, 3)), "packed": jnp.ones((2, 4), jnp.int4), "four": jnp.ones(4, jnp.float4_e2m1fn)},
        "wide": np.ones(3, np.complex128),
        "only": {"packed": jnp.ones(4, jnp.float8_e3m4)},
    }
    save_v0(tmp_path / "in", tree, use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    found = open_checkpoint(str(tmp_path / "in"))
    assert list(found.entries) == ["params.w"]
    (told,) = found.left_out
    for name, dtype in [
        ("params.packed", "int4"),
        ("params.four", "float4_e2m1fn"),
        ("wide", "complex128"),
        ("only.packed", "float8_e3m4"),
    ]:
        assert f"{name} (an array of {dtype})" in told
    part = open_checkpoint(f"{tmp_path}/in#params")
    assert list(part.entries) == ["w"]
    assert "packed (an array of int4)" in part.left_out[0]
    assert "wide" not in part.left_out[0]
    with pytest.raises(StorageError, match=r"no tensors(.|\n)*packed \(an array of float8_e3m4\)"):
        open_checkpoint(f"{tmp_path}/in#only")


def test_a_part_of_a_tree_is_chosen_before_anything_is_refused(
    mine: Callable[[str], Path], saved: Callable[[str], Path]
) -> None:
    path = mine("v1-files-zarr2-raw")
    shutil.rmtree(path / "state" / "host")
    with pytest.raises(StorageError, match="'host' is missing"):
        open_checkpoint(str(path))
    found = open_checkpoint(f"{path}#params").entries
    expected = open_checkpoint(f"{saved('v1-files-zarr2-raw')}#params").entries
    assert {name: bytes_of(entry) for name, entry in found.items()} == {
        name: bytes_of(entry) for name, entry in expected.items()
    }


# --- bad input


def refuse(path: Path, words: str, out: Path) -> None:
    """It is an error that names the place, when it is opened or at the latest when it is read, and nothing appears."""
    with pytest.raises(StorageError, match=words) as caught:
        surgery_jax.convert(path, out)
    assert caught.value.exit_code == 3
    assert not out.exists()


def without_markers(path: Path) -> Path:
    """What a release before 0.12.3 would have left on a disk."""
    for marker in list(path.rglob("commit_success.txt")):
        marker.unlink()
    return path


@pytest.mark.parametrize("way", ["v1", "standard", "step", "v0-files-zarr2"])
def test_a_directory_that_was_renamed_last_needs_no_commit_marker(
    way: str, mine: Callable[[str], Path], saved: Callable[[str], Path]
) -> None:
    found = open_checkpoint(str(without_markers(mine(way)))).entries
    expected = open_checkpoint(str(saved(way))).entries
    assert {name: bytes_of(entry) for name, entry in found.items()} == {
        name: bytes_of(entry) for name, entry in expected.items()
    }


@pytest.mark.parametrize("ending", ["", "-1700000000"])
@pytest.mark.parametrize("has_marker", [True, False])
@pytest.mark.parametrize("way", ["v1", "standard", "step"])
def test_a_temporary_name_is_refused_as_orbax_does(
    way: str, has_marker: bool, ending: str, mine: Callable[[str], Path], tmp_path: Path
) -> None:
    import orbax.checkpoint

    path = mine(way) if has_marker else without_markers(mine(way))
    place = path / "12" if way == "step" else path
    unfinished = place.rename(tmp_path / f"{place.name}.orbax-checkpoint-tmp{ending}")
    with pytest.raises(ValueError, match="incomplete"):
        orbax.checkpoint.StandardCheckpointer().restore(unfinished)
    refuse(unfinished, f"(?s)never finished.*{'with' if has_marker else 'without'} commit_success", tmp_path / "o.pt")
    open_checkpoint(str(unfinished.rename(tmp_path / "finished")))  # which is what the message advises


def test_of_steps_the_unfinished_ones_do_not_count(mine: Callable[[str], Path]) -> None:
    path = without_markers(mine("step"))
    shutil.copytree(path / "12", path / "13.orbax-checkpoint-tmp-3")
    shutil.copytree(path / "12" / "items", path / "12" / "more.orbax-checkpoint-tmp-4")
    assert open_checkpoint(str(path)).files[0].startswith(f"{path}/12/items/")


@pytest.mark.parametrize("way", ["standard", "step"])
def test_what_was_written_in_place_needs_the_marker_or_the_time_of_its_end(
    way: str, mine: Callable[[str], Path], tmp_path: Path
) -> None:
    path = without_markers(mine(way))
    step = path / "12" if way == "step" else path
    change(step / "_CHECKPOINT_METADATA", commit_timestamp_nsecs=None)
    refuse(path, f"(?s)never finished.*commit_timestamp_nsecs.*{step}/commit_success.txt", tmp_path / "out.pt")
    (step / "commit_success.txt").touch()
    open_checkpoint(str(path))


@pytest.mark.parametrize("save", [save_v1, save_standard])
def test_a_missing_part_of_a_process_is_refused(save: Callable[[Path, Any], None], tmp_path: Path) -> None:
    save(tmp_path / "in", {"w": np.random.default_rng(0).standard_normal((300, 300))})
    (folder,) = (tmp_path / "in").rglob("ocdbt.process_0")
    largest = max(folder.rglob("d/*"), key=lambda file: file.stat().st_size)
    largest.rename(tmp_path / "gone")
    refuse(tmp_path / "in", "cannot be read", tmp_path / "out.safetensors")
    (tmp_path / "gone").rename(largest)
    folder.rename(tmp_path / "gone")
    refuse(tmp_path / "in", "cannot be read", tmp_path / "out.safetensors")


def change(path: Path, **values: Any) -> None:
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, **values}))


@pytest.mark.parametrize("way", ["v1-files-zarr2-raw", "v1-files-zarr2-zstd", "v1-files-zarr3-raw"])
def test_an_array_whose_description_is_not_true_is_refused(
    way: str, mine: Callable[[str], Path], tmp_path: Path
) -> None:
    path = mine(way)
    array = path / "state" / "params.head.kernel"
    described = next(file for file in (array / ".zarray", array / "zarr.json") if file.exists())
    whole = described.read_bytes()
    lies: list[dict[str, Any]] = [
        {"shape": [48, 10]},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": [-1, 10]},
        {"shape": [24]},
        {"shape": "24"},
        {"zarr_format": 4},
    ]
    if described.name == ".zarray":
        lies += [
            {"chunks": [12, 10]},
            {"chunks": [24, 0]},
            {"dtype": "<f9"},
            {"dtype": [["a", "<f4"]]},
            {"dtype": "<f8"},
        ]
    else:
        lies += [{"codecs": []}, {"codecs": 3}, {"data_type": "string"}, {"chunk_grid": {"name": "other"}}]
        lies += [{"data_type": "float64"}]
    for lie in lies:
        change(described, **lie)
        refuse(path, "array|chunk", tmp_path / "out.safetensors")
        described.write_bytes(whole)
    for chunk in [file for file in array.rglob("*") if file.is_file() and file != described]:
        data = chunk.read_bytes()
        chunk.write_bytes(data[:-3])
        refuse(path, "chunk|array", tmp_path / "out.safetensors")
        chunk.unlink()
        refuse(path, "(?s)chunks.*missing", tmp_path / "out.safetensors")
        chunk.write_bytes(data)
    surgery_jax.convert(path, tmp_path / "out.safetensors")


def test_a_table_cannot_lead_out_of_the_directory(mine: Callable[[str], Path], tmp_path: Path) -> None:
    path = mine("v1-files-zarr2-raw")
    table = path / "state" / "_METADATA"
    shutil.copytree(path / "state" / "params.head.kernel", tmp_path / "outside")
    for key in (f"{tmp_path}/outside", "../../outside", "params/../../../outside", "\x00", "\ud800"):
        row = {"key_metadata": [{"key": key, "key_type": 2}]}
        row["value_metadata"] = {"value_type": "jax.Array", "skip_deserialize": False}  # type: ignore[assignment]
        table.write_text(json.dumps({"tree_metadata": {"('x',)": row}}))
        refuse(path, "inside of the checkpoint", tmp_path / "out.safetensors")


@pytest.mark.parametrize("what", ["chunk", "array"])
def test_links_that_lie_in_the_directory_are_followed(
    what: str, mine: Callable[[str], Path], saved: Callable[[str], Path], tmp_path: Path
) -> None:
    array = mine("v1-files-zarr2-raw") / "state" / "params.head.kernel"
    place = array / "0.0" if what == "chunk" else array
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    (array / "round").symlink_to(array)
    (array / "about").symlink_to(array)
    name = "params.head.kernel"
    with pytest.raises(StorageError, match="not those of its shape"):  # and not a search without end
        open_checkpoint(str(array.parent.parent))
    (array / "round").unlink()
    (array / "about").unlink()
    found = open_checkpoint(str(array.parent.parent)).entries[name]
    assert bytes_of(found) == bytes_of(open_checkpoint(str(saved("v1-files-zarr2-raw"))).entries[name])


@pytest.mark.parametrize(
    "table",
    [
        "",
        "[]",
        "{}",
        '{"tree_metadata": {}}',
        '{"tree_metadata": {"a": 3}}',
        '{"tree_metadata": {"a": {"key_metadata": [], "value_metadata": {"value_type": "", "skip_deserialize": 0}}}}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": 1, "key_type": 2}], "value_metadata": {}}}}',
        "[" * 100_000,
    ],
)
def test_a_table_of_another_kind_is_refused(table: str, mine: Callable[[str], Path], tmp_path: Path) -> None:
    path = mine("v1")
    (path / "state" / "_METADATA").write_text(table)
    refuse(path, ".", tmp_path / "out.safetensors")


def test_leaves_that_collide_when_their_keys_are_joined_are_refused(
    mine: Callable[[str], Path], tmp_path: Path
) -> None:
    path = mine("v1-files-zarr2-raw")
    table = json.loads((path / "state" / "_METADATA").read_text())
    row = table["tree_metadata"]["('params', 'head', 'kernel')"]
    row = row | {"key_metadata": [{"key": "params.head", "key_type": 2}, {"key": "kernel", "key_type": 2}]}
    table["tree_metadata"]["('params.head', 'kernel')"] = row
    (path / "state" / "_METADATA").write_text(json.dumps(table))
    refuse(path, "(?s)same name.*params.head", tmp_path / "out.safetensors")


# --- writing


SETTINGS = [{}, {"chunk": "1KB"}, {"compression": "zstd"}, {"chunk": "500B", "compression": "zstd"}, {"chunk": "none"}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_orbax_loads_what_is_written_and_it_comes_back_bit_for_bit(settings: dict[str, str], tmp_path: Path) -> None:
    tensors = a_model(tmp_path / "in.safetensors", rows=53)
    surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings=settings)
    for load in (load_v1, load_v0, load_standard):
        assert_equal_trees(load(tmp_path / "out"), nested(tensors))
    is_plain = settings.get("compression") is None
    kernel = open_checkpoint(str(tmp_path / "out")).entries["params.head.kernel"]
    assert (kernel.extent is not None) == is_plain
    if "chunk" in settings and is_plain and settings["chunk"] != "none":
        assert kernel.extent is not None and len(kernel.extent.rest) > 4
    surgery_jax.convert(tmp_path / "out", tmp_path / "back.safetensors")
    surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "again.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_what_is_written_is_loaded_onto_a_mesh(tmp_path: Path) -> None:
    a_model(tmp_path / "in.safetensors", has_small=False)
    for name, settings in (("raw", {"chunk": "500B"}), ("zstd", {"compression": "zstd"})):
        surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / name, format="orbax", settings=settings)
    program = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import orbax.checkpoint
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((8,), ("x",))
expected = load_file("in.safetensors")
for name in ("raw", "zstd"):
    for column in (False, True):
        tree = {}
        for key, array in expected.items():
            *keys, last = key.split(".")
            node = tree
            for word in keys:
                node = node.setdefault(word, {})
            axes = ("x",) if array.ndim == 2 and array.shape[0] % 8 == 0 else ()
            axes = (None, "x") if column and array.ndim == 2 and array.shape[1] % 8 == 0 else axes
            sharding = NamedSharding(mesh, PartitionSpec(*axes))
            node[last] = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        wanted = jax.tree.leaves(tree)
        path = os.path.abspath(name)
        for load in (ocp.load, orbax.checkpoint.StandardCheckpointer().restore):
            found = load(path, tree)
            for (keys, leaf), want in zip(jax.tree.leaves_with_path(found), wanted, strict=True):
                assert leaf.sharding == want.sharding
                array = expected[".".join(key.key for key in keys)]
                assert np.asarray(leaf).tobytes() == array.tobytes(), keys
print("loaded", jax.device_count())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "loaded 8\n", done.stderr[-3000:]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_conversions_are_exact_within_a_small_budget(compression: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(2)
    tensors = {f"w{number}": rng.standard_normal((1024, 1024 + number)).astype(np.float32) for number in range(6)}
    save_file(tensors, tmp_path / "library.safetensors")
    surgery_jax.convert(tmp_path / "library.safetensors", tmp_path / "in.safetensors")
    options = Options(memory="8MiB", workers=2)
    settings = {"compression": compression, "chunk": "1MB"}
    source, middle, target = tmp_path / "in.safetensors", tmp_path / "middle", tmp_path / "out.safetensors"
    reports = [
        surgery_jax.convert(source, middle, options, format="orbax", settings=settings),
        surgery_jax.convert(middle, target, options),
    ]
    assert target.read_bytes() == source.read_bytes()
    assert all(report.peak_buffer_bytes <= 8 << 20 for report in reports)
    assert all(report.bytes_moved == sum(array.nbytes for array in tensors.values()) for report in reports)


@pytest.mark.parametrize("way", ["v1", "v0-files-zarr3", "v0-ocdbt-zarr2"])
def test_an_edit_keeps_the_containers_of_what_it_does_not_touch(
    way: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    import jax

    plan = {
        "inputs": [f"model::{saved(way)}"],
        "transforms": [
            {"scale_": {"target": "params\\.head\\.kernel", "by": 2}},
            {"move": {"from": "params\\.layer\\\\\\.0\\.bias", "to": "params.bias"}},
        ],
        "output": {"path": str(tmp_path / "out"), "format": "orbax", "options": {"compression": "zstd"}},
    }
    surgery_jax.run(surgery_jax.plan_of(plan))
    original = load_v0(next(saved(way).rglob("_METADATA")).parent)
    expected = {**original, "params": {**original["params"], "layer.0": dict(original["params"]["layer.0"])}}
    expected["params"]["head"] = {"kernel": np.asarray(original["params"]["head"]["kernel"]) * 2}
    expected["params"]["bias"] = expected["params"]["layer.0"].pop("bias")
    for load in (load_v0, load_v1):
        found = load(tmp_path / "out")
        assert jax.random.key_data(found.pop("rng")).tolist() == jax.random.key_data(original["rng"]).tolist()
        assert (type(found["step"]), type(found["rate"]), found["kind"]) == (int, float, "adam")
        assert_equal_trees(found, {key: value for key, value in expected.items() if key != "rng"})


def test_a_list_that_lost_an_item_becomes_a_dictionary(tmp_path: Path) -> None:
    save_v1(tmp_path / "in", {"layers": [np.full(3, at) for at in range(3)], "other": [np.zeros(2), None]})
    plan = {
        "inputs": [f"model::{tmp_path / 'in'}"],
        "transforms": [{"delete": {"target": "layers.0"}}, {"delete": {"target": "other.0"}}],
        "output": {"path": str(tmp_path / "out"), "format": "orbax"},
    }
    surgery_jax.run(surgery_jax.plan_of(plan))
    assert_equal_trees(load_v1(tmp_path / "out"), {"layers": {"1": np.full(3, 1), "2": np.full(3, 2)}})


def test_a_part_of_a_state_is_written_with_its_containers(saved: Callable[[str], Path], tmp_path: Path) -> None:
    surgery_jax.convert(f"{saved('v1')}#opt_state", tmp_path / "out", format="orbax")
    found = open_checkpoint(str(tmp_path / "out"))
    assert set(found.entries) == {"0.mu", "0.nu", "1.0"}
    assert json.loads(found.metadata["orbax"]) == {"empty": {"2": "None", "3": "Dict"}, "lists": ["1"]}


@given(
    shape=st.lists(st.integers(1, 3000), min_size=0, max_size=3).map(tuple),
    limit=st.one_of(st.none(), st.integers(1, 1 << 24)),
)
def test_chunks_cut_a_tensor_into_its_bytes_in_order(shape: tuple[int, ...], limit: int | None) -> None:
    made = spec("float32", *shape)
    chunk = chunk_of(made, limit)
    parts = list(LaidArray("w", ChunkGrid(made, chunk), 2, "none").slabs())
    assert [part.begin for part in parts] == [number * parts[0].size for number in range(len(parts))]
    assert parts[-1].begin < made.nbytes <= parts[-1].begin + parts[-1].size
    assert all(part.encode is None for part in parts)
    array = parse_array(json.dumps(describe(made, chunk, "none")).encode(), 2, Path("w"))
    assert [key for part in parts for key in part.keys] == [f"w/{key}" for key in array.keys()]
    if limit is not None and made.nbytes < 8 << 20 and made.nbytes <= limit:
        assert len(parts) == 1
    if limit is not None and made.nbytes > limit:
        assert len(parts) > 1 or made.size == 1


def test_large_tensors_are_cut_for_as_many_devices() -> None:
    assert chunk_of(spec("bfloat16", 2048, 8192), 64 << 20) == (256, 8192)
    assert chunk_of(spec("bfloat16", 128256, 2048), 64 << 20) == (16032, 2048)
    assert chunk_of(spec("bfloat16", 512, 2048), 64 << 20) == (512, 2048)
    assert chunk_of(spec("float32", 10007, 4096), 64 << 20) == (1251, 4096)
    assert chunk_of(spec("bfloat16", 4096, 14336), 1 << 20) == (32, 14336)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"compressoin": "zstd"}, "(?s)no option 'compressoin'.*compression"),
        ({"compression": "gzip"}, "(?s)gzip.*none, zstd"),
        ({"chunk": "5"}, "not a size"),
    ],
)
def test_unknown_options_are_errors_of_the_plan(settings: dict[str, str], words: str, tmp_path: Path) -> None:
    a_model(tmp_path / "in.safetensors")
    with pytest.raises(PlanError, match=words):
        surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings=settings)
    with pytest.raises(PlanError, match="no option"):
        surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", settings={"chunk": "5MB"})
    plan = {
        "inputs": [f"model::{tmp_path / 'in.safetensors'}"],
        "transforms": [{"save": {"path": str(tmp_path / "out"), "format": "orbax", "options": settings}}],
    }
    with pytest.raises(SurgeryError, match=words):
        surgery_jax.run(surgery_jax.plan_of(plan))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a", "a.b"], "leaf and a branch"),
        (["a.b", "a\\.b"], "in one directory"),
        (["a/b"], "name of a directory"),
        ([".."], "leaf and a branch|name of a directory|one"),
        (["x" * 256], "longer"),
        (["_METADATA"], "a file of Orbax"),
        (["d"], "a file of Orbax"),
    ],
)
def test_names_that_orbax_cannot_store_are_refused(names: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=words):
        resolve_output(str(tmp_path / "out"), "orbax", None, "5GB").layout(
            [(name, spec("int8", 2)) for name in names], {}
        )


def test_a_checkpoint_of_orbax_is_replaced_as_a_whole(mine: Callable[[str], Path], tmp_path: Path) -> None:
    path = mine("v0-ocdbt-zarr2")
    (path / "README").write_text("mine")
    tensors = a_model(tmp_path / "in.safetensors")
    with pytest.raises(StorageError, match="overwrite"):
        surgery_jax.convert(tmp_path / "in.safetensors", path, format="orbax")
    for _ in range(2):
        surgery_jax.convert(tmp_path / "in.safetensors", path, Options(overwrite=True), format="orbax")
        assert_equal_trees(load_v0(path), nested(tensors))
    assert not list(path.glob("*ocdbt*")) and (path / "README").read_text() == "mine"


def test_a_failed_run_leaves_no_checkpoint(tmp_path: Path) -> None:
    a_model(tmp_path / "in.safetensors")
    plan = {
        "inputs": [f"model::{tmp_path / 'in.safetensors'}"],
        "transforms": [{"assert": {"iszero": {"of": "params.head.bias"}}}],
        "output": {"path": str(tmp_path / "out"), "format": "orbax", "options": {"compression": "zstd"}},
    }
    with pytest.raises(SurgeryError, match="iszero"):
        surgery_jax.run(surgery_jax.plan_of(plan))
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_more_chunks_than_a_process_may_open_are_written_and_read(compression: str, tmp_path: Path) -> None:
    write(tmp_path / "in.safetensors", {f"w{number}": sample("float32", 4) for number in range(400)})
    program = "exec " + shlex.join([sys.executable, "-m", "surgery_jax", "convert", "--quiet"])
    options = f"--format orbax --options compression={compression}"
    for line in (f"in.safetensors out {options}", "out back.safetensors"):
        done = subprocess.run(
            ["sh", "-c", f"ulimit -n 150 && {program} {line}"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "in.safetensors").read_bytes()


def test_a_checkpoint_is_not_written_beside_steps(mine: Callable[[str], Path], tmp_path: Path) -> None:
    a_model(tmp_path / "in.safetensors")
    path = mine("step")
    with pytest.raises(StorageError, match=r"(?s)steps.*12/items"):
        surgery_jax.convert(tmp_path / "in.safetensors", path, Options(overwrite=True), format="orbax")
    surgery_jax.convert(tmp_path / "in.safetensors", path / "12" / "items", Options(overwrite=True), format="orbax")
    assert "params.head.bias" in open_checkpoint(str(path)).entries


def test_models_of_flax_take_what_was_edited(tmp_path: Path) -> None:
    import jax
    import orbax.checkpoint
    from flax import linen, nnx

    numbers = np.ones((2, 3), np.float32)
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    old = linen.Dense(4)
    params = old.init(jax.random.key(0), numbers)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "nnx", nnx.state(model))
        checkpointer.save(tmp_path / "linen", params)
    for name, kernel in (("nnx", "kernel.value"), ("linen", "params.kernel")):
        plan = {
            "inputs": [f"model::{tmp_path / name}"],
            "transforms": [{"scale_": {"target": kernel, "by": 2}}],
            "output": {"path": str(tmp_path / f"{name}_twice"), "format": "orbax"},
        }
        surgery_jax.run(surgery_jax.plan_of(plan))
    restore = orbax.checkpoint.StandardCheckpointer().restore
    other = nnx.Linear(3, 4, rngs=nnx.Rngs(1))
    nnx.update(other, restore(tmp_path / "nnx_twice", jax.tree.map(jax.numpy.zeros_like, nnx.state(other))))
    assert np.array_equal(other(numbers), 2 * model(numbers))
    found = restore(tmp_path / "linen_twice", jax.tree.map(jax.numpy.zeros_like, params))
    assert np.array_equal(old.apply(found, numbers), 2 * old.apply(params, numbers))
