"""Runs that go on with what an earlier one has sent to a store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from pods import wait_for
from running import write_checkpoint
from servers import Fault, Proxy, objects

from surgery_jax import Options, diff, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.continued import begun_uploads
from surgery_jax.storage.places.base import USUAL_PART
from surgery_jax.storage.places.found import place_of

RNG = np.random.default_rng(29)
LARGE = {f"w.{n:02}": RNG.normal(size=(1 << 19,)).astype(np.float32) for n in range(14)}  # 2 MiB each
NUM_PARTS = 4
SCALE: list[Any] = [{"scale_": {"target": r"w\.0[2468]", "by": 0.5}}]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "large" / "model.safetensors", LARGE).parent


def go(source: Path | str, output: str, steps: Any = SCALE, **options: Any) -> Any:
    plan = plan_of({"inputs": [f"m::{source}"], "transforms": steps, "output": output})
    how = {"sync": False, "receipt": False, "memory": "64MiB", "resume": True}
    return run(plan, Options(**{**how, **options}))


def sent(asked: list[Any]) -> list[int]:
    """The numbers of the parts that were sent."""
    found = (parse_qs(urlsplit(one.path).query) for one in asked if one.method == "PUT")
    return sorted(int(query["partNumber"][0]) for query in found if "partNumber" in query)


def uploads(client: Any) -> list[Any]:
    return list(client.list_multipart_uploads(Bucket="bucket").get("Uploads", ()))


def broken_off(proxy: Proxy, word: str, source: Path, output: str, **options: Any) -> None:
    """A run to which the store refuses a part."""
    proxy.spoil = lambda asked: Fault(status=403) if word in asked.path else None
    with pytest.raises(StorageError, match="answers 403"):
        go(source, output, **options)
    proxy.spoil = lambda asked: None
    proxy.asked.clear()


@pytest.mark.parametrize("receipt", [False, True])
def test_parts_that_were_sent_are_not_sent_again(receipt: bool, s3: Any, large: Path) -> None:
    broken_off(s3.proxy, "partNumber=3&", large, "s3://bucket/out", receipt=receipt)
    (upload,) = uploads(s3)
    key = "out/model-00001-of-00001.safetensors"
    there = [
        part["PartNumber"] for part in s3.list_parts(Bucket="bucket", Key=key, UploadId=upload["UploadId"])["Parts"]
    ]
    assert there and 3 not in there
    assert [name.endswith(".journal") for name in objects(s3)] == [True]
    report = go(large, "s3://bucket/out", receipt=receipt)
    assert sent(s3.proxy.asked) == sorted(set(range(1, NUM_PARTS + 1)) - set(there))
    assert report.bytes_moved + report.bytes_computed < len(objects(s3)[key])
    assert uploads(s3) == [] and all(name.startswith("out/") for name in objects(s3))
    go(large, "s3://bucket/anew", resume=False)
    assert diff("s3://bucket/out", "s3://bucket/anew").is_empty


def test_parts_at_google_are_not_sent_again(gs: Proxy, large: Path) -> None:
    broken_off(gs, "part-0-00002", large, "gs://bucket/out.safetensors")
    place = place_of("gs://bucket")
    left = sorted(place.list("gs://bucket"))
    assert left[0].endswith(".journal") and len(left) > 1
    go(large, "gs://bucket/out.safetensors")
    made = {one.path.split("part-0-")[1][:5] for one in gs.asked if one.method == "POST" and "part-0-" in one.path}
    assert len(made) == NUM_PARTS - (len(left) - 1)
    assert list(place.list("gs://bucket")) == ["out.safetensors"]
    go(large, "gs://bucket/anew.safetensors", resume=False)
    assert diff("gs://bucket/out.safetensors", "gs://bucket/anew.safetensors").is_empty


def test_a_run_that_was_killed_is_gone_on_with(s3: Any, large: Path, tmp_path: Path) -> None:
    plan = {"inputs": [f"m::{large}"], "transforms": SCALE, "output": "s3://bucket/out.safetensors"}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    s3.proxy.spoil = lambda asked: Fault(delay=20) if "partNumber=4&" in asked.path else None
    words = ["run", "plan.yaml", "--resume", "--no-receipt", "--no-sync", "--memory", "64MiB"]
    process = subprocess.Popen([sys.executable, "-m", "surgery_jax", *words], cwd=tmp_path, env=os.environ)
    wait_for(lambda: uploads(s3) and len(sent(s3.proxy.asked)) == NUM_PARTS, 120)
    key = {"Bucket": "bucket", "Key": "out.safetensors", "UploadId": uploads(s3)[0]["UploadId"]}
    wait_for(lambda: len(s3.list_parts(**key).get("Parts", ())) == NUM_PARTS - 1, 120)
    process.send_signal(signal.SIGKILL)
    process.wait()
    s3.proxy.spoil = lambda asked: None
    s3.proxy.asked.clear()
    go(large, "s3://bucket/out.safetensors")
    assert sent(s3.proxy.asked) == [4]
    assert set(objects(s3)) == {"out.safetensors"} and uploads(s3) == []
    go(large, "s3://bucket/anew.safetensors", resume=False)
    assert objects(s3)["out.safetensors"] == objects(s3)["anew.safetensors"]


def test_what_is_of_another_plan_or_was_ended_is_not_gone_on_with(s3: Any, large: Path) -> None:
    broken_off(s3.proxy, "partNumber=3&", large, "s3://bucket/out.safetensors")
    other = [{"scale_": {"target": r"w\.0[2468]", "by": 0.25}}]
    report = go(large, "s3://bucket/out.safetensors", other)
    assert "it is of another plan" in report.leftovers[0] and "s3://bucket/.out.safetensors" in report.leftovers[0]
    assert sent(s3.proxy.asked) == list(range(1, NUM_PARTS + 1))
    (upload,) = uploads(s3)  # of the first plan
    s3.abort_multipart_upload(Bucket="bucket", Key="out.safetensors", UploadId=upload["UploadId"])
    s3.proxy.asked.clear()
    go(large, "s3://bucket/out.safetensors", overwrite=True)
    assert sent(s3.proxy.asked) == list(range(1, NUM_PARTS + 1))
    assert set(objects(s3)) == {"out.safetensors"} and uploads(s3) == []


def test_what_is_begun_can_be_cleaned_away(s3: Any, large: Path, capsys: Any) -> None:
    broken_off(s3.proxy, "partNumber=3&", large, "s3://bucket/out/m")
    assert uploads(s3) and objects(s3)
    assert main(["clean", "s3://bucket/out/m"]) == 0
    assert "removed, with its uploads" in "".join(capsys.readouterr())
    assert uploads(s3) == [] and objects(s3) == {}


def test_a_part_of_another_length_is_sent_again(s3: Any, large: Path) -> None:
    broken_off(s3.proxy, "partNumber=3&", large, "s3://bucket/out.safetensors")
    key = {"Bucket": "bucket", "Key": "out.safetensors", "UploadId": uploads(s3)[0]["UploadId"]}
    s3.upload_part(**key, PartNumber=1, Body=bytes(USUAL_PART - 1))
    go(large, "s3://bucket/out.safetensors")
    assert {1, 3} <= set(sent(s3.proxy.asked))
    go(large, "s3://bucket/anew.safetensors", resume=False)
    assert objects(s3)["out.safetensors"] == objects(s3)["anew.safetensors"]


@pytest.mark.parametrize(
    "said", [b"[" * 100_000, b"\xff", b"{}", b'{"head": [], "uploads": {}}', b'{"head": 1, "head": 2}']
)
def test_what_a_stranger_says_of_uploads_is_none(said: bytes, s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key=".out.surgery-abcdefgh.journal", Body=said)
    assert list(begun_uploads("s3://bucket/out")) == []


def test_an_output_at_a_store_is_known_as_made_by_its_receipt(s3: Any, large: Path) -> None:
    go(large, "s3://bucket/out", receipt=True)
    s3.proxy.asked.clear()
    report = go(large, "s3://bucket/out", receipt=True)
    assert report.num_tensors == 0 and "its receipt says that this plan made it" in report.leftovers[0]
    assert not [one for one in s3.proxy.asked if one.method != "GET" and one.method != "HEAD"]
    other = [{"scale_": {"target": r"w\.0[2468]", "by": 0.25}}]
    with pytest.raises(StorageError, match="already"):
        go(large, "s3://bucket/out", other, receipt=True)
    name = "out/model-00001-of-00001.safetensors"
    whole = objects(s3)[name]
    s3.put_object(Bucket="bucket", Key=name, Body=whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match="already"):
        go(large, "s3://bucket/out", receipt=True)
    s3.put_object(Bucket="bucket", Key=name, Body=whole)
    assert go(large, "s3://bucket/out", receipt=True).num_tensors == 0
    s3.put_object(Bucket="bucket", Key="out/.surgery-marker", Body=b"it is being written")
    with pytest.raises(StorageError, match="already"):
        go(large, "s3://bucket/out", receipt=True)


def test_a_plan_is_applied_once_to_its_own_input_at_a_store(s3: Any, large: Path) -> None:
    move: list[Any] = [{"move": {"from": r"w\.(\d+)", "to": r"layers.\1"}}]
    go(large, "s3://bucket/out", [], receipt=True)
    for _ in range(2):
        report = go("s3://bucket/out", "s3://bucket/out", move, receipt=True, overwrite=True)
    assert report.num_tensors == 0 and "this plan was applied to it" in report.leftovers[0]
