"""Records and claims of batches at stores that write under conditions."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import write_checkpoint
from servers import Fault, Generations, objects, running

from surgery_jax import Options, batch
from surgery_jax.cli.main import main
from surgery_jax.core.errors import StorageError
from surgery_jax.language.jobs import load_jobs
from surgery_jax.session.claims import Claims, Lost, claim_of
from surgery_jax.session.finished import key_of
from surgery_jax.session.reading import Headers
from surgery_jax.session.standing import standing
from surgery_jax.storage.notices import board_of
from surgery_jax.storage.places.found import locate

RNG = np.random.default_rng(23)


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[Generations]:
    with running(Generations()) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture(params=["s3", "gs"])
def job(request: pytest.FixtureRequest) -> Path:
    """What a job is claimed by, at either kind of store."""
    request.getfixturevalue({"s3": "s3", "gs": "google"}[request.param])
    return locate(f"{request.param}://bucket/run.done.tasks/job")


def test_a_job_is_claimed_by_one_at_a_time_and_is_free_again_when_that_is_said(job: Path) -> None:
    with Claims() as one, Claims() as other:
        assert one.take(job, "it") is None
        held = other.take(job, "it")
        assert held is not None and held.state == "held" and held.age_s < 60
        one.check([job])
        one.fail(job, "it is broken")
        failed = claim_of(job)
        assert failed is not None and (failed.state, failed.why) == ("failed", "it is broken")
        assert other.take(job, "it") is None
        other.done(job)
    assert claim_of(job) is None


def test_of_many_who_want_a_job_at_once_one_gets_it(job: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: board_of(job.parent).put_first("x", b"%d" % number), range(4)))
    assert sum(own is not None for own in made) == 1


def test_a_lease_that_is_renewed_holds_and_one_that_is_not_runs_out(job: Path) -> None:
    with Claims(lease=0.9) as one, Claims(lease=0.9) as other:
        one.take(job, "it")
        end = time.monotonic() + 1.8
        while time.monotonic() < end:  # its thread renews it
            assert other.take(job, "it") is not None
            time.sleep(0.1)
        one._ended.set()  # as if the process stood still
        one._renewer.join()
        end = time.monotonic() + 30
        while other.take(job, "it") is not None:
            assert time.monotonic() < end
            time.sleep(0.1)
        with pytest.raises(Lost, match="belongs to another process"):
            one.check([job])


def test_a_claim_whose_answer_was_lost_is_still_that_of_who_made_it(s3: Any) -> None:
    """The store has written it; asked again, it says that something is there."""
    job, asked = locate("s3://bucket/run.done.tasks/job"), s3.proxy.asked

    def lose(one: Any) -> Fault | None:
        if one.method == "PUT" and sum(other.method == "PUT" for other in asked) == 1:
            s3.put_object(Bucket="bucket", Key=one.path.split("bucket/")[1], Body=one.body)
            return Fault(is_lost=True)
        return None

    s3.proxy.spoil = lose
    with Claims() as one, Claims() as other:
        assert one.take(job, "it") is None
        one.check([job])
        assert other.take(job, "it") is not None


def test_tasks_of_a_batch_share_a_record_at_a_store(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "m.safetensors", {"w": RNG.normal(size=(4, 3)).astype(np.float32)})
    s3.upload_file(str(tmp_path / "m.safetensors"), "bucket", "in/model.safetensors")
    steps = [{"scale_": {"target": "w", "by": "${by}"}}]
    plan = {"by": 1.0, "inputs": ["s3://bucket/in"], "transforms": steps, "output": "s3://bucket/out"}
    jobs = {"plan": plan, "matrix": {"by": [0.1, 0.2, 0.3]}, "set": {"output": "s3://bucket/out/${job}"}}
    (tmp_path / "jobs.yaml").write_text(json.dumps(jobs))
    record = "s3://bucket/out/run.done"
    options = Options(sync=False, receipt=False)

    def statuses(**how: Any) -> list[str]:
        return [job.status for job in batch("jobs.yaml", options, record=record, **how).jobs]

    first = statuses(task="1/2")
    assert set(first) == {"done"}
    there = standing("jobs.yaml", options, record=record)
    assert there.counts == {"done": len(first), "failed": 0, "running": 0, "left": 3 - len(first)}
    with Claims() as claims:
        number = [job.status for job in there.jobs].index("left")
        claims.take(locate(f"{record}.tasks") / _key(number, options), "it")
        assert standing("jobs.yaml", options, record=record).counts["running"] == 1
    assert set(statuses(task="2/2")) == {"done"}
    assert statuses() == ["skipped"] * 3
    assert main(["batch", "jobs.yaml", "--summary", "--record", record]) == 0
    assert "3 jobs: 3 done, 0 failed, 0 running, 0 left" in capsys.readouterr().out
    assert not [name for name in objects(s3) if name.endswith(".claim")]
    assert not list(tmp_path.glob("*.done*"))
    # with records of their own, each on a disk that others do not see, they tell each other where the outputs go
    options = Options(sync=False, receipt=False, overwrite=True)
    for name, status in (("here.done", "done"), ("there.done", "skipped")):
        record = name
        assert set(statuses(task="1/2")) == {status}


def _key(number: int, options: Options) -> str:
    return key_of(load_jobs("jobs.yaml", ())[number].plan(Headers()), options)


@pytest.mark.parametrize("record", ["https://example.com/run.done", "hf://org/name/run.done"])
def test_a_record_where_nothing_can_be_written_is_refused(record: str, tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text('{"plan": {"inputs": ["m"], "output": "o"}, "matrix": {"output": ["o"]}}')
    with pytest.raises(StorageError, match="can only be read"):
        batch(str(tmp_path / "jobs.yaml"), record=record)


def test_the_jobs_of_a_pass_ask_a_store_once_for_what_all_of_them_factor_with(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = (800, 900)
    for name in ("base", "runs/0", "runs/1", "runs/2", "runs/3"):
        tensors = {f"{word}.weight": RNG.normal(size=shape).astype(np.float32) for word in ("up", "down")}
        write_checkpoint(tmp_path / f"{name}.safetensors", tensors)
    s3.upload_file("base.safetensors", "bucket", "base.safetensors")
    steps = [{"lora_extract": {"base": "base::(.+)", "tuned": "tuned::\\1", "to": "adapter", "rank": 2}}]
    inputs = ["base::s3://bucket/base.safetensors", "tuned::${tuned}"]
    plan = {"tuned": "", "inputs": inputs, "transforms": steps, "output": {"path": "", "format": "peft"}}
    jobs = {"plan": plan, "matrix": {"tuned": {"glob": "runs/*"}}, "set": {"output.path": "out/${job}"}}
    (tmp_path / "jobs.yaml").write_text(json.dumps(jobs))
    options = Options(sync=False, receipt=False)
    report = batch("jobs.yaml", options)
    assert [job.status for job in report.jobs] == ["done"] * 4
    ranges = [re.fullmatch(r"bytes=(\d+)-(\d+)", _range_of(one)) for one in s3.proxy.asked]
    taken = [int(found[2]) - int(found[1]) + 1 for found in ranges if found]
    assert 1 <= sum(taken) / (2 * 800 * 900 * 4) < 1.2  # and before that the beginning of each matrix
    (tmp_path / "local.yaml").write_text(json.dumps(jobs).replace("s3://bucket/", "").replace("out/", "local/"))
    batch("local.yaml", options)
    for number in range(4):
        name = f"{number}/adapter_model.safetensors"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def _range_of(one: Any) -> str:
    return next((value for name, value in one.headers.items() if name.lower() == "range"), "")
