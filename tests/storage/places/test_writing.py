"""Writing to stores: parts in any order, each sent once, nothing that is not whole."""

from __future__ import annotations

import io
import json
import re
import time
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zlib import crc32

import numpy as np
import pytest
import torch
from running import assert_same_bits, write_checkpoint
from safetensors.numpy import load
from servers import SECRET, Asked, Fault, objects

from surgery_jax import Options, diff, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.core.errors import StorageError, SurgeryError
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.places.base import MARKER, USUAL_PART, PlaceError
from surgery_jax.storage.places.found import place_of
from surgery_jax.storage.places.room import room
from surgery_jax.storage.places.sink import part_bytes

RNG = np.random.default_rng(11)
TENSORS = {f"h.{n}.{word}": RNG.normal(size=(300, 70)).astype(np.float32) for n in range(6) for word in ("up", "down")}
LARGE = {f"w.{n}": RNG.normal(size=(1 << 19,)).astype(np.float32) for n in range(14)}  # 2 MiB each
FILES = ["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = write_checkpoint(tmp_path / "m" / "model.safetensors", TENSORS).parent
    (path / "config.json").write_text('{"hidden_size": 70}')
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "large" / "model.safetensors", LARGE).parent


def go(steps: Any, output: Any, *inputs: str, **options: Any) -> Any:
    plan = plan_of({"inputs": list(inputs), "transforms": steps, "output": output})
    return run(plan, Options(**{"sync": False, "receipt": False} | options))


def parts_sent(asked: list[Asked]) -> Counter[tuple[str, str]]:
    """How often each part of each object was sent."""
    found: Counter[tuple[str, str]] = Counter()
    for entry in asked:
        query = parse_qs(urlsplit(entry.path).query)
        if entry.method == "PUT" and "partNumber" in query:
            found[urlsplit(entry.path).path, query["partNumber"][0]] += 1
    return found


def uploads(client: Any) -> list[Any]:
    return list(client.list_multipart_uploads(Bucket="bucket").get("Uploads", ()))


def test_a_checkpoint_goes_to_a_store_and_comes_back_the_same(s3: Any, source: Path) -> None:
    go([], {"path": "s3://bucket/out/m", "shard": "200KB"}, f"m::{source}", receipt=True)
    found = objects(s3)
    index = json.loads(found["out/m/model.safetensors.index.json"])
    tensors = {n: a for name in set(index["weight_map"].values()) for n, a in load(found[f"out/m/{name}"]).items()}
    for name, array in TENSORS.items():
        assert_same_bits(tensors[name], array)
    assert found["out/m/config.json"] == b'{"hidden_size": 70}'
    assert found[f"out/m/{MARKER}"] == b"whole\n"
    assert all(name.startswith("out/m/") for name in found)
    assert SECRET.encode() not in b"".join(found.values())
    assert main(["verify", "s3://bucket/out/m"]) == 0
    assert diff("s3://bucket/out/m", str(source)).is_empty
    order = [urlsplit(entry.path).path.rpartition("/")[2] for entry in s3.proxy.asked if entry.method == "PUT"]
    assert order[0] == order[-1] == MARKER
    shards = [number for number, name in enumerate(order) if name.endswith(".safetensors")]
    assert order.index("model.safetensors.index.json") > max(shards)


def test_from_store_to_store_each_part_is_sent_once_and_reads_are_of_the_input_only(s3: Any, large: Path) -> None:
    s3.put_object(Bucket="bucket", Key="in/model.safetensors", Body=(large / "model.safetensors").read_bytes())
    rename = {"move": {"from": r"w\.(\d+)", "to": r"x.\1"}}
    go([rename], "s3://bucket/out.safetensors", "m::s3://bucket/in", receipt=False)
    sent = parts_sent(s3.proxy.asked)
    assert len(sent) == -(-len(objects(s3)["out.safetensors"]) // USUAL_PART)
    assert set(sent.values()) == {1}
    for name, array in load(objects(s3)["out.safetensors"]).items():
        assert_same_bits(array, LARGE[name.replace("x", "w")])
    assert uploads(s3) == []
    sizes = [len(entry.body) for entry in s3.proxy.asked if "partNumber" in entry.path]
    assert sum(size != USUAL_PART for size in sizes) <= 1  # only the last one may be shorter


@pytest.mark.parametrize("refused", [(), (400,), (501,)])
def test_parts_have_a_checksum_that_the_store_says_it_verifies(refused: tuple[int, ...], s3: Any, large: Path) -> None:
    def spoil(asked: Asked) -> Fault | None:
        return Fault(status=refused[0]) if refused and "x-amz-checksum-algorithm" in asked.headers else None

    s3.proxy.spoil = spoil
    go([], "s3://bucket/out.safetensors", f"m::{large}")
    parts = {
        parse_qs(urlsplit(entry.path).query)["partNumber"][0]: entry
        for entry in s3.proxy.asked
        if "partNumber" in entry.path
    }
    sums = {number: b64encode(crc32(entry.body).to_bytes(4, "big")).decode() for number, entry in parts.items()}
    if refused:
        assert all("Content-MD5" in entry.headers for entry in parts.values())
    else:
        assert {number: entry.headers["x-amz-checksum-crc32"] for number, entry in parts.items()} == sums
        assert not any("Content-MD5" in entry.headers for entry in parts.values())
    (end,) = (entry.body.decode() for entry in s3.proxy.asked if entry.method == "POST" and "uploadId" in entry.path)
    said = re.findall(r"<PartNumber>(\d+)</PartNumber><ETag>[^<]*</ETag><ChecksumCRC32>([^<]+)</ChecksumCRC32>", end)
    assert dict(said) == ({} if refused else sums)
    assert diff("s3://bucket/out.safetensors", str(large)).is_empty


def test_a_part_that_was_damaged_on_its_way_is_sent_once_more(s3: Any, large: Path) -> None:
    damaged = Fault(status=400, body=b"<Error><Code>BadDigest</Code></Error>")
    faults = [damaged]
    s3.proxy.spoil = lambda asked: faults.pop() if faults and "partNumber=2&" in asked.path else None
    go([], "s3://bucket/out.safetensors", f"m::{large}")
    assert diff("s3://bucket/out.safetensors", str(large)).is_empty
    s3.proxy.spoil = lambda asked: damaged if "partNumber=2&" in asked.path else None
    with pytest.raises(StorageError, match="BadDigest") as caught:
        go([], "s3://bucket/out.safetensors", f"m::{large}", overwrite=True)
    assert "damaged on their way" in str(caught.value.hint) and uploads(s3) == []


def test_parts_are_held_within_their_share_of_the_budget(s3: Any, large: Path) -> None:
    room().peak = 0
    names = [f"w.{n}" for n in range(14)]
    steps = [
        {"concat": {"from": names[::2], "to": "a", "dim": 0}},
        {"concat": {"from": names[1::2], "to": "b", "dim": 0}},
    ]
    go([*steps, {"delete": {"target": r"w\..+"}}], "s3://bucket/o.safetensors", f"m::{large}", memory="48MiB")
    found = load(objects(s3)["o.safetensors"])
    assert_same_bits(found["b"], np.concatenate([LARGE[name] for name in names[1::2]]))
    assert room().peak <= 12 << 20


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bytes_may_come_in_any_order_with_little_room(seed: int, s3: Any) -> None:
    order = np.random.default_rng(seed).permutation(12).tolist()
    size = 2 * USUAL_PART + 12345
    content = np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()
    place, step = place_of("s3://bucket"), -(-size // 12)
    room().limit = USUAL_PART
    place.stage("s3://bucket/.x", "s3://bucket/x", size)
    writer = place.target("s3://bucket/.x")
    for number in order:
        writer.write(number * step, content[number * step : (number + 1) * step])
    place.settle("s3://bucket/.x")
    place.publish("s3://bucket/.x", "s3://bucket/x")
    assert objects(s3) == {"x": content}
    s3.delete_object(Bucket="bucket", Key="x")


@pytest.mark.parametrize("name", ["t.pt", "t.msgpack", "t.npy"])
def test_other_files_are_written_and_read_back(name: str, s3: Any, large: Path, source: Path) -> None:
    few = [{"delete": {"target": r"h\.[1-5]\..+"}}, {"delete": {"target": r"h\.0\.down"}}]
    if name == "t.npy":
        go(
            [*few, {"save": {"path": f"s3://bucket/{name}", "target": "h.0.up", "format": "numpy"}}],
            None,
            f"m::{source}",
        )
        assert_same_bits(np.load(io.BytesIO(objects(s3)[name])), TENSORS["h.0.up"])
        return
    room().peak = 0
    go([], f"s3://bucket/{name}", f"m::{large}", memory="64MiB")
    assert room().peak <= 16 << 20  # of 28: the others were put aside until their checksums were known
    assert diff(f"s3://bucket/{name}", str(large)).is_empty
    assert set(objects(s3)) == {name}
    if name == "t.pt":
        for tensor, array in torch.load(io.BytesIO(objects(s3)[name]), weights_only=True).items():
            assert_same_bits(array.numpy(), LARGE[tensor])


def test_torch_directories_go_to_a_store_unchanged(s3: Any, source: Path) -> None:
    go([], {"path": "s3://bucket/d", "format": "dcp"}, f"m::{source}")
    assert open_checkpoint("s3://bucket/d").format == "dcp"
    assert diff("s3://bucket/d", str(source)).is_empty


def test_a_run_that_fails_leaves_nothing_at_the_store(s3: Any, large: Path) -> None:
    with pytest.raises(Exception, match="assertion failed"):
        go([{"assert": {"iszero": {"of": "w.0", "eps": 0.1}}}], "s3://bucket/m", f"m::{large}")
    assert objects(s3) == {} and uploads(s3) == []


def test_a_run_that_fails_does_not_wait_for_parts_that_the_store_does_not_take(s3: Any, large: Path) -> None:
    """Once the upload is ended they are not tried again, as others are for two minutes."""
    s3.proxy.spoil = lambda asked: Fault(status=500) if "partNumber=" in asked.path else None
    began = time.monotonic()
    with pytest.raises(Exception, match="assertion failed"):
        go([{"assert": {"iszero": {"of": "w.0", "eps": 0.1}}}], "s3://bucket/m", f"m::{large}")
    assert time.monotonic() - began < 25
    s3.proxy.spoil = lambda asked: None
    assert objects(s3) == {} and uploads(s3) == []


def test_a_store_that_refuses_a_part_ends_the_run_and_the_upload(s3: Any, large: Path) -> None:
    s3.proxy.spoil = lambda asked: Fault(status=403) if "partNumber=2" in asked.path else None
    with pytest.raises(StorageError, match="answers 403") as caught:
        go([], "s3://bucket/m", f"m::{large}")
    assert caught.value.where is not None and str(caught.value.where).startswith("s3://bucket/m")
    s3.proxy.spoil = lambda asked: None
    assert objects(s3) == {} and uploads(s3) == []


def test_what_may_pass_while_writing_is_tried_again(s3: Any, large: Path) -> None:
    faults = [Fault(status=500), Fault(is_lost=True), Fault(status=429)]
    s3.proxy.spoil = lambda asked: faults[len(s3.proxy.asked) % 3] if len(s3.proxy.asked) % 4 == 0 else None
    go([], "s3://bucket/m", f"m::{large}", receipt=True)
    s3.proxy.spoil = lambda asked: None
    assert diff("s3://bucket/m", str(large)).is_empty
    assert uploads(s3) == []


def test_what_is_there_is_replaced_only_if_that_is_asked_for(s3: Any, source: Path, capsys: Any) -> None:
    go([], {"path": "s3://bucket/m", "shard": "200KB"}, f"m::{source}")
    before = objects(s3)
    with pytest.raises(StorageError, match="holds a checkpoint already"):
        go([], "s3://bucket/m", f"m::{source}")
    assert objects(s3) == before
    go([], "s3://bucket/m", f"m::{source}", overwrite=True)
    assert sorted(objects(s3)) == sorted(f"m/{name}" for name in [*FILES, MARKER])


def test_a_prefix_that_is_not_whole_is_refused(s3: Any, source: Path, capsys: Any) -> None:
    go([], "s3://bucket/m", f"m::{source}")
    s3.put_object(Bucket="bucket", Key=f"m/{MARKER}", Body=b"not whole")
    assert main(["inspect", "s3://bucket/m"]) == 3
    told = capsys.readouterr().err
    assert "not whole" in told and "--overwrite" in told
    go([], "s3://bucket/m", f"m::{source}", overwrite=True)
    assert diff("s3://bucket/m", str(source)).is_empty


def test_a_publication_that_fails_stays_marked_if_old_files_are_gone(s3: Any, source: Path) -> None:
    go([], {"path": "s3://bucket/m", "shard": "200KB"}, f"m::{source}")
    s3.proxy.spoil = lambda asked: Fault(status=403) if asked.method == "PUT" and "index.json" in asked.path else None
    with pytest.raises(StorageError, match="answers 403"):
        go([], "s3://bucket/m", f"m::{source}", overwrite=True)
    with pytest.raises(StorageError, match="not whole"):
        open_checkpoint("s3://bucket/m")


def test_load_save_convert_and_receipts_take_paths_of_stores(s3: Any, source: Path, tmp_path: Path) -> None:
    go([], "s3://bucket/in", f"m::{source}")
    one = [{"save": {"path": "s3://bucket/one.safetensors", "target": "h.0.up"}}]
    go(one, None, "m::s3://bucket/in")
    load_it = [{"load": {"path": "s3://bucket/one.safetensors", "to": "again"}}]
    go(load_it, "s3://bucket/more.safetensors", "m::s3://bucket/in")
    assert_same_bits(load(objects(s3)["more.safetensors"])["again"], TENSORS["h.0.up"])
    assert main(["convert", "s3://bucket/in", "s3://bucket/c.pt", "--no-sync"]) == 0
    assert diff("s3://bucket/c.pt", str(source)).is_empty
    go([], "s3://bucket/r.safetensors", f"m::{source}", receipt_path="s3://bucket/r.json")
    assert "r.json" in objects(s3)


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/m", "https://h/m.safetensors"])
def test_what_can_only_be_read_is_refused_before_any_work(path: str, source: Path) -> None:
    with pytest.raises(SurgeryError, match="can only be read"):
        go([], path, f"m::{source}")


@pytest.mark.parametrize("size", [0, 1, 5 << 20, 79 << 30, 80 << 30, (5 << 40) + 1])
def test_parts_are_few_enough_and_large_enough(size: int) -> None:
    assert part_bytes(size) >= 5 << 20
    assert -(-size // part_bytes(size)) <= 10_000


def test_a_batch_skips_what_is_finished_at_a_store_unless_its_input_has_changed(
    s3: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    go([], "s3://bucket/in.safetensors", f"m::{source}")
    (tmp_path / "plan.yaml").write_text(
        'inputs: ["m::s3://bucket/in.safetensors"]\n'
        "transforms: [{ scale_: { target: .+, by: 2 } }]\noutput: s3://bucket/a\n"
    )
    (tmp_path / "jobs.yaml").write_text("plan: plan.yaml\njobs: [{ name: a, set: { output: s3://bucket/a } }]\n")
    assert main(["batch", "jobs.yaml"]) == 0
    before = len(s3.proxy.asked)
    assert main(["batch", "jobs.yaml"]) == 0
    assert not [asked for asked in s3.proxy.asked[before:] if asked.method in ("PUT", "POST")]
    go([{"scale_": {"target": ".+", "by": 3}}], "s3://bucket/in.safetensors", f"m::{source}", overwrite=True)
    assert main(["batch", "jobs.yaml", "--overwrite"]) == 0
    (tensors,) = [load(content) for name, content in objects(s3).items() if "a/model-" in name and "json" not in name]
    assert_same_bits(tensors["h.0.up"], TENSORS["h.0.up"] * np.float32(3) * np.float32(2))


def test_a_budget_that_is_too_small_for_parts_and_work_says_what_is_enough(s3: Any, source: Path, capsys: Any) -> None:
    plan = source.parent / "plan.yaml"
    plan.write_text(f'inputs: ["m::{source}"]\ntransforms: []\noutput: s3://bucket/m\n')
    assert main(["run", str(plan), "--memory", "8MiB"]) == 4
    told = capsys.readouterr().err
    (enough,) = re.findall(r"--memory of at least ([\d.]+) (\w+)", told)
    assert objects(s3) == {}
    assert main(["run", str(plan), "--memory", "".join(enough)]) == 0


def test_a_process_that_did_not_begin_an_output_says_that_it_cannot_write_it(s3: Any) -> None:
    with pytest.raises(PlaceError, match="only the process that began"):
        place_of("s3://bucket").target("s3://bucket/.of-another")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [("RequestTimeTooSkewed", "clock"), ("NotImplemented", "another place"), ("AccessDenied", "credentials may do")],
)
def test_what_a_store_refuses_is_named_with_what_helps(
    code: str, remedy: str, s3: Any, large: Path, capsys: Any
) -> None:
    status = 501 if code == "NotImplemented" else 403
    fault = Fault(status=status, body=f"<Error><Code>{code}</Code></Error>".encode())
    s3.proxy.spoil = lambda asked: fault if "uploads" in asked.path else None
    assert main(["convert", str(large), "s3://bucket/m.safetensors"]) == 3
    told = capsys.readouterr().err
    assert code in told and remedy in told and "s3://bucket/m.safetensors" in told
    assert objects(s3) == {} and "Traceback" not in told and SECRET not in told
