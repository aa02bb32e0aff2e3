"""A batch whose jobs are each done by two processes together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pods import free_port
from running import write_checkpoint

from surgery_jax import Options, PlanError, batch

PLAN = """\
by: 1
inputs: [ "model.safetensors" ]
transforms:
  - scale_: { target: '.+', by: '${by}' }
  - assert: { shape: { of: w, is: [40, 30] } }
output: out
"""
JOBS = "plan: plan.yaml\nmatrix: { by: [2, 3] }\nset: { output: 'out/${job}.safetensors' }\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tensors = {name: np.random.default_rng(2).normal(size=(40, 30)).astype(np.float32) for name in "wxyz"}
    write_checkpoint(tmp_path / "model.safetensors", tensors)
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "jobs.yaml").write_text(JOBS)
    return tmp_path


def by_two(*words: str) -> list[tuple[int, str, str]]:
    """How a batch by two processes ends: exit code, stdout and stderr of each."""
    port, known = free_port(), os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "surgery_jax", "batch", "jobs.yaml", "--no-sync", "--quiet", "--distributed"]
    command += ["--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", *words, "--process-id"]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=known)
        for rank in (0, 1)
    ]
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=100)
        ended.append((process.returncode, out, err))
    return ended


def test_each_job_is_done_by_all_processes_and_is_finished_for_all(place):
    first, other = by_two("--json")
    assert (first[0], other) == (0, (0, "", "")), (first, other)
    told = json.loads(first[1])
    assert told["counts"] == {"done": 2}
    assert [share["bytes_written"] > 0 for share in told["processes"]] == [True, True]
    Path("alone.yaml").write_text(JOBS.replace("out/", "alone/"))
    batch("alone.yaml", Options(sync=False))
    for by in (2, 3):
        assert Path(f"out/{by}.safetensors").read_bytes() == Path(f"alone/{by}.safetensors").read_bytes()
    first, other = by_two()
    assert (first[0], first[1].splitlines()[-1], other) == (0, "2 jobs: 2 skipped", (0, "", ""))


def test_a_job_that_fails_ends_the_batch_for_all(place):
    Path("jobs.yaml").write_text(JOBS.replace("[2, 3]", "[x, 3]"))
    first, other = by_two()
    assert (first[0], other[0]) == (1, 1)
    assert first[1].splitlines()[-1] == "2 jobs: 1 failed, 1 not run"
    assert "error: job x: " in first[2]
    assert "error: job x: " in other[2]
    assert not Path("out").exists()


def test_what_cannot_be_done_together_is_refused(place):
    joint = Options(distributed=True, coordinator="127.0.0.1:9", num_processes=2, process_id=0)
    with pytest.raises(PlanError, match="--task gives each process jobs of its own"):
        batch("jobs.yaml", joint, task="1/2")
    with pytest.raises(PlanError, match="--check needs no other processes"):
        batch("jobs.yaml", joint, only_check=True)
    with pytest.raises(PlanError, match="without --distributed"):
        batch("jobs.yaml", Options(num_processes=2))
