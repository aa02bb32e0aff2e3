"""Places: whatever reads and writes files works at any place that has names, sizes and bytes at positions."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_place import MemoryPlace
from running import assert_same_bits, read_checkpoint, write_checkpoint
from safetensors.numpy import load

from surgery_jax import Options, batch, diff, inspect, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.places.base import Place, fill
from surgery_jax.storage.places.found import place_of
from surgery_jax.storage.places.local import LocalPlace

RNG = np.random.default_rng(7)
TENSORS = {f"h.{n}.{word}": RNG.normal(size=(40, 30)).astype(np.float32) for n in range(6) for word in ("up", "down")}


@pytest.fixture
def memory() -> Any:
    """The files of an empty place in memory."""
    place = place_of("mem://")
    assert isinstance(place, MemoryPlace)
    place.files.clear()
    yield place.files
    place.files.clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m" / "model.safetensors", TENSORS).parent


def contents(memory: Any) -> dict[str, bytes]:
    return {path: bytes(content) for path, (content, _) in memory.items()}


def go(steps: Any, output: Any, *inputs: str, **options: Any) -> Any:
    plan = plan_of({"inputs": list(inputs), "transforms": steps, "output": output})
    return run(plan, Options(**{"sync": False, "receipt": False} | options))


def test_a_sharded_checkpoint_goes_to_a_place_and_comes_back_the_same(memory: Any, source: Path) -> None:
    go([], {"path": "mem://bucket/out", "shard": "20KB"}, f"m::{source}")
    index = json.loads(contents(memory)["mem://bucket/out/model.safetensors.index.json"])
    shards = sorted(set(index["weight_map"].values()))
    assert sorted(memory) == [f"mem://bucket/out/{name}" for name in (*shards, "model.safetensors.index.json")]
    assert len(shards) > 2
    found = {n: a for shard in shards for n, a in load(contents(memory)[f"mem://bucket/out/{shard}"]).items()}
    for name, array in TENSORS.items():
        assert_same_bits(found[name], array)
    assert diff("mem://bucket/out", str(source)).is_empty
    go([], str(source.parent / "back"), "m::mem://bucket/out")
    for name, array in read_checkpoint(source.parent / "back").items():
        assert_same_bits(array, TENSORS[name])


def test_torch_files_are_written_to_and_read_from_a_place(memory: Any, source: Path) -> None:
    go([{"scale_": {"target": ".+", "by": 2}}], "mem://b/twice.pt", f"m::{source}")
    for name, array in torch.load(io.BytesIO(contents(memory)["mem://b/twice.pt"]), weights_only=True).items():
        assert_same_bits(array.numpy(), 2 * TENSORS[name])
    go(
        [{"scale_": {"target": ".+", "by": 0.5}}],
        "mem://b/once.safetensors",
        "m::mem://b/twice.pt",
        memory="1MiB",
    )
    for name, array in load(contents(memory)["mem://b/once.safetensors"]).items():
        assert_same_bits(array, TENSORS[name])


@pytest.mark.parametrize("format", ["dcp", "flax", "orbax"])
def test_other_formats_go_through_a_place_unchanged(format: str, memory: Any, source: Path) -> None:
    path = "mem://b/x.msgpack" if format == "flax" else "mem://b/x"
    go([], {"path": path, "format": format}, f"m::{source}")
    assert open_checkpoint(path).format == format
    assert diff(path, str(source)).is_empty


def test_inspect_reads_headers_statistics_and_documents_of_a_place(memory: Any, source: Path, capsys: Any) -> None:
    go([], "mem://b/m", f"m::{source}")
    place_of("mem://").create("mem://b/m/config.json", 2)
    info = inspect("mem://b/m", stats=True)
    assert info.path == "mem://b/m"
    assert info.documents == {"config.json": "mem://b/m/config.json"}
    assert info.tensors[0].statistics is not None
    assert info.tensors[0].statistics.max == TENSORS[info.tensors[0].name].max()
    assert main(["inspect", "mem://b/m", "--documents"]) == 0
    assert "document config.json: 2 B" in capsys.readouterr().out


def test_an_output_that_is_there_is_replaced_only_if_that_is_asked_for(memory: Any, source: Path) -> None:
    go([], {"path": "mem://b/m", "shard": "20KB"}, f"m::{source}")
    before = contents(memory)
    with pytest.raises(StorageError, match="holds a checkpoint already"):
        go([], "mem://b/m", f"m::{source}")
    assert contents(memory) == before
    go([], "mem://b/m", f"m::{source}", overwrite=True)
    names = {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert set(memory) == {f"mem://b/m/{name}" for name in names}


def test_nothing_is_left_of_a_run_that_fails(memory: Any, source: Path) -> None:
    with pytest.raises(Exception, match="assertion failed"):
        go([{"assert": {"iszero": {"of": "h.0.up", "eps": 0.1}}}], "mem://b/m", f"m::{source}")
    assert not memory


def test_an_input_that_changes_after_its_header_was_read_is_named(memory: Any, source: Path) -> None:
    go([], "mem://b/m.safetensors", f"m::{source}")
    checkpoint = open_checkpoint("mem://b/m.safetensors")
    raw = contents(memory)["mem://b/m.safetensors"]
    place = place_of("mem://")
    place.create("mem://b/m.safetensors", len(raw))
    place.target("mem://b/m.safetensors").write(0, raw)
    with pytest.raises(StorageError, match="changed after its header") as caught:
        inspect(checkpoint, stats=True)
    assert caught.value.where == "mem://b/m.safetensors"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("ipfs://b/m", "no place is known for ipfs://"),
        ("mem://b/nothing", "does not exist"),
        ("mme://b", "did you mean mem://"),
    ],
)
def test_a_path_that_leads_nowhere_is_an_error_that_says_why(path: str, words: str, capsys: Any) -> None:
    assert main(["inspect", path]) == 3
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("kind", [LocalPlace, MemoryPlace])
def test_every_place_keeps_what_it_promises(kind: type[Place], tmp_path: Path) -> None:
    place, root = kind(), str(tmp_path) if kind is LocalPlace else "mem://b"
    staged, final = f"{root}/.hidden/x", f"{root}/d/x"
    place.create(f"{root}/d/y", 3)
    place.create(staged, 10)
    assert place.stat(final) is None
    writer = place.target(staged)
    writer.write(4, b"45678")
    writer.write(0, b"0123")
    writer.truncate(8)
    read = bytearray(4)
    fill(writer, 2, memoryview(read))
    assert read == b"2345"
    writer.sync()
    writer.close()
    place.publish(staged, final)
    assert sorted(place.list(f"{root}/d")) == ["x", "y"]
    status, folder = place.stat(final), place.stat(f"{root}/d")
    assert status is not None and folder is not None
    assert (status.is_directory, status.size, folder.is_directory) == (False, 8, True)
    reader = place.open(final)
    fill(reader, 0, memoryview(whole := bytearray(8)))
    assert whole == b"01234567"
    assert reader.identity == place.identity(final)
    assert reader.read_into(8, memoryview(read)) == 0
    reader.close()
    place.create(f"{root}/.hidden/z", 8)
    place.publish(f"{root}/.hidden/z", final)
    assert place.identity(final) != reader.identity
    place.remove(final)
    place.remove(final)
    assert place.stat(final) is None
    with pytest.raises(OSError):
        place.open(final)


def test_a_place_is_found_by_an_entry_point(tmp_path: Path) -> None:
    told = tmp_path / "memory_place-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: memory-place\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[surgery_jax.places]\nmem = memory_place\n")
    tests = Path(__file__).parent.parent
    program = "from surgery_jax.storage.places.found import place_of; print(type(place_of('mem://x')).__module__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(tests), str(tests.parent)])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "memory_place\n"


MERGE = """\
tuned: none
inputs: [ "base::mem://in/base.safetensors", "tuned::${tuned}" ]
transforms:
  - add_: { from: 'base::(.+)', to: 'tuned::\\1' }
  - prefixes: { mode: remove, alias: base }
output: none
"""


@pytest.mark.parametrize("task", ["none", "1/1"])
def test_a_batch_knows_what_is_finished_at_a_place(
    memory: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.chdir(tmp_path)
    place = place_of("mem://")
    assert isinstance(place, MemoryPlace)
    raw = (source / "model.safetensors").read_bytes()
    for name in ("base", "a", "b"):
        memory[f"mem://in/{name}.safetensors"] = bytearray(raw), next(place.generations)
    Path("merge.yaml").write_text(MERGE)
    tuned = "tuned: ['mem://in/a.safetensors', 'mem://in/b.safetensors']"
    Path("jobs.yaml").write_text(f"plan: merge.yaml\nmatrix: {{ {tuned} }}\nset: {{ output: 'mem://out/${{job}}' }}\n")

    def statuses() -> list[str]:
        report = batch("jobs.yaml", Options(sync=False, overwrite=True), task=task)
        assert not report.has_failed, [str(job.error) for job in report.jobs]
        return [job.status for job in report.jobs]

    assert statuses() == ["done", "done"]
    assert statuses() == ["skipped", "skipped"]
    memory["mem://in/a.safetensors"] = bytearray(raw), next(place.generations)  # the same bytes, another object
    assert statuses() == ["done", "skipped"]
    written = next(path for path in memory if path.startswith("mem://out/b/"))
    memory[written] = memory[written][0], next(place.generations)
    assert statuses() == ["skipped", "done"]
    with pytest.raises(StorageError, match="cannot tell who came first"):
        batch("jobs.yaml", record="mem://out/jobs.done")
