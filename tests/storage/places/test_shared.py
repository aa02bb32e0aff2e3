"""Several processes that write the same objects in one run."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from pods import Pod, free_port, wait_for
from running import write_checkpoint
from servers import Fault, Proxy, objects

from surgery_jax import Options, diff, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.core.errors import SurgeryError
from surgery_jax.hosts.cluster import meet
from surgery_jax.hosts.meeting import MeetingPlace, Patience
from surgery_jax.storage.places.base import MARKER, USUAL_PART
from surgery_jax.storage.places.found import place_of

RNG = np.random.default_rng(17)
LARGE = {f"w.{n:02}": RNG.normal(size=(1 << 19,)).astype(np.float32) for n in range(14)}  # 2 MiB each
SMALL = {f"h.{n}": RNG.normal(size=(300, 70)).astype(np.float32) for n in range(12)}
STEPS: list[Any] = [
    {"scale_": {"target": r"w\.0[2468]", "by": 0.5}},
    {"concat": {"from": ["w.01", "w.12"], "to": "far", "dim": 0}},
]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "large" / "model.safetensors", LARGE).parent


def on_all(size: int, act: Callable[[Any], Any]) -> list[Any]:
    """What comes of it in so many processes, which are threads of this one."""
    port = free_port()
    places = [MeetingPlace(rank, size, "127.0.0.1", port, b"secret") for rank in range(size)]

    def one(place: MeetingPlace) -> Any:
        try:
            with meet(place, Patience(place, 30)) as star:
                return act(star)
        except SurgeryError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, places))


def written(output: Any, source: Path, size: int, steps: Any = STEPS, **options: Any) -> list[Any]:
    plan = plan_of({"inputs": [f"m::{source}"], "transforms": steps, "output": output})
    how = Options(**{"sync": False, "receipt": False, "memory": "64MiB", **options})
    return on_all(size, lambda star: run(plan, how, peers=star))


def uploads(client: Any) -> list[Any]:
    return list(client.list_multipart_uploads(Bucket="bucket").get("Uploads", ()))


def test_several_processes_send_parts_of_one_object_each_part_once(s3: Any, large: Path) -> None:
    size = 3
    written("s3://bucket/alone.safetensors", large, 1)
    s3.proxy.asked.clear()
    found = written("s3://bucket/out.safetensors", large, size)
    assert not [error for error in found if isinstance(error, SurgeryError)]
    assert sum(share.bytes_written > 0 for share in found[0].processes) == size
    there = objects(s3)
    assert set(there) == {"alone.safetensors", "out.safetensors"} and uploads(s3) == []
    assert there["out.safetensors"] == there["alone.safetensors"]
    sent = [parse_qs(urlsplit(one.path).query)["partNumber"][0] for one in s3.proxy.asked if "partNumber" in one.path]
    assert sorted(map(int, sent)) == list(range(1, -(-len(there["out.safetensors"]) // USUAL_PART) + 1))
    begun = [one for one in s3.proxy.asked if one.method == "POST" and urlsplit(one.path).query == "uploads="]
    assert len(begun) == 1


@pytest.mark.parametrize(
    "output", [{"path": "s3://bucket/d", "shard": "200KB"}, {"path": "s3://bucket/d", "format": "dcp"}]
)
def test_files_of_one_part_and_those_that_are_completed_at_the_end_are_shared_too(
    output: Any, s3: Any, tmp_path: Path
) -> None:
    small = write_checkpoint(tmp_path / "small" / "model.safetensors", SMALL).parent
    (small / "config.json").write_text('{"hidden_size": 70}')
    found = written(output, small, 2, [], receipt=True)
    assert not [error for error in found if isinstance(error, SurgeryError)]
    assert diff("s3://bucket/d", str(small)).is_empty
    there = objects(s3)
    assert there[f"d/{MARKER}"] == b"whole\n" and all(name.startswith("d/") for name in there)
    assert uploads(s3) == []
    assert main(["verify", "s3://bucket/d"]) == 0


def test_objects_of_google_are_composed_of_the_parts_of_all(gs: Proxy, large: Path) -> None:
    for size, name in ((1, "alone"), (2, "out")):
        found = written(f"gs://bucket/{name}.safetensors", large, size)
        assert not [error for error in found if isinstance(error, SurgeryError)]
    assert diff("gs://bucket/alone.safetensors", "gs://bucket/out.safetensors").is_empty
    assert sorted(place_of("gs://bucket").list("gs://bucket")) == ["alone.safetensors", "out.safetensors"]


@pytest.mark.parametrize("output", ["gs://bucket/out.safetensors", "gs://bucket/out"])
def test_what_all_processes_have_sent_to_google_is_gone_on_with(output: str, gs: Proxy, large: Path) -> None:
    def below() -> Mapping[str, int]:
        return place_of("gs://bucket").below("gs://bucket")

    gs.spoil = lambda asked: Fault(status=403) if "part-0-00002" in asked.path else None
    assert all(isinstance(error, SurgeryError) for error in written(output, large, 2, resume=True))
    gs.spoil = lambda asked: None
    left = {match[1]: match[0] for name in below() if (match := re.search(r"(?:\.of-.*)?part-0-(\d+)$", name))}
    assert left and any(name.startswith(".of-") for name in left.values())
    gs.asked.clear()
    (report,) = written(output, large, 1, resume=True)
    assert not isinstance(report, SurgeryError)
    sent = {
        one.path.split("part-0-")[1][:5]
        for one in gs.asked
        if one.method == "POST" and "name=" in one.path and "part-0-" in one.path
    }
    assert sent.isdisjoint(left) and "00002" in sent
    assert not [name for name in below() if ".surgery-" in name and not name.endswith(MARKER)]
    written("gs://bucket/anew.safetensors", large, 1)
    assert diff(output, "gs://bucket/anew.safetensors").is_empty


def test_a_process_that_fails_leaves_nothing_of_any(s3: Any, large: Path) -> None:
    def spoil(asked: Any) -> Fault | None:
        return Fault(status=403) if "partNumber=3" in asked.path else None

    s3.proxy.spoil = spoil
    found = written("s3://bucket/out.safetensors", large, 3)
    assert all(isinstance(error, SurgeryError) for error in found)
    s3.proxy.spoil = lambda asked: None
    assert objects(s3) == {} and uploads(s3) == []


def test_when_a_process_is_killed_the_others_end_the_upload(s3: Any, moto: str, large: Path, tmp_path: Path) -> None:
    s3.put_object(Bucket="bucket", Key="in/model.safetensors", Body=(large / "model.safetensors").read_bytes())
    plan = {"inputs": ["m::s3://bucket/in"], "transforms": [], "output": "s3://bucket/out.safetensors"}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    s3.proxy.spoil = lambda asked: Fault(delay=3) if "partNumber=1&" in asked.path else None
    with Pod(2, "plan.yaml", "--no-receipt", cwd=tmp_path) as pod:
        pod.start()
        wait_for(lambda: any("partNumber=1&" in asked.path for asked in s3.proxy.asked), 120)
        wait_for(lambda: len({a.path for a in s3.proxy.asked if "partNumber" in a.path}) > 1, 120)
        pod.signal(1, signal.SIGKILL)
        ended = pod.end(0, 120)
    assert ended.code == 3 and "is lost" in ended.err and "nothing was committed" in ended.err
    assert set(objects(s3)) == {"in/model.safetensors"} and uploads(s3) == []
