"""A run of several processes, one of which was lost, is gone on with by one, or by more."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pods import Pod, wait_for
from running import write_checkpoint

from surgery_jax import Observer, Options, load_plan, run
from surgery_jax.execute.tasks import Task

STEPS = [{"scale_": {"target": r"w\d*[02468]", "by": 0.3}}, {"move": {"from": r"w(\d+)", "to": r"v.\1"}}]


def journals(root: Path) -> list[Path]:
    return [path for path in root.glob(".out*/done-*") if path.stat().st_size]


@pytest.mark.parametrize(("lost", "size"), [(0, 3), (1, 1)])
def test_a_run_that_lost_a_process_is_gone_on_with_by_others(tmp_path: Path, lost: int, size: int) -> None:
    draw = np.random.default_rng(2)
    tensors = {f"w{n}": draw.standard_normal(400_000 + n).astype(np.float32) for n in range(60)}
    write_checkpoint(tmp_path / "m.safetensors", tensors)
    plan = {"inputs": ["m.safetensors"], "transforms": STEPS, "output": {"path": "out", "shard": "20MB"}}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "surgery_jax", "run", "plan.yaml", "--quiet", "--no-summary", "--no-receipt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "out").rename(tmp_path / "whole")
    with Pod(2, "plan.yaml", "--quiet", "--no-receipt", "--memory", "3MiB", "--workers", "1", cwd=tmp_path) as pod:
        pod.start()
        wait_for(lambda: journals(tmp_path), 90)
        pod.signal(lost, signal.SIGKILL)
        ends = pod.ends(within_s=60)
    assert not (tmp_path / "out").exists() and journals(tmp_path)
    assert ends[1 - lost].code == 3
    if lost:
        assert "is kept: --resume goes on" in ends[0].err
    if size == 1:
        done = subprocess.run([*command, "--resume", "--json"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["bytes_resumed"] > 0
    else:
        with Pod(size, "plan.yaml", "--resume", "--no-receipt", cwd=tmp_path) as pod:
            pod.start()
            assert [ended.code for ended in pod.ends(within_s=90)] == [0] * size
            assert "were there already" in pod.said(0)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not list(tmp_path.glob(".out*"))


class Stop(Observer):
    """Breaks a run off when so many tasks are done."""

    def __init__(self, after: int) -> None:
        self._left = after

    def task_done(self, task: Task) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


def test_chunks_that_are_compressed_already_are_gone_on_with_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {f"w{n}": np.full(500_000 + n, n, np.float32) for n in range(16)}
    write_checkpoint(tmp_path / "m.safetensors", tensors)
    output = {"path": "out", "format": "orbax", "options": {"compression": "zstd"}}
    plan = {"inputs": ["m.safetensors"], "transforms": STEPS[:1], "output": output}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    options = Options(workers=1, memory="12MiB", receipt=False)
    run(load_plan("plan.yaml"), options)
    (tmp_path / "out").rename(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(load_plan("plan.yaml"), options, observers=[Stop(7)])
    chunks = [path.stat().st_size for path in tmp_path.glob(".out*/new/w*/[0-9]*")]
    assert min(chunks) < 10_000 and max(chunks) >= 2_000_000  # some are compressed, some are not
    with Pod(2, "plan.yaml", "--resume", "--no-receipt", cwd=tmp_path) as pod:
        pod.start()
        ends = pod.ends(within_s=90)
        assert [ended.code for ended in ends] == [0, 0], ends
        assert "were there already" in pod.said(0)
    for path in (path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        made = tmp_path / "out" / path.relative_to(tmp_path / "whole")
        assert made.read_bytes() == path.read_bytes(), path
    assert not list(tmp_path.glob(".out*"))
