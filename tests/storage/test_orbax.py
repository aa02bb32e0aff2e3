"""Orbax checkpoints: against Orbax itself."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storing import bytes_of, sample, write

import surgery_jax
from surgery_jax import Options
from surgery_jax.core.errors import BudgetError, StorageError
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.keys import join_keys

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


# --- bad input


def refuse(path: Path, words: str, out: Path) -> None:
    """It is an error that names the place, when it is opened or at the latest when it is read, and nothing appears."""
    with pytest.raises(StorageError, match=words) as caught:
        surgery_jax.convert(path, out)
    assert caught.value.exit_code == 3
    assert not out.exists()


@pytest.mark.parametrize("way", ["v1", "standard", "step", "v0-files-zarr2"])
def test_a_checkpoint_without_its_commit_marker_is_refused(
    way: str, mine: Callable[[str], Path], tmp_path: Path
) -> None:
    path = mine(way)
    for marker in list(path.rglob("commit_success.txt")):
        marker.unlink()
    refuse(path, "(?s)commit marker.*commit_success.txt", tmp_path / "out.safetensors")
    place = path / "12" if way == "step" else path
    unfinished = tmp_path / f"{place.name}.orbax-checkpoint-tmp"
    place.rename(unfinished)
    refuse(unfinished, "never finished", tmp_path / "out.safetensors")


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
    whole = table.read_text()
    shutil.copytree(path / "state" / "params.head.kernel", tmp_path / "outside")
    for key in (f"{tmp_path}/outside", "../../outside", "params/../../../outside", "\x00"):
        row = {"key_metadata": [{"key": key, "key_type": 2}]}
        row["value_metadata"] = {"value_type": "jax.Array", "skip_deserialize": False}  # type: ignore[assignment]
        table.write_text(json.dumps({"tree_metadata": {"('x',)": row}}))
        refuse(path, "inside of the checkpoint", tmp_path / "out.safetensors")
    table.write_text(whole)
    chunk = path / "state" / "params.head.kernel" / "0.0"
    chunk.unlink()
    chunk.symlink_to(tmp_path / "outside" / "0.0")
    refuse(path, "leaves the directory", tmp_path / "out.safetensors")


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
