"""Google Cloud Storage: reading by generation, parts that are composed at the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import assert_same_bits, read_checkpoint, write_checkpoint
from servers import Fault, Proxy

from surgery_jax import Options, diff, inspect, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.formats import open_checkpoint
from surgery_jax.storage.places.base import MARKER, PlaceError
from surgery_jax.storage.places.found import place_of
from surgery_jax.storage.places.room import room

RNG = np.random.default_rng(3)
TENSORS = {f"w.{n}": RNG.normal(size=(1 << 18,)).astype(np.float32) for n in range(20)}  # 1 MiB each


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = write_checkpoint(tmp_path / "m" / "model.safetensors", TENSORS).parent
    (path / "config.json").write_text('{"hidden_size": 70}')
    return path


def names(directory: str) -> list[str]:
    return sorted(place_of("gs://").list(directory))


def go(steps: Any, output: Any, *inputs: str, **options: Any) -> Any:
    plan = plan_of({"inputs": list(inputs), "transforms": steps, "output": output})
    return run(plan, Options(**{"sync": False} | options))


def test_a_checkpoint_goes_to_the_store_and_comes_back_the_same(gs: Proxy, source: Path, tmp_path: Path) -> None:
    go([], "gs://bucket/a/m", f"m::{source}")
    assert names("gs://bucket/a") == ["m"]  # nothing of the parts is left
    assert {"config.json", "model-00001-of-00001.safetensors", MARKER} <= set(names("gs://bucket/a/m"))
    go([], str(tmp_path / "back"), "m::gs://bucket/a/m")
    for name, array in read_checkpoint(tmp_path / "back").items():
        assert_same_bits(array, TENSORS[name])
    assert main(["verify", "gs://bucket/a/m"]) == 0
    assert main(["convert", "gs://bucket/a/m", "gs://bucket/t.pt"]) == 0
    assert diff("gs://bucket/t.pt", str(source)).is_empty
    go([], "gs://bucket/a/m", f"m::{source}", overwrite=True, receipt=False)
    assert diff("gs://bucket/a/m", str(source)).is_empty


def test_many_parts_are_composed_in_several_steps(gs: Proxy) -> None:
    place = place_of("gs://bucket")
    whole = b"".join(bytes([number]) * 7 for number in range(40))
    sink = place.sink("gs://bucket/whole", "gs://bucket/.x", 9 << 20)  # type: ignore[attr-defined]
    for number in range(40):
        sink.send(number, bytearray([number]) * 7)
    with pytest.raises(PlaceError, match="280 bytes of"):
        sink.complete()  # which counts them
    reader = place.open("gs://bucket/whole")
    found = bytearray(reader.identity.size)
    reader.read_into(0, memoryview(found))
    assert found == whole


def test_bytes_may_come_in_any_order_with_little_room(gs: Proxy) -> None:
    size = (17 << 20) + 5
    content = RNG.integers(0, 256, size, np.uint8).tobytes()
    place, step = place_of("gs://bucket"), -(-size // 10)
    room().limit = 8 << 20
    place.stage("gs://bucket/.x", "gs://bucket/x", size)
    writer = place.target("gs://bucket/.x")
    for number in RNG.permutation(10).tolist():
        writer.write(number * step, content[number * step : (number + 1) * step])
    place.settle("gs://bucket/.x")
    place.publish("gs://bucket/.x", "gs://bucket/x")
    reader = place.open("gs://bucket/x")
    found = bytearray(size)
    assert reader.read_into(0, memoryview(found)) == size
    assert found == content
    assert names("gs://bucket") == ["x"]


def test_a_run_that_fails_leaves_nothing_at_the_store(gs: Proxy, source: Path) -> None:
    with pytest.raises(Exception, match="assertion failed"):
        go([{"assert": {"iszero": {"of": "w.0", "eps": 0.1}}}], "gs://bucket/m", f"m::{source}")
    assert names("gs://bucket") == []


def test_what_may_pass_is_tried_again(gs: Proxy, source: Path) -> None:
    faults = [Fault(status=503), Fault(is_lost=True), Fault(status=429)]
    gs.spoil = lambda asked: faults[len(gs.asked) % 3] if len(gs.asked) % 5 == 0 else None
    go([], "gs://bucket/m", f"m::{source}")
    assert diff("gs://bucket/m", str(source)).is_empty


def test_an_object_that_changes_after_its_header_was_read_is_an_error(gs: Proxy, source: Path) -> None:
    go([], "gs://bucket/m.safetensors", f"m::{source}")
    checkpoint = open_checkpoint("gs://bucket/m.safetensors")
    go([{"scale_": {"target": ".+", "by": 2}}], "gs://bucket/m.safetensors", f"m::{source}", overwrite=True)
    with pytest.raises(StorageError, match="changed after its header"):
        inspect(checkpoint, stats=True)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gs://bucket/none", "does not exist"),
        ("gs://no-such-bucket/m", "no such bucket"),
        ("gs://", "no bucket is named"),
    ],
)
def test_a_path_that_cannot_be_read_is_an_error_that_says_why(path: str, words: str, gs: Proxy, capsys: Any) -> None:
    assert main(["inspect", path]) == 3
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told


def test_without_credentials_the_error_says_how_to_get_some(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    assert main(["inspect", "gs://bucket/m"]) == 3
    told = capsys.readouterr().err
    assert "GOOGLE_APPLICATION_CREDENTIALS" in told and "gs://bucket/m" in told and "Traceback" not in told
