"""Formats that consist of many files, at places: Orbax in all its forms, and PyTorch's, in and out."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from orbax_trees import assert_equal_trees, load_v0, nested
from running import assert_same_bits, write_checkpoint
from servers import Asked, Fault, Files, objects

from surgery_jax import Options, convert, diff, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.identity import remembering
from surgery_jax.storage.orbax.zarr import indexed
from surgery_jax.storage.places.base import MARKER, USUAL_PART
from surgery_jax.storage.places.found import place_of
from surgery_jax.storage.places.room import room

RNG = np.random.default_rng(3)
TENSORS = {f"h.{n}.{word}": RNG.normal(size=(30, 16)).astype(np.float32) for n in range(2) for word in ("up", "down")}
TENSORS["step"] = np.array(3, np.int32)
MESH = {"mesh": {"fsdp": 4}, "shard": {".*(up|down)": [None, "fsdp"]}}
SLABS = MESH | {"compression": "zstd"}
FORMS: dict[str, dict[str, Any]] = {
    "apart": {},
    "together": {"ocdbt": True},
    "slabs": SLABS,
    "slabs together": SLABS | {"ocdbt": True},
    "zarr 3": MESH | {"zarr": 3},
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_checkpoint(tmp_path / "m" / "model.safetensors", TENSORS).parent)


def to(path: str, source: str, **options: Any) -> None:
    quick = Options(sync=False, receipt=False, overwrite=True)
    convert(source, path, quick, format="orbax", settings=options)


def fetched(client: Any, key: str, target: Path) -> Path:
    """A directory of the bucket on this disk."""
    for name, content in objects(client).items():
        if name.startswith(f"{key}/") and not name.endswith(MARKER):
            (target / name[len(key) + 1 :]).parent.mkdir(parents=True, exist_ok=True)
            (target / name[len(key) + 1 :]).write_bytes(content)
    return target


@pytest.mark.parametrize("form", FORMS)
def test_an_orbax_checkpoint_that_is_written_to_a_store_is_one_for_orbax_and_for_us(
    form: str, s3: Any, source: str, tmp_path: Path
) -> None:
    to("s3://bucket/o", source, **FORMS[form])
    assert diff("s3://bucket/o", source).is_empty
    assert_equal_trees(load_v0(fetched(s3, "o", tmp_path / "o")), nested(TENSORS))
    to(str(tmp_path / "local"), source, **FORMS[form])
    files = [path for path in (tmp_path / "local").rglob("*") if path.is_file()]
    written = {f"o/{path.relative_to(tmp_path / 'local')}" for path in files}
    assert {name for name in objects(s3) if not name.endswith(MARKER)} == written


def test_what_is_replaced_at_a_store_leaves_nothing_of_itself(s3: Any, source: str) -> None:
    to("s3://bucket/o", source, ocdbt=True, item="items")
    to("s3://bucket/o/items", source)
    assert not [name for name in objects(s3) if "ocdbt" in name or "/d/" in name]
    assert diff("s3://bucket/o/items", source).is_empty


@pytest.mark.parametrize(("form", "most"), [("apart", 1), ("together", 0), ("zarr 3", 2)])
def test_the_header_of_an_orbax_checkpoint_costs_few_requests(form: str, most: int, s3: Any, source: str) -> None:
    to("s3://bucket/o", source, **({"zarr": 3} if form == "zarr 3" else FORMS[form]))
    s3.proxy.asked.clear()
    open_checkpoint("s3://bucket/o")
    of_arrays = [asked for asked in s3.proxy.asked if "/h." in asked.path]
    assert len(of_arrays) <= most * len(TENSORS)
    assert not [asked for asked in s3.proxy.asked if asked.method == "HEAD" and "/h." in asked.path]


def with_indices(client: Any) -> None:
    """Arrays of version 3 in the bucket as Orbax has them: in shards of one chunk each, which have an index behind."""
    for key, content in objects(client).items():
        if "/h." in key and key.endswith("zarr.json"):
            table = json.loads(content)
            chunk = table["chunk_grid"]["configuration"]["chunk_shape"]
            little = {"name": "bytes", "configuration": {"endian": "little"}}
            inner = {"chunk_shape": chunk, "codecs": table["codecs"], "index_codecs": [little, {"name": "crc32c"}]}
            table["codecs"] = [{"name": "sharding_indexed", "configuration": {**inner, "index_location": "end"}}]
            client.put_object(Bucket="bucket", Key=key, Body=json.dumps(table).encode())
        elif "/h." in key:
            client.put_object(Bucket="bucket", Key=key, Body=content + indexed([(0, len(content))]))


@pytest.mark.parametrize("what", ["indices", "chunks"])
def test_indices_and_chunks_are_asked_for_at_the_same_time(what: str, s3: Any, source: str) -> None:
    to("s3://bucket/o", source, **({"zarr": 3} if what == "indices" else SLABS))
    if what == "indices":
        with_indices(s3)
    asking: list[str] = []
    are_four = threading.Event()
    came: list[bool] = []

    def spoil(asked: Asked) -> None:
        if "/h." in asked.path and not asked.path.endswith(("zarr.json", ".zarray")):
            asking.append(asked.path)
            if len(asking) == 4:  # of four arrays, or of four chunks of one
                are_four.set()
            came.append(are_four.wait(10))

    s3.proxy.spoil = spoil
    checkpoint = open_checkpoint("s3://bucket/o")
    entry = checkpoint.entries["h.0.up"]
    if what == "chunks":
        assert not came
        with remembering(dict(checkpoint.identities)):
            assert_same_bits(entry.read(), TENSORS["h.0.up"])
    assert (entry.extent is None) == (what == "chunks")
    assert len(came) >= 4 and all(came)
    s3.proxy.spoil = lambda asked: None
    assert diff("s3://bucket/o", source).is_empty


def test_an_array_that_is_decoded_is_of_the_object_whose_header_was_read(s3: Any, source: str) -> None:
    to("s3://bucket/o", source, compression="zstd")
    checkpoint = open_checkpoint("s3://bucket/o")
    s3.copy_object(Bucket="bucket", Key="o/h.0.up/0.0", CopySource="bucket/o/h.0.down/0.0")
    with remembering(dict(checkpoint.identities)):
        assert_same_bits(checkpoint.entries["h.0.down"].read(), TENSORS["h.0.down"])
        with pytest.raises(StorageError, match="changed while it was read"):
            checkpoint.entries["h.0.up"].read()


def test_orbax_goes_in_and_out_of_a_store_of_google(gs: Any, source: str) -> None:
    to("gs://bucket/a", source, ocdbt=True)
    to("gs://bucket/b", "gs://bucket/a", **SLABS)
    assert diff("gs://bucket/b", source).is_empty


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"ocdbt": True}], ids=["raw", "zstd", "together"])
def test_a_web_server_is_asked_for_the_files_that_the_tables_of_orbax_name(
    options: dict[str, Any], web: Files, source: str, tmp_path: Path
) -> None:
    to(str(tmp_path / "o"), source, **options)
    web.files |= {
        f"/o/{path.relative_to(tmp_path / 'o')}": path.read_bytes()
        for path in (tmp_path / "o").rglob("*")
        if path.is_file()
    }
    assert diff(f"{web.url}/o", source).is_empty


@pytest.mark.parametrize("name", ["m.pt", "d", "m.msgpack"])
def test_other_formats_go_in_and_out_of_a_store(name: str, s3: Any, source: str) -> None:
    word = {"d": "dcp", "m.pt": "torch", "m.msgpack": "flax"}[name]
    convert(source, f"s3://bucket/{name}", Options(sync=False, receipt=False), format=word)
    assert diff(f"s3://bucket/{name}", source).is_empty


def test_files_with_tensors_appear_at_the_same_time_and_before_all_others(s3: Any, source: str) -> None:
    together = threading.Barrier(2, timeout=20)
    order: list[str] = []

    def spoil(asked: Asked) -> Fault | None:
        if asked.method == "PUT":
            order.append(asked.path.rpartition("/")[2])
            if order[-1].startswith("model-"):
                together.wait()
        return None

    s3.proxy.spoil = spoil
    convert(source, "s3://bucket/m", Options(sync=False, receipt=False), shard="4KB")
    shards = [number for number, name in enumerate(order) if name.startswith("model-")]
    assert len(shards) == 2 and order.index("model.safetensors.index.json") > max(shards)


@pytest.mark.parametrize("word", ["dcp", "torch"])
def test_a_web_server_is_asked_for_the_files_that_a_table_names(
    word: str, web: Files, source: str, tmp_path: Path
) -> None:
    quick = Options(sync=False, receipt=False)
    convert(source, str(tmp_path / "d"), quick, format=word, shard="4KB" if word == "torch" else None)
    web.files |= {f"/d/{path.name}": path.read_bytes() for path in (tmp_path / "d").iterdir()}
    assert diff(f"{web.url}/d", source).is_empty


def test_what_is_at_places_is_proven_there(
    s3: Any, web: Files, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halve = {"scale_": {"target": "h.+", "by": 0.5}}
    for number, (before, after) in enumerate([(source, "s3://bucket/a"), ("s3://bucket/a", "s3://bucket/b")]):
        plan = {"inputs": [f"model::{before}"], "transforms": [halve], "output": after}
        run(plan_of(plan), Options(sync=False))
        assert main(["verify", after]) == main(["replay", after]) == 0, number
    assert not [name for name in objects(s3) if "surgery-replay" in name]
    assert main(["replay", "s3://bucket/b", "--output", "s3://bucket/c"]) == 0
    assert diff("s3://bucket/b", "s3://bucket/c").is_empty
    capsys.readouterr()
    assert main(["lineage", "s3://bucket/b", "--json"]) == 0
    chain = json.loads(capsys.readouterr().out)
    assert chain["parents"][0]["path"] == "s3://bucket/a"
    assert chain["parents"][0]["parents"][0]["path"] == source
    web.files |= {f"/{name}": content for name, content in objects(s3).items()}
    assert main(["verify", f"{web.url}/b"]) == 0
    assert main(["replay", f"{web.url}/b"]) == 3
    refused = capsys.readouterr().err
    assert "can only be read" in refused and "--output PATH" in refused
    again = tmp_path / "new" / "again"  # what is advised works, in a directory that is still to be made
    assert main(["replay", f"{web.url}/b", "--output", str(again)]) == 0
    assert diff("s3://bucket/b", str(again)).is_empty
    assert [path.name for path in tmp_path.rglob("*") if "surgery-replay" in path.name] == []
    s3.copy_object(Bucket="bucket", Key="a/model.safetensors.index.json", CopySource="bucket/a/surgery.tensors.json")
    assert main(["verify", "s3://bucket/a"]) == 1
    assert main(["replay", f"{web.url}/b", "--against", f"{web.url}/b", "--input", f"model={source}"]) == 3


@pytest.mark.parametrize("limit", [USUAL_PART, 4 * USUAL_PART])
def test_a_file_that_becomes_shorter_is_cut_anew(limit: int, s3: Any) -> None:
    content = np.random.default_rng(0).integers(0, 256, 2 * USUAL_PART + 99, np.uint8).tobytes()
    place, room().limit = place_of("s3://bucket"), limit
    place.stage("s3://bucket/.x", "s3://bucket/x", len(content), is_revised=True)
    writer = place.target("s3://bucket/.x")
    writer.write(0, content)
    writer.truncate(USUAL_PART + 5)
    place.settle("s3://bucket/.x")
    place.publish("s3://bucket/.x", "s3://bucket/x")
    assert objects(s3) == {"x": content[: USUAL_PART + 5]}
