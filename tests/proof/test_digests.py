"""Digests of tensors and files, found while bytes pass, against what the finished files give."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from pods import Pod
from running import write_checkpoint

from surgery_jax import Options, plan_of, run
from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.core.specs import Spec
from surgery_jax.io.pagecache import is_cached
from surgery_jax.proof.leaves import Leaves
from surgery_jax.proof.rereading import read_back
from surgery_jax.proof.rolling import Held, Rolling, TimeToWait
from surgery_jax.proof.tree import LEAF, tensor_digest
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.stored import blocks_of

GENERATOR = np.random.default_rng(0)
TENSORS = {
    "h.0.up": GENERATOR.standard_normal((700, 999)).astype(np.float32),  # not whole leaves
    "h.1.up": GENERATOR.standard_normal((1024, 512)).astype(np.float32),  # two leaves
    "norm": np.arange(7, dtype=np.float16),
    "half": GENERATOR.standard_normal((333, 1001)).astype(ml_dtypes.bfloat16),
    "count": np.array(3, np.int64),
    "none": np.zeros((0, 4), np.float32),
}
OUTPUTS: dict[str, Any] = {
    "whole": "out",
    "shards": {"path": "out", "shard": "1MB"},
    "torch": {"path": "out", "format": "torch"},
    "dcp": {"path": "out", "format": "dcp"},
    "orbax": {"path": "out", "format": "orbax", "options": {"chunk": "300KB"}},
}


def defined(array: np.ndarray, begin: Any = blake3) -> str:
    """The digest of an array as the documentation defines it, by itself."""
    data, dtype = np.ascontiguousarray(array).tobytes(), array.dtype.name
    leaves = [begin(data[at : at + 2**20]).digest() for at in range(0, len(data), 2**20)]
    head = f"surgery_jax tensor 1 {dtype} {','.join(map(str, array.shape))}\n"
    return begin(head.encode() + b"".join(leaves)).hexdigest()


@given(st.lists(st.integers(0, 3 * LEAF // 2), max_size=6))
def test_a_digest_does_not_depend_on_how_the_bytes_are_cut(sizes: list[int]) -> None:
    data = bytes(range(256)) * (sum(sizes) // 256 + 1)
    spec = Spec((sum(sizes),), BY_NAME["uint8"])
    blocks, at = [], 0
    for size in sizes:
        blocks.append(data[at : at + size])
        at += size
    array = np.frombuffer(data[:at], np.uint8)
    assert tensor_digest(spec, blocks, "blake3") == defined(array)
    assert tensor_digest(spec, blocks, "sha256") == defined(array, hashlib.sha256)


@given(data=st.data())
def test_the_leaves_of_a_tensor_do_not_depend_on_who_sees_their_parts_when(data: st.DataObject) -> None:
    """Three threads see parts in some order, of which few may be kept: what is known then is right, and all of it is
    where they came in order."""
    sizes = data.draw(st.lists(st.integers(1, 5 * LEAF // 4), min_size=1, max_size=6))
    offsets = np.cumsum([0, *sizes]).tolist()
    whole = bytes(range(256)) * (sum(sizes) // 256) + b"x" * (sum(sizes) % 256)
    order = data.draw(st.permutations(range(len(sizes))) | st.just([*range(len(sizes))]))
    room = data.draw(st.sampled_from([0, LEAF, 8 * LEAF]))
    leaves = Leaves(Spec((len(whole),), BY_NAME["uint8"]), blake3, Held(room))

    def see(number: int) -> None:
        part = memoryview(whole)[offsets[number] : offsets[number + 1]]
        for leaf, at, seen in leaves.see(offsets[number], part):
            assert seen == part[at : at + LEAF]
            leaves.found[leaf] = blake3(seen).digest()

    if order == [*range(len(sizes))]:
        list(map(see, order))
        assert None not in leaves.found
    else:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(see, order))
    wanted = [blake3(whole[at : at + LEAF]).digest() for at in range(0, len(whole), LEAF)]
    assert len(leaves.found) == len(wanted)
    assert all(known in (None, leaf) for known, leaf in zip(leaves.found, wanted, strict=True))
    assert room < 8 * LEAF or leaves.found == wanted


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_checkpoint(tmp_path / "m" / "model.safetensors", TENSORS).parent


def table(path: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path, "surgery.tensors.json").read_text())
    return found


STEPS = [
    {"scale_": {"target": r"h\..*", "by": 2}},
    {"concat": {"from": ["h.0.up", "h.0.up"], "to": "wide", "dim": 1}},
    {"move": {"from": "norm", "to": "ln"}},
]


@pytest.mark.parametrize("options", [{}, {"memory": "8MiB", "workers": 3, "sync": False}], ids=["plain", "small"])
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_every_tensor_and_file_has_the_digest_of_what_is_there(source: Path, output: Any, options: Any) -> None:
    run(plan_of({"inputs": [f"m::{source}"], "transforms": STEPS, "output": output}), Options(**options))
    twice = TENSORS["h.0.up"] * 2
    wanted = {
        "h.0.up": twice,
        "h.1.up": TENSORS["h.1.up"] * 2,
        "wide": np.concatenate([twice, twice], 1),
        "ln": TENSORS["norm"],
        "half": TENSORS["half"],
        "count": TENSORS["count"],
        "none": TENSORS["none"],
    }
    found = table()
    assert {name: told["digest"] for name, told in found["tensors"].items()} == {
        name: defined(array) for name, array in wanted.items()
    }
    entries = open_checkpoint("out").entries
    assert {name: tensor_digest(entry.spec, blocks_of(entry), "blake3") for name, entry in entries.items()} == {
        name: told["digest"] for name, told in found["tensors"].items()
    }
    files = {path.relative_to("out").as_posix(): path for path in Path("out").rglob("*") if path.is_file()}
    own = {name: files.pop(name) for name in ("surgery.receipt.json", "surgery.tensors.json")}
    assert {name: told["sha256"] for name, told in found["files"].items()} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }
    statement = json.loads(own["surgery.receipt.json"].read_text())
    ordered = sorted(files, key=Path)
    root = hashlib.sha256(b"".join(hashlib.sha256(files[name].read_bytes()).digest() for name in ordered))
    assert statement["subject"] == [{"name": "out", "digest": {"sha256": root.hexdigest()}}]
    assert found["tensors"]["wide"]["from"] == ["m::h.0.up"]


@given(data=st.data())
def test_the_digest_of_a_file_does_not_depend_on_who_writes_its_ranges_when(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Three threads tell of ranges in some order; of some the bytes are not known, or may not be kept, or were copied
    from another file."""
    sizes = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=20))
    whole = GENERATOR.bytes(sum(sizes))
    place = tmp_path_factory.mktemp("rolling") / "file"
    place.write_bytes(whole)
    offsets = np.cumsum([0, *sizes]).tolist()
    order = data.draw(st.permutations(range(len(sizes))) | st.just([*range(len(sizes))]))
    unseen = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    marks = tuple(sorted(data.draw(st.sets(st.sampled_from(offsets)))))
    source = place.with_name("source")
    source.write_bytes(b"skipped" + whole)
    copied = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    held = Held(data.draw(st.sampled_from([0, 60, 1000])))
    # who waits for what comes later is not what this is about
    rolling = Rolling(str(place), held, TimeToWait(0, 0), marks)

    def tell(number: int) -> None:
        at, nbytes = offsets[number], sizes[number]
        origin = (str(source), len(b"skipped") + at) if number in copied else None
        rolling.add(at, nbytes, None if number in unseen else whole[at : at + nbytes], origin)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(tell, order))
    found = rolling.finish(len(whole))
    assert found.sha256 == hashlib.sha256(whole).hexdigest() and found.size == len(whole)
    assert found.marks == tuple(hashlib.sha256(whole[:at]).hexdigest() for at in marks)


def test_ranges_that_come_nearly_in_order_wait_for_their_turn_and_are_not_read_again(tmp_path: Path) -> None:
    whole = GENERATOR.bytes(6000)
    rolling = Rolling(str(tmp_path / "there is no such file"), Held(0), TimeToWait(20, 0))
    with ThreadPoolExecutor(3) as pool:
        for at in (1000, 2000, 0, 3000, 5000, 4000):
            pool.submit(rolling.add, at, 1000, whole[at : at + 1000])
    (tmp_path / "there is no such file").touch()
    assert rolling.finish(6000).sha256 == hashlib.sha256(whole).hexdigest()


def test_who_waits_for_what_does_not_come_gives_up(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(whole := GENERATOR.bytes(3000))
    patience = TimeToWait(0.05, 0)
    rolling = Rolling(str(place), Held(0), patience)
    rolling.add(1000, 1000, whole[1000:2000])
    assert patience.left() == 0
    rolling.add(2000, 1000, whole[2000:])
    rolling.add(0, 1000, whole[:1000])
    assert rolling.finish(3000).sha256 == hashlib.sha256(whole).hexdigest()


def test_who_waits_for_one_that_is_slow_gives_up_though_it_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_bytes(whole := GENERATOR.bytes(100_000))
    rolling = Rolling(str(place), Held(0), TimeToWait(0.05, 0))
    is_given_up = threading.Event()

    def late() -> None:
        rolling.add(99_000, 1000, whole[99_000:])
        is_given_up.set()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(late)
        for at in range(0, 99_000, 1000):
            rolling.add(at, 1000, whole[at : at + 1000])
            if is_given_up.wait(0.01):
                break
        assert is_given_up.is_set() and at < 60_000
    assert rolling.finish(100_000).sha256 == hashlib.sha256(whole).hexdigest()


def test_after_some_time_ranges_wait_again(tmp_path: Path) -> None:
    whole, now = GENERATOR.bytes(2000), [0.0]
    patience = TimeToWait(10, 0.1, lambda: now[0])
    patience.lose(10)
    assert patience.left() == 0
    now[0] = 1000
    assert patience.left() == 10
    rolling = Rolling(str(tmp_path / "there is no such file"), Held(0), patience)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(rolling.add, 1000, 1000, whole[1000:])
        time.sleep(0.01)
        rolling.add(0, 1000, whole[:1000])
        late.result()
    (tmp_path / "there is no such file").touch()
    assert rolling.finish(2000).sha256 == hashlib.sha256(whole).hexdigest()


def test_early_ranges_that_were_copied_are_read_again_where_they_came_from(tmp_path: Path) -> None:
    whole = GENERATOR.bytes(3000)
    source, place = tmp_path / "source", tmp_path / "file"
    source.write_bytes(b"..." + whole)
    rolling = Rolling(str(place), Held(0), TimeToWait(0, 0))
    rolling.add(1000, 2000, whole[1000:], (str(source), 1003))
    rolling.add(0, 1000, whole[:1000])
    place.touch()
    assert rolling.finish(3000).sha256 == hashlib.sha256(whole).hexdigest()
    # if that is not there any more, the file itself is read
    place.write_bytes(whole)
    rolling = Rolling(str(place), Held(0), TimeToWait(0, 0))
    rolling.add(1000, 2000, whole[1000:], (str(tmp_path / "gone"), 0))
    rolling.add(0, 1000, whole[:1000])
    assert rolling.finish(3000).sha256 == hashlib.sha256(whole).hexdigest()


def test_what_comes_while_others_have_waited_in_vain_waits_for_its_turn(tmp_path: Path) -> None:
    """One thread hashes for longer than anybody waits, another waits in vain for what comes after that, which then
    comes while the first is still at it."""
    whole = bytes(130 << 20)
    (tmp_path / "file").touch()
    rolling = Rolling(str(tmp_path / "file"), Held(len(whole)), TimeToWait(0.01, 0))
    cuts = [0, 128 << 20, 129 << 20, len(whole)]
    first, second, third = (memoryview(whole)[a:b] for a, b in pairwise(cuts))
    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(rolling.add, cuts[0], first.nbytes, first)]
        time.sleep(0.005)
        tasks.append(pool.submit(rolling.add, cuts[2], third.nbytes, third))
        time.sleep(0.03)
        tasks.append(pool.submit(rolling.add, cuts[1], second.nbytes, second))
        for task in tasks:
            task.result(timeout=60)
    assert rolling.finish(len(whole)).sha256 == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 9_000_001), (4097, 8_000_000), (8_999_000, 1001)])
def test_what_was_written_past_the_page_cache_is_read_back_past_it(tmp_path: Path, offset: int, nbytes: int) -> None:
    place = tmp_path / "file"
    place.write_bytes(whole := GENERATOR.bytes(9_000_001))
    seen: list[bytes] = []
    with place.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        was_cached = is_cached(file.fileno(), 0, len(whole))
        read_back(str(place), offset, nbytes, lambda block: seen.append(bytes(block)))
        assert b"".join(seen) == whole[offset : offset + nbytes]
        assert was_cached or not is_cached(file.fileno(), 0, len(whole))


def test_nobody_waits_for_what_cannot_be_read(tmp_path: Path) -> None:
    rolling = Rolling(str(tmp_path / "gone"), Held(0), TimeToWait())
    for at in (10, 20):
        rolling.add(at, 10, None)
    with pytest.raises(FileNotFoundError):
        rolling.add(0, 10, bytes(10))
    rolling.add(30, 10, bytes(10))


@pytest.mark.parametrize("shard", [None, "1MB"])
def test_several_processes_bring_together_what_each_has_seen(source: Path, shard: str | None) -> None:
    output = {"path": "out"} | ({"shard": shard} if shard else {})
    plan = {"inputs": [f"m::{source}"], "transforms": STEPS, "output": output}
    Path("plan.yaml").write_text(json.dumps(plan))
    with Pod(3, "plan.yaml", "--memory", "8MiB", cwd=Path.cwd()) as pod:
        assert [process.code for process in pod.start().ends(60)] == [0, 0, 0]
    found = table()
    for file, told in found["files"].items():
        assert told["sha256"] == hashlib.sha256(Path("out", file).read_bytes()).hexdigest()
    entries = open_checkpoint("out").entries
    read = {name: np.frombuffer(b"".join(map(bytes, blocks_of(entry))), np.uint8) for name, entry in entries.items()}
    assert {name: told["digest"] for name, told in found["tensors"].items()} == {
        name: defined(bytes_of.view(entries[name].spec.dtype.numpy).reshape(entries[name].spec.shape))
        for name, bytes_of in read.items()
    }


def test_an_output_that_is_read_by_another_plan_is_not_hashed_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    run(plan_of({"inputs": [f"m::{source}"], "transforms": STEPS, "output": {"path": "out", "shard": "2MB"}}))
    sums = {told["sha256"] for told in table()["files"].values()}

    def remembered() -> dict[str, int]:
        folder = Path("cache")
        known = {path: json.loads(path.read_text()) for path in folder.rglob("*.json") if path.parent.name == "digests"}
        return {told["sha256"]: path.stat().st_mtime_ns for path, told in known.items() if told["sha256"] in sums}

    before = remembered()
    assert before
    run(plan_of({"inputs": ["m::out"], "output": "again"}))
    assert remembered() == before
    known = {told["annotations"]["size"]: told["digest"]["sha256"] for told in _inputs("again")}
    assert set(before) <= set(known.values())


def _inputs(path: str) -> list[dict[str, Any]]:
    statement = json.loads(Path(path, "surgery.receipt.json").read_text())
    found: list[dict[str, Any]] = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return [told for told in found if told["annotations"]["kind"] == "input"]


def test_digests_of_tensors_can_be_left_out(source: Path) -> None:
    plan = plan_of({"inputs": [f"m::{source}"], "output": "out"})
    run(plan, Options(digest="none"))
    assert not any("digest" in told for told in table()["tensors"].values())
    assert table()["files"]["model-00001-of-00001.safetensors"]["sha256"]
