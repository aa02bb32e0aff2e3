"""Orbax checkpoints in other forms: for a mesh, in zarr 3, in one store, as steps; against Orbax itself."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from itertools import product
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
from surgery_jax.core.dtypes import DTYPES
from surgery_jax.core.errors import BudgetError, StorageError, SurgeryError
from surgery_jax.storage.formats import open_checkpoint, resolve_output
from surgery_jax.storage.orbax.checksums import crc32c
from surgery_jax.storage.orbax.chunks import ChunkGrid, divided
from surgery_jax.storage.orbax.laid import LaidArray
from surgery_jax.storage.orbax.ocdbt import PlacedValue, encode_store

pytestmark = pytest.mark.filterwarnings("ignore")

MESH = {"mesh": {"x": 2, "y": 5}, "shard": {".*bias|.*small|step": [], ".*head.*": ["x", ["y"]], ".*layers.*": ["x"]}}
FORMS = [
    {"zarr": str(zarr), "ocdbt": ("false", "true")[ocdbt], "compression": ("none", "zstd")[zstd]}
    for zarr, ocdbt, zstd in product((2, 3), (0, 1), (0, 1))
]


def words(form: dict[str, str]) -> str:
    return "-".join(form.values())


SMALL = {**MESH, "chunk": "500B"}
# With a mesh and in small chunks not all forms, but any two properties of a form together.
EVEN, ODD = ([FORMS[number] for number in numbers] for numbers in ((0, 3, 5, 6), (1, 2, 4, 7)))


@pytest.mark.parametrize(
    ("form", "more"),
    [*product(FORMS, [{}]), *product(EVEN, [MESH]), *product(ODD, [SMALL])],
    ids=[*map(words, FORMS), *(f"mesh-{words(form)}" for form in EVEN), *(f"small-{words(form)}" for form in ODD)],
)
def test_every_form_is_loaded_by_orbax_and_comes_back_bit_for_bit(
    form: dict[str, str], more: dict[str, Any], tmp_path: Path
) -> None:
    tensors = a_model(tmp_path / "in.safetensors")
    surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings={**form, **more})
    for load in (load_v1, load_v0, load_standard):
        assert_equal_trees(load(tmp_path / "out"), nested(tensors))
    surgery_jax.convert(tmp_path / "out", tmp_path / "back.safetensors")
    surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "again.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize("form", FORMS, ids=words)
def test_all_dtypes_empty_tensors_scalars_and_zeros_are_kept_in_every_form(
    form: dict[str, str], tmp_path: Path
) -> None:
    import orbax.checkpoint

    tensors = {f"all.{dtype.name}": sample(dtype.name, 4, 6) for dtype in DTYPES if dtype.array}
    tensors |= {"none.rows": sample("float32", 0, 3), "none.columns": sample("bfloat16", 4, 0)}
    tensors |= {
        "one.float32": sample("float32"),
        "one.int8": sample("int8"),
        "zero": (spec("float32", 4, 6), bytes(96)),
    }
    write(tmp_path / "in.safetensors", tensors)
    rules = {"mesh": {"x": 2, "y": 3}, "shard": {"all.*": ["x", "y"], "zero": [None, "x"], "none.rows": ["x"]}}
    surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings={**form, **rules})
    found = open_checkpoint(str(tmp_path / "out")).entries
    loaded = orbax.checkpoint.PyTreeCheckpointer().restore(tmp_path / "out")
    for name, (made, data) in tensors.items():
        assert bytes_of(found[name]) == data, name
        leaf = loaded
        for key in name.split("."):
            leaf = leaf[key]
        assert (np.asarray(leaf).shape, np.asarray(leaf).tobytes()) == (made.shape, data), name


LOADING = """
import json, os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, numpy as np, orbax.checkpoint, tensorstore
from jax.sharding import NamedSharding, PartitionSpec as P
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

mesh = jax.make_mesh((4, 2), ("x", "y"))
specs = {"rows": P(("x", "y")), "columns": P(None, ("y", "x")), "both": P("x", "y"), "inner": P(None, "y", "x")}
expected = load_file("in.safetensors")

def wanted():
    tree = {}
    for name, array in expected.items():
        sharding = NamedSharding(mesh, specs[name])
        tree[name] = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    return tree

def read():
    found = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in found for value in metric["values"])

def of_one_device(path, name, index):
    store = {"driver": "file", "path": f"{os.path.abspath(path)}/"}
    if os.path.exists(f"{path}/manifest.ocdbt"):
        store = {"driver": "ocdbt", "base": store, "path": f"{name}/", "cache_pool": "cache_pool#tree"}
    else:
        store["path"] += f"{name}/"
    context = tensorstore.Context({"cache_pool#tree": {"total_bytes_limit": 1 << 25}})
    driver = "zarr3" if json.load(open(f"{path}/_METADATA"))["use_zarr3"] else "zarr"
    array = tensorstore.open({"driver": driver, "kvstore": store}, context=context, open=True).result()
    array.kvstore.list().result()  # the tree of the keys is read once for all arrays
    before = read()
    part = array[index].read().result()
    assert part.tobytes() == expected[name][index].tobytes()
    return (read() - before) / part.nbytes

total = sum(array.nbytes for array in expected.values())
for path in sys.argv[1:]:
    shares = []
    for load in (ocp.load, orbax.checkpoint.StandardCheckpointer().restore):
        before = read()
        loaded = load(os.path.abspath(path), wanted())
        shares.append((read() - before) / total)
        for name, array in expected.items():
            assert loaded[name].sharding == NamedSharding(mesh, specs[name])
            assert np.asarray(loaded[name]).tobytes() == array.tobytes(), name
    for name, target in wanted().items():
        indices = target.sharding.devices_indices_map(target.shape).values()
        shares.append(max(of_one_device(path, name, index) for index in indices))
    print(path, *shares)
"""


def run_in(folder: Path, program: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_what_is_cut_for_a_mesh_is_read_by_each_device_in_its_part_alone(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shapes = {"rows": (512, 48, 8), "columns": (96, 1024), "both": (256, 384), "inner": (64, 6, 512)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, tmp_path / "in.safetensors")
    shard = {"rows": [["x", "y"]], "columns": [None, ["y", "x"]], "both": ["x", "y"], "inner": [None, "y", "x"]}
    settings = {"mesh": {"x": 4, "y": 2}, "shard": shard}
    (tmp_path / "cut.json").write_text(json.dumps({"mesh": settings["mesh"], "shardings": settings["shard"]}))
    options = {
        **{words(form): {**form, **settings, "chunk": "64KB"} for form in FORMS},
        "told": {"shardings": str(tmp_path / "cut.json")},
        "otherwise": {},
    }
    for name, chosen in options.items():
        surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / name, format="orbax", settings=chosen)
    lines = [line.split() for line in run_in(tmp_path, LOADING, *options).splitlines()]
    shares = {name: max(map(float, found)) for name, *found in lines}
    assert shares.keys() == options.keys()
    assert shares.pop("otherwise") > 4
    assert max(shares.values()) <= 1.05, shares


@given(data=st.data())
def test_chunks_for_a_mesh_divide_the_shards_exactly_and_cover_the_tensor(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    shard = [data.draw(st.integers(1, 12)) for _ in parts]
    made = spec("int16", *(length * count for length, count in zip(shard, parts, strict=True)))
    limit = data.draw(st.one_of(st.none(), st.integers(2, 4000)))
    chunk = divided(made, shard, limit)
    assert all(length % step == 0 for length, step in zip(shard, chunk, strict=True))
    cut = ChunkGrid(made, chunk)
    assert limit is None or cut.slab_bytes <= limit
    assert limit is not None or chunk == tuple(shard)
    slabs = list(LaidArray("w", cut, 2, "none").slabs())
    assert [slab.begin for slab in slabs] == [number * cut.slab_bytes for number in range(len(slabs))]
    assert sum(slab.nbytes for slab in slabs) == made.nbytes
    keys = [key for slab in slabs for key in slab.keys]
    assert len(set(keys)) == len(keys) == made.size // math.prod(chunk)
    assert all((slab.encode is None) == (len(slab.keys) == 1) for slab in slabs)


@pytest.mark.parametrize("form", [{"zarr": "2"}, {"zarr": "3"}, {"ocdbt": "true"}, {"compression": "zstd"}], ids=str)
def test_a_mesh_is_written_within_a_small_budget(form: dict[str, str], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(2)
    tensors = {f"w{number}": rng.standard_normal((512, 1024)).astype(np.float32) for number in range(6)}
    save_file(tensors, tmp_path / "in.safetensors")
    settings = {**form, "mesh": {"x": 8}, "shard": {".*": [None, "x"]}, "chunk": "256KB"}
    options = Options(memory="6MiB", workers=2)
    report = surgery_jax.convert(
        tmp_path / "in.safetensors", tmp_path / "out", options, format="orbax", settings=settings
    )
    assert report.peak_buffer_bytes <= 6 << 20 < sum(array.nbytes for array in tensors.values())
    assert_equal_trees(load_v0(tmp_path / "out"), tensors)
    with pytest.raises(BudgetError, match=r"(?s)encoded as a whole.*option chunk"):
        small = Options(memory="2MiB", workers=1, overwrite=True)
        settings["chunk"] = "2MB"
        surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", small, format="orbax", settings=settings)
    assert_equal_trees(load_v0(tmp_path / "out"), tensors)


@pytest.mark.parametrize("form", FORMS, ids=words)
def test_a_receipt_of_every_form_holds(form: dict[str, str], tmp_path: Path) -> None:
    from surgery_jax.cli.main import main

    a_model(tmp_path / "in.safetensors")
    options = [f"{key}={value}" for key, value in form.items()]
    options += ["mesh={x: 2, y: 5}", "shard={'.*head.kernel': [x, [y]]}", "item=items"]
    line = ["convert", f"{tmp_path}/in.safetensors", f"{tmp_path}/run/1", "--format", "orbax", "--quiet"]
    assert main([*line, "--options", ",".join(options)]) == 0
    assert main(["verify", f"{tmp_path}/run/1"]) == 0
    largest = max((tmp_path / "run/1/items").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    with largest.open("r+b") as file:
        file.seek(5)
        file.write(b"changed")
    assert main(["verify", f"{tmp_path}/run/1"]) != 0


# --- steps


STEPS = """
import logging, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np, orbax.checkpoint as ocp
from safetensors.numpy import load_file

class Loud(logging.Handler):
    def emit(self, record):
        raise AssertionError(record.getMessage())

expected = load_file("in.safetensors")
for name, path in (("items", "run"), ("default", "single")):
    one = ocp.args.StandardRestore()
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(name, ocp.args.StandardRestore, ocp.StandardCheckpointHandler())
    logging.getLogger("absl").addHandler(Loud(logging.WARNING))
    logging.getLogger().addHandler(Loud(logging.WARNING))
    with ocp.CheckpointManager(f"{sys.argv[1]}/{path}", handler_registry=registry) as manager:
        assert list(manager.all_steps()) == [200, 300] and manager.latest_step() == 300
        for found in (
            manager.restore(300),
            manager.restore(None, args=one if name == "default" else ocp.args.Composite(items=one)),
        ):
            for key, array in expected.items():
                leaf = found if name == "default" else found["items"]
                for word in key.split("."):
                    leaf = leaf[word]
                assert np.asarray(leaf).tobytes() == array.tobytes()
        metadata = manager.metadata(300)
        assert metadata.custom_metadata == {"format": "pt", "note": "kept", "scan_layers": True, "depth": 2}, metadata
with ocp.CheckpointManager(f"{sys.argv[1]}/run", item_names=("items",)) as manager:
    manager.restore(300, args=ocp.args.Composite(items=ocp.args.PyTreeRestore()))
    manager.save(301, args=ocp.args.Composite(items=ocp.args.PyTreeSave({"w": np.ones(3)})))
    manager.wait_until_finished()
    assert manager.latest_step() == 301
print("restored")
"""


def test_a_step_is_restored_by_a_manager_that_goes_on_behind_it(tmp_path: Path) -> None:
    a_model(tmp_path / "in.safetensors", has_small=False)
    for step, (name, path) in product((200, 300), (("items", "run"), ("default", "single"))):
        settings = {"ocdbt": "true", "item": name, "metadata": {"scan_layers": True, "depth": 2}}
        target = tmp_path / path / str(step)
        surgery_jax.convert(tmp_path / "in.safetensors", target, format="orbax", settings=settings)
        assert {path.name for path in target.iterdir()} > {"_CHECKPOINT_METADATA", "commit_success.txt", name}
    assert open_checkpoint(str(tmp_path / "run" / "300")).metadata["note"] == "kept"
    assert "restored" in run_in(tmp_path, STEPS, str(tmp_path))


def test_a_step_keeps_the_metadata_that_it_had(tmp_path: Path) -> None:
    import orbax.checkpoint as ocp

    a_model(tmp_path / "in.safetensors")
    settings = {"item": "items", "metadata": {"scan_layers": False, "sizes": [1, 2]}}
    surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "a/1", format="orbax", settings=settings)
    more = {"item": "items", "metadata": {"scan_layers": True}}
    surgery_jax.convert(tmp_path / "a/1", tmp_path / "b/2", format="orbax", settings=more)
    with ocp.CheckpointManager(tmp_path / "b") as manager:
        found = manager.metadata(2).custom_metadata
    assert found == {"format": "pt", "note": "kept", "sizes": [1, 2], "scan_layers": True}


def test_a_step_is_replaced_as_a_whole(tmp_path: Path) -> None:
    tensors = a_model(tmp_path / "in.safetensors")
    target = tmp_path / "run" / "1"
    for form in ({"ocdbt": "true"}, {}):
        settings = {**form, "item": "items"}
        options = Options(overwrite=True)
        surgery_jax.convert(tmp_path / "in.safetensors", target, options, format="orbax", settings=settings)
        assert_equal_trees(load_v0(target / "items"), nested(tensors))
        assert (target / "items" / "manifest.ocdbt").exists() == ("ocdbt" in form)
    with pytest.raises(StorageError, match="overwrite"):
        surgery_jax.convert(tmp_path / "in.safetensors", target, format="orbax", settings={"item": "items"})


# --- the store


@pytest.mark.parametrize("count", [0, 1, 3, 5000, 9000])
def test_tensorstore_reads_every_value_of_a_store_of_any_size(count: int, tmp_path: Path) -> None:
    import tensorstore

    data = np.random.default_rng(3).bytes(1000)
    (tmp_path / "v").write_bytes(data)
    rng = np.random.default_rng(4)
    expected: dict[str, bytes] = {}
    entries: dict[str, bytes | PlacedValue] = {}
    for number in range(count):
        key = f"layer.{rng.integers(1 << 40)}/{number}.ä"
        begin, nbytes = int(rng.integers(500)), int(rng.integers(500))
        expected[key] = data[begin : begin + nbytes]
        entries[key] = PlacedValue("v", begin, nbytes) if number % 2 else expected[key]
    manifest, tree = encode_store(entries, "d/nodes")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/nodes").write_bytes(tree)
    (tmp_path / "manifest.ocdbt").write_bytes(manifest)
    base = {"driver": "file", "path": f"{tmp_path}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    assert sorted(store.list().result()) == sorted(key.encode() for key in expected)
    reads = {key: store.read(key) for key in [*expected][:: max(count // 200, 1)]}
    assert all(read.result().value == expected[key] for key, read in reads.items())


def test_the_checksum_is_the_one_that_is_published() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_a_store_has_one_file_for_all_that_is_moved_and_it_lies_there_as_it_is(tmp_path: Path) -> None:
    tensors = a_model(tmp_path / "in.safetensors")
    surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings={"ocdbt": "true"})
    values, tree = sorted((tmp_path / "out" / "d").iterdir())
    assert all(array.tobytes() in values.read_bytes() for array in tensors.values())
    assert values.stat().st_size == sum(array.nbytes for array in tensors.values())
    assert tree.stat().st_size < 1 << 14


def test_a_store_that_was_replaced_is_read_anew_in_the_same_process(tmp_path: Path) -> None:
    for value in (1, 2):
        write(tmp_path / f"{value}.safetensors", {"w": (spec("int8", 3), bytes([value] * 3))})
        surgery_jax.convert(
            tmp_path / f"{value}.safetensors",
            tmp_path / "out",
            Options(overwrite=True),
            format="orbax",
            settings={"ocdbt": "true"},
        )
        assert bytes_of(open_checkpoint(str(tmp_path / "out")).entries["w"]) == bytes([value] * 3)


# --- what is wrong


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mesh": {"x": 2}}, "'mesh' needs the option 'shard'"),
        ({"shard": {".*": ["x"]}}, "'shard' needs the option 'mesh'"),
        ({"mesh": {"fsdp": 2}, "shard": {".*kernel": ["fdsp"]}}, r"(?s)no axis 'fdsp'.*fsdp.*did you mean fsdp"),
        ({"mesh": {"x": 7}, "shard": {".*kernel": [None, "x"]}}, r"(?s)axis 1 of 'params.head.kernel'.*7.*50"),
        ({"mesh": {"x": 7, "y": 2}, "shard": {".*bias": [["x", "y"]]}}, r"(?s)multiple of 14, the size of x x y"),
        ({"mesh": {"x": 2}, "shard": {".*kernle": ["x"]}}, r"(?s)'\.\*kernle'.*matches no tensor.*params"),
        ({"mesh": {"x": 2}, "shard": {"p.*": [], ".*kernel": ["x"]}}, r"(?s)'\.\*kernel'.*too late"),
        ({"mesh": {"x": 2}, "shard": {"step": ["x"]}}, r"(?s)'step' has fewer axes.*rule 'step'"),
        ({"mesh": {"x": 0}, "shard": {".*": ["x"]}}, "(?s)'x' of the mesh has no size.*above 0.*0"),
        ({"mesh": {"x": True}, "shard": {".*": ["x"]}}, "has no size"),
        ({"mesh": "x", "shard": {".*": ["x"]}}, "'mesh' is not understood"),
        ({"mesh": [4], "shard": {".*": ["x"]}}, "mesh has no axes"),
        ({"mesh": {"x": 2}, "shard": {".*": "x"}}, "not a sharding"),
        ({"mesh": {"x": 2}, "shard": {".*": ["x", ["x"]]}}, "(?s)not a sharding.*none twice"),
        ({"mesh": {"x": 2}, "shard": {"(": ["x"]}}, r"invalid regex '\('"),
        ({"mesh": {"x": 2}, "shard": {"(.+)+(.+)+(.+)+x": ["x"]}}, "takes too long"),
        ({"mesh": {"x": 2}, "shard": ["x"]}, "mapping of expressions"),
        ({"mesh": {"x": 2}, "shard": {".*": []}, "shardings": "a.json"}, "say the same"),
        ({"shardings": "missing.json"}, "missing.json"),
        ({"zarr": 4}, "(?s)zarr '4'.*2, 3"),
        ({"ocdbt": "yes"}, "(?s)ocdbt 'yes'.*false, true"),
        ({"item": "_METADATA"}, "cannot be the item"),
        ({"item": "a/b"}, "cannot be the item"),
        ({"metadata": 3}, "'metadata' is a mapping"),
    ],
    ids=str,
)
def test_what_cannot_be_cut_so_is_told_before_anything_is_written(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    a_model(tmp_path / "in.safetensors")
    with pytest.raises(SurgeryError, match=message) as caught:
        surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings=settings)
    assert caught.value.exit_code == (3 if "missing.json" in message else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"mesh": {"x": 2}}, "(?s)not one.*shardings"),
        ({"mesh": {"x": 2}, "shardings": {"other": []}}, "(?s)says nothing of tensors.*other.*params"),
        ({"mesh": {"x": 2}, "shardings": {"params.head.bias": ["y"]}}, "no axis 'y'"),
        ([], "not one"),
    ],
    ids=str,
)
def test_a_file_of_shardings_that_says_something_else_is_refused(table: Any, message: str, tmp_path: Path) -> None:
    a_model(tmp_path / "in.safetensors")
    (tmp_path / "cut.json").write_text(json.dumps(table))
    settings = {"shardings": str(tmp_path / "cut.json")}
    with pytest.raises(SurgeryError, match=message) as caught:
        surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings=settings)
    assert "cut.json" in str(caught.value)


def saved(**shardings: Any) -> dict[str, str]:
    """The file `_sharding` of Orbax, of arrays on a mesh of 2 by 5 devices unless it is said otherwise."""
    mesh = {"sharding_type": "NamedSharding", "shape": [2, 5], "axis_names": ["x", "y"], "device_mesh": {}}
    told = {name: mesh | value for name, value in shardings.items()}
    return {b64encode(name.encode()).decode(): json.dumps(value) for name, value in told.items()}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (saved(w={"sharding_type": "PositionalSharding"}), "(?s)not known.*'w'.*PositionalSharding.*mesh and shard"),
        (saved(w={"sharding_type": "SingleDeviceSharding"}), "(?s)not of one mesh.*no NamedSharding"),
        (saved(v={"partition_spec": []}, w={"partition_spec": [], "shape": [10, 1]}), "not of one mesh"),
        (saved(w={"partition_spec": ["z"]}), "no axis 'z'"),
        (saved(w={"partition_spec": "x"}), "not a sharding"),
        (saved(w={"partition_spec": [], "shape": [10]}), "not known"),
        (saved(w={"partition_spec": []}), r"(?s)says nothing of tensors.*params\.head\.bias"),
        ({"w": "{}"}, "not known"),
        ({"dw==": "x"}, "not known"),
    ],
    ids=str,
)
def test_a_file_of_orbax_that_says_something_else_is_refused(table: Any, message: str, tmp_path: Path) -> None:
    a_model(tmp_path / "in.safetensors")
    (tmp_path / "_sharding").write_text(json.dumps(table))
    with pytest.raises(SurgeryError, match=message) as caught:
        settings = {"shardings": str(tmp_path)}
        surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings=settings)
    assert "_sharding" in str(caught.value)


@pytest.mark.parametrize(
    ("items", "message"), [("", "(?s)found: none.*mesh and shard"), ("ab", "(?s)found: a, b.*name the item")]
)
def test_of_several_items_with_shardings_one_must_be_named(items: str, message: str, tmp_path: Path) -> None:
    a_model(tmp_path / "in.safetensors")
    (tmp_path / "run").mkdir()
    for name in items:
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "_sharding").write_text("{}")
    settings = {"shardings": str(tmp_path / "run")}
    with pytest.raises(StorageError, match=message):
        surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings=settings)


SAVING = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, numpy as np, orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((4, 2), ("fsdp", "expert"))
specs = {"kernel": P("fsdp", None), "both": P(("fsdp", "expert")), "moe.w": P("expert", None, "fsdp"), "bias": P()}
shapes = {"kernel": (8, 6), "both": (16, 3), "moe.w": (2, 3, 8), "bias": (5,)}
tree = {name: jax.device_put(np.ones(shape), NamedSharding(mesh, specs[name])) for name, shape in shapes.items()}
with ocp.CheckpointManager(os.path.abspath("run")) as manager:
    state = {"layers": [tree], "step": np.int32(4), "one": jax.device_put(np.ones(3)), "host": np.ones(7)}
    manager.save(200, args=ocp.args.Composite(items=ocp.args.StandardSave(state)))
"""


def test_the_shardings_that_orbax_has_saved_are_those_of_an_edited_checkpoint(tmp_path: Path) -> None:
    run_in(tmp_path, SAVING)
    expected = {
        "layers.0.kernel": [2, 6],
        "layers.0.both": [2, 3],
        "layers.0.moe.w": [1, 3, 2],
        "layers.0.bias": [5],
        "step": [],
        "one": [3],
        "host": [7],
    }
    for name, shardings in (("step", "run/200"), ("item", "run/200/items"), ("file", "run/200/items/_sharding")):
        settings = {"shardings": str(tmp_path / shardings)}
        surgery_jax.convert(tmp_path / "run/200", tmp_path / name, format="orbax", settings=settings)
        described = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / name).rglob(".zarray")}
        assert {stored: table["chunks"] for stored, table in described.items()} == expected


def test_names_of_the_file_that_are_not_written_do_not_matter(tmp_path: Path) -> None:
    tensors = a_model(tmp_path / "in.safetensors")
    table = {"mesh": {"x": 2}, "shardings": {name: [] for name in [*tensors, "opt_state.mu"]}}
    table["shardings"]["params.head.kernel"] = [None, "x"]  # type: ignore[index]
    (tmp_path / "cut.json").write_text(json.dumps(table))
    settings = {"shardings": str(tmp_path / "cut.json")}
    surgery_jax.convert(tmp_path / "in.safetensors", tmp_path / "out", format="orbax", settings=settings)
    found = json.loads((tmp_path / "out" / "params.head.kernel" / ".zarray").read_text())
    assert found["chunks"] == [24, 25]
    assert_equal_trees(load_v0(tmp_path / "out"), nested(tensors))


def test_a_step_save_takes_the_same_options(tmp_path: Path) -> None:
    tensors = a_model(tmp_path / "in.safetensors")
    text = f"""
inputs: [ "model::{tmp_path / "in.safetensors"}" ]
transforms:
  - save:
      path: {tmp_path / "out"}
      format: orbax
      options: {{ mesh: {{ x: 6 }}, shard: {{ '.*head\\.kernel': [x] }}, zarr: 3, ocdbt: false, item: null }}
"""
    (tmp_path / "plan.yaml").write_text(text)
    surgery_jax.run(surgery_jax.load_plan(tmp_path / "plan.yaml"))
    found = json.loads((tmp_path / "out" / "params.head.kernel" / "zarr.json").read_text())
    assert found["chunk_grid"]["configuration"]["chunk_shape"] == [4, 50]
    assert_equal_trees(load_v0(tmp_path / "out"), nested(tensors))
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "plan.yaml").write_text(text.replace("x: 6", "x: 5"))
    with pytest.raises(SurgeryError, match=r"(?s)plan.yaml:4.*axis 0 of 'params.head.kernel'"):
        surgery_jax.run(surgery_jax.load_plan(tmp_path / "plan.yaml"))
    assert not (tmp_path / "out").exists()


def test_names_that_need_an_output_are_laid_out_without_one() -> None:
    plan = resolve_output("out", "orbax", None, "5GB", {"mesh": '{"x": 4}', "shard": '{"w": [null, "x"]}'})
    layout = plan.layout([("w", spec("float32", 1 << 16, 1 << 14))], {})
    assert sum(file.size for file in layout.files) == 4 << 30
    assert all(file.size <= 64 << 20 and file.encode is not None for file in layout.files)
