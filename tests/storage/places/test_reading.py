"""Reading from servers: by ranges, one request a header, and never two versions of an object."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import assert_same_bits, read_checkpoint
from safetensors.numpy import save
from servers import SECRET, Fault, Files

from surgery_jax import Options, diff, inspect, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.places.base import PlaceError, fill
from surgery_jax.storage.places.found import place_of
from surgery_jax.storage.places.refusals import refusal
from surgery_jax.storage.places.remote import RemoteReader
from surgery_jax.storage.places.wire import Answer

RNG = np.random.default_rng(5)
TENSORS = {f"h.{n}.{word}": RNG.normal(size=(300, 70)).astype(np.float32) for n in range(6) for word in ("up", "down")}


def shards(count: int, tensors: Any = TENSORS) -> dict[str, bytes]:
    """The files of a checkpoint of so many shards, with an index and a document."""
    parts: list[dict[str, np.ndarray]] = [{} for _ in range(count)]
    for number, name in enumerate(tensors):
        parts[number % count][name] = tensors[name]
    names = [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]
    weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    files = {name: save(part) for name, part in zip(names, parts, strict=True)}
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return {**files, "config.json": b'{"hidden_size": 70}'}


@pytest.fixture(params=["s3", "http"])
def source(request: Any) -> Any:
    """A checkpoint of three shards at a place: its path, and what is asked there."""
    files = shards(3)
    if request.param == "s3":
        client = request.getfixturevalue("s3")
        for name, content in files.items():
            client.put_object(Bucket="bucket", Key=f"models/llama/{name}", Body=content)
        return "s3://bucket/models/llama", client.proxy
    server = request.getfixturevalue("web")
    server.files |= {f"/models/llama/{name}": content for name, content in files.items()}
    return f"{server.url}/models/llama", server


def go(steps: Any, output: Any, *inputs: str, **options: Any) -> Any:
    plan = plan_of({"inputs": list(inputs), "transforms": steps, "output": output})
    return run(plan, Options(**{"sync": False} | options))


def test_a_sharded_checkpoint_is_read_as_if_it_were_on_the_disk(source: Any, tmp_path: Path) -> None:
    path, _ = source
    go([{"scale_": {"target": ".+up", "by": 2}}], str(tmp_path / "out"), f"m::{path}")
    for name, array in read_checkpoint(tmp_path / "out").items():
        assert_same_bits(array, TENSORS[name] * (2 if name.endswith("up") else 1))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"hidden_size": 70}
    told = json.loads((tmp_path / "out" / "surgery.receipt.json").read_text())
    assert SECRET not in json.dumps(told)
    found = diff(path, str(tmp_path / "out"))
    assert {entry.name for entry in found.changed} == {name for name in TENSORS if name.endswith("up")}


def test_a_header_costs_one_request(source: Any) -> None:
    path, server = source
    assert set(open_checkpoint(path).entries) == set(TENSORS)
    asked = [entry for entry in server.asked if "-of-00003" in entry.path and entry.method == "GET"]
    assert len(asked) == 3


def test_headers_of_many_shards_are_asked_for_at_the_same_time(s3: Any) -> None:
    tensors = {f"t.{n:04d}": np.full((2,), n, np.float32) for n in range(60)}
    for name, content in shards(60, tensors).items():
        s3.put_object(Bucket="bucket", Key=f"m/{name}", Body=content)
    asking: list[str] = []
    are_eight = threading.Event()
    came: list[bool] = []

    def spoil(asked: Any) -> None:
        if "-of-00060" in asked.path:  # nobody is answered before eight have asked
            asking.append(asked.path)
            if len(asking) == 8:
                are_eight.set()
            came.append(are_eight.wait(10))

    s3.proxy.spoil = spoil
    assert set(open_checkpoint("s3://bucket/m").entries) == set(tensors)
    assert len(came) >= 60 and all(came)


def test_ranges_that_lie_near_each_other_cost_one_request(web: Files) -> None:
    content = RNG.integers(0, 256, 20 << 20, np.uint8).tobytes()
    web.files["/x"] = content
    reader = place_of(web.url).open(f"{web.url}/x")
    web.asked.clear()
    near = [(5_000_000 + 1000 * n, memoryview(bytearray(100))) for n in range(50)]
    reader.read_ranges(near)
    assert len(web.asked) == 1
    assert all(content[at : at + 100] == part.tobytes() for at, part in near)
    web.asked.clear()
    far = memoryview(bytearray(18 << 20))
    fill(reader, 1 << 20, far)
    assert far == content[1 << 20 : 19 << 20]
    assert len(web.asked) == 3  # of at most 8 MiB each, at the same time
    assert reader.read_into(len(content), far) == 0


def test_a_long_tensor_that_moves_is_asked_for_by_several_requests_at_the_same_time(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="bucket", Key="m.safetensors", Body=save({"w": np.arange(5 << 20, dtype=np.uint16)}))
    asking: list[str] = []
    are_two = threading.Event()
    came: list[bool] = []

    def spoil(asked: Any) -> None:
        if not asked.headers.get("Range", "bytes=0-").startswith("bytes=0-"):  # after the header
            asking.append(asked.path)
            if len(asking) == 2:
                are_two.set()
            came.append(are_two.wait(10))

    s3.proxy.spoil = spoil
    go([], str(tmp_path / "out.safetensors"), "m::s3://bucket/m.safetensors")
    assert len(came) >= 2 and all(came)
    assert_same_bits(read_checkpoint(tmp_path / "out.safetensors")["w"], np.arange(5 << 20, dtype=np.uint16))


def test_what_may_pass_is_tried_again_and_no_byte_is_wrong(s3: Any, tmp_path: Path) -> None:
    for name, content in shards(3).items():
        s3.put_object(Bucket="bucket", Key=f"m/{name}", Body=content)
    faults = [Fault(status=500), Fault(is_lost=True), Fault(short=1000), Fault(status=429), Fault(status=503)]
    s3.proxy.spoil = lambda asked: faults[len(s3.proxy.asked) % 9 // 2] if len(s3.proxy.asked) % 2 else None
    go([], str(tmp_path / "out"), "m::s3://bucket/m")
    for name, array in read_checkpoint(tmp_path / "out").items():
        assert_same_bits(array, TENSORS[name])


def test_a_store_that_is_away_for_a_while_is_waited_for(web: Files, s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="m.safetensors", Body=save(TENSORS))
    open_checkpoint("s3://bucket/m.safetensors")
    back = time.monotonic() + 1.2
    s3.proxy.spoil = lambda asked: Fault(is_lost=True) if time.monotonic() < back else None
    assert set(open_checkpoint("s3://bucket/m.safetensors").entries) == set(TENSORS)


def test_a_store_that_does_not_come_back_is_an_error_that_says_so(
    s3: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setenv("SURGERY_JAX_DEADLINE", "1")
    s3.proxy.spoil = lambda asked: Fault(status=503)
    assert main(["inspect", "s3://bucket/m"]) == 3
    told = capsys.readouterr().err
    assert "no answer from 127.0.0.1 for 1 seconds: status 503" in told and "SURGERY_JAX_DEADLINE" in told
    assert "s3://bucket/m" in told and "Traceback" not in told


@pytest.mark.parametrize("kind", ["bytes", "etag", "gone"])
def test_an_object_that_changes_after_its_header_was_read_is_an_error(kind: str, s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="m.safetensors", Body=save(TENSORS))
    checkpoint = open_checkpoint("s3://bucket/m.safetensors")
    if kind == "bytes":
        s3.put_object(Bucket="bucket", Key="m.safetensors", Body=save({n: a + 1 for n, a in TENSORS.items()}))
    elif kind == "gone":
        s3.delete_object(Bucket="bucket", Key="m.safetensors")
    else:
        s3.proxy.spoil = lambda asked: Fault(etag='"another"')
    with pytest.raises(StorageError, match="lost" if kind == "gone" else "changed") as caught:
        inspect(checkpoint, stats=True)
    assert caught.value.where == "s3://bucket/m.safetensors"


def test_a_range_of_another_version_is_refused(web: Files) -> None:
    web.files["/x"] = bytes(1 << 20)
    reader = place_of(web.url).open(f"{web.url}/x")
    web.files["/x"] = b"\1" + bytes((1 << 20) - 1)
    with pytest.raises(PlaceError, match="changed while it was read"):
        reader.read_into(0, memoryview(bytearray(10)))
    assert isinstance(reader, RemoteReader)


def test_a_redirect_is_followed_and_none_leads_to_a_directory(web: Files) -> None:
    web.files["/there/m.safetensors"] = save(TENSORS)
    web.pages["/here/m.safetensors"] = lambda asked: (302, {"Location": "/there/m.safetensors"}, b"")
    web.pages["/there"] = lambda asked: (301, {"Location": "/there/"}, b"")
    assert set(open_checkpoint(f"{web.url}/here/m.safetensors").entries) == set(TENSORS)
    status = place_of(web.url).stat(f"{web.url}/there")
    assert status is None
    web.files["/there/config.json"] = b"{}"
    status = place_of(web.url).stat(f"{web.url}/there")
    assert status is not None and status.is_directory


def test_redirects_that_lead_nowhere_are_an_error(web: Files, capsys: Any) -> None:
    web.pages["/m.safetensors"] = lambda asked: (302, {"Location": "/m.safetensors"}, b"")
    assert main(["inspect", f"{web.url}/m.safetensors"]) == 3
    told = capsys.readouterr().err
    assert "answers 302" in told and "lead nowhere" in told


def test_a_server_that_falls_silent_is_given_no_more_time_than_is_allowed(
    web: Files, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SURGERY_JAX_DEADLINE", "1")
    head = {"ETag": '"x"', "Content-Length": "100"}
    web.pages["/m.safetensors"] = lambda asked: (200, head, b"short")
    began = time.monotonic()
    assert main(["inspect", f"{web.url}/m.safetensors"]) == 3
    assert "for 1 seconds: timed out" in capsys.readouterr().err
    assert time.monotonic() - began < 15


def test_a_plan_at_a_store_is_an_error_that_says_what_may_be_there(capsys: Any) -> None:
    assert main(["run", "s3://bucket/plan.yaml"]) == 2
    told = capsys.readouterr().err
    assert "read on this machine only: s3://bucket/plan.yaml" in told and "may be of any place" in told


def test_a_server_without_ranges_serves_only_what_is_small(web: Files, capsys: Any) -> None:
    web.gives_ranges = False
    web.files["/small.safetensors"] = save({"a": np.arange(3.0)})
    web.files["/large.safetensors"] = save(TENSORS)
    assert main(["inspect", f"{web.url}/small.safetensors", "--stats"]) == 0
    assert main(["inspect", f"{web.url}/large.safetensors"]) == 3
    assert "gives no ranges" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://bucket/none", "does not exist"),
        ("s3://no-such-bucket/m", "NoSuchBucket"),
        ("s3://", "no bucket is named"),
        ("http://127.0.0.1:9/m", "no answer from 127.0.0.1"),
        ("http://no-such-host.invalid/m", "there is no server no-such-host.invalid"),
        ("https://user:hidden@h/m", "may hold no password"),
        ("https://h/m.safetensors?X-Amz-Signature=hidden", "signed query"),
    ],
)
def test_a_path_that_cannot_be_read_is_an_error_that_says_why(
    path: str,
    words: str,
    s3: Any,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SURGERY_JAX_DEADLINE", "1")
    assert main(["inspect", path]) == 3
    told = capsys.readouterr()
    assert words in told.err
    assert "hidden" not in told.err + told.out and SECRET not in told.err + told.out and "Traceback" not in told.err


def test_forbidden_and_missing_credentials_name_the_place_and_the_remedy(
    s3: Any,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3.proxy.spoil = lambda asked: Fault(status=403)
    assert main(["inspect", "s3://bucket/m.safetensors"]) == 3
    told = capsys.readouterr().err
    assert "answers 403" in told and "check the credentials" in told and "s3://bucket/m.safetensors" in told
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert main(["inspect", "s3://bucket/m.safetensors"]) == 3
    told = capsys.readouterr().err
    assert "there are no credentials" in told and "AWS_ACCESS_KEY_ID" in told


@pytest.mark.parametrize(
    ("settings", "path", "words"),
    [
        ({"AWS_PROFILE": "nobody"}, "s3://bucket/m", "ProfileNotFound"),
        ({"AWS_PROFILE": "nobody", "AWS_REGION": ""}, "s3://bucket/m", "ProfileNotFound"),
        ({"AWS_ENDPOINT_URL": "localhost:9000"}, "s3://bucket/m", "localhost:9000 is no address of a server"),
        ({"AWS_ENDPOINT_URL": "http://h:port"}, "s3://bucket/m", "http://h is no address of a server"),
        ({"HF_ENDPOINT": "hub.example"}, "hf://org/name", "hub.example is no address of a server"),
        ({"STORAGE_EMULATOR_HOST": "htp://h:1"}, "gs://bucket/m", "htp://h is no address of a server"),
        ({}, "https://", "no address of a server"),
        ({"SURGERY_JAX_DEADLINE": "soon"}, "s3://bucket/m", "SURGERY_JAX_DEADLINE is 'soon'"),
        ({"SURGERY_JAX_DEADLINE": "-1"}, "s3://bucket/m", "SURGERY_JAX_DEADLINE is '-1'"),
    ],
)
def test_an_environment_that_makes_no_sense_is_an_error_that_says_so(
    settings: dict[str, str], path: str, words: str, s3: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "AWS_PROFILE" in settings:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert main(["inspect", path]) == 3
    told = capsys.readouterr().err
    assert words in told and "try: " in told and "Traceback" not in told


def test_a_server_that_compresses_what_it_sends_is_not_believed(web: Files, capsys: Any) -> None:
    head = {"Content-Encoding": "gzip", "ETag": '"x"'}
    web.pages["/m.safetensors"] = lambda asked: (200, head, gzip.compress(save(TENSORS)))
    assert main(["inspect", f"{web.url}/m.safetensors"]) == 3
    assert "sends it compressed (gzip)" in capsys.readouterr().err


def test_without_the_extra_there_is_one_message_that_names_it(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules['botocore'] = sys.modules['botocore.session'] = None\n"
        "from surgery_jax.cli.main import main\n"
        "sys.exit(main(['inspect', 's3://bucket/m']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "pip install 'surgery_jax[remote]'" in done.stderr and "Traceback" not in done.stderr


def test_nothing_of_it_is_imported_for_local_paths(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(save({"a": np.arange(3.0)}))
    program = (
        "import sys\n"
        "from surgery_jax.cli.main import main\n"
        f"main(['inspect', {str(tmp_path / 'm.safetensors')!r}])\n"
        "print([name for name in sys.modules if name in ('botocore', 'google.auth')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("is_off", [True, False])
def test_a_refusal_without_a_reason_is_one_of_the_clock_if_that_is_off(is_off: bool) -> None:
    date = "Mon, 01 Jan 2001 00:00:00 GMT" if is_off else formatdate(usegmt=True)
    error = refusal(Answer(403, {"date": date}, b""))
    assert ("RequestTimeTooSkewed" in str(error)) is ("set it" in str(error.hint)) is is_off
