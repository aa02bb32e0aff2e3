"""Bytes reach their files whole, however the system takes them, and no other file ever."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, simulated, write_checkpoint

from surgery_jax import Options, StorageError, plan_of, run
from surgery_jax.io.openfiles import SPARE, room_for_files
from surgery_jax.storage.files import write_whole

MIB = 1 << 20
TENSORS = {
    "long": np.random.default_rng(1).integers(0, 99, 700_000).astype(np.int32),
    "odd": np.random.default_rng(2).standard_normal((401, 333)).astype(np.float32),
    "few": np.arange(7, dtype=np.int16),
}
STEPS: list[Any] = [{"scale_": {"target": "odd", "by": 1 / 3}}]
OUTPUTS: dict[str, Any] = {
    "a file": "out.safetensors",
    "torch": {"path": "out.pt", "format": "torch"},
    "torch shards": {"path": "out", "format": "torch", "shard": "1MB"},
    "compressed chunks": {"path": "out", "format": "orbax", "options": {"compression": "zstd", "chunk": "64KB"}},
    "one stream": {"path": "out.msgpack", "format": "flax"},
}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, m=TENSORS)


def written(bench: Bench, output: Any, **options: Any) -> dict[str, bytes]:
    """All bytes of an output, by file."""
    plan = plan_of(bench.plan(STEPS, output=False) | {"output": output})
    run(plan, Options(overwrite=True, receipt=False, **options))
    found = [path for path in bench.root.rglob("*") if path.is_file() and path.name != "m.safetensors"]
    # what tells of the moment is no matter of writing
    return {str(path): path.read_bytes() for path in found if path.name != "_CHECKPOINT_METADATA"}


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_a_system_that_takes_few_bytes_at_a_time_gets_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, output: Any, sync: bool
) -> None:
    expected = written(bench, output, sync=sync)
    pwrite = os.pwrite
    calls = 0

    def short(descriptor: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        view = memoryview(data).cast("B")
        return pwrite(descriptor, view[: max(1, len(view) * 3 // 4)], offset)

    monkeypatch.setattr(os, "pwrite", short)
    assert written(bench, output, sync=sync) == expected
    assert calls > 3


def test_a_disk_that_takes_nothing_more_is_an_error_and_no_endless_wait(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(StorageError, match="takes no more"):
        written(bench, "out.safetensors")
    assert bench.left() == ["m.safetensors"]


def test_a_file_system_that_refuses_direct_writes_midway_gets_all_bytes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(bench, "out.safetensors")
    pwrite, granted = os.pwrite, iter(range(2))

    def refusing(descriptor: int, data: Any, offset: int) -> int:
        is_direct = fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0)
        if is_direct and next(granted, None) is None:
            raise OSError(errno.EINVAL, "no")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    assert written(bench, "out.safetensors", workers=8, memory="8MiB") == expected


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
import surgery_jax
signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever started the tests may have ignored
pwrite, reached, go_on = os.pwrite, threading.Event(), threading.Event()

def held(descriptor, data, offset):
    if threading.current_thread().name.startswith("surgery-"):
        reached.set()
        go_on.wait(60)
    return pwrite(descriptor, data, offset)

os.pwrite = held

def impatient():
    reached.wait(60)
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.3)

threading.Thread(target=impatient, daemon=True).start()
try:
    surgery_jax.run(surgery_jax.load_plan("plan.yaml"), surgery_jax.Options(workers=3, memory="8MiB"))
except KeyboardInterrupt:
    pass
else:
    sys.exit("nobody interrupted it")
assert not go_on.is_set()
before = {path: b"mine %d" % number for number, path in enumerate(Path(f"own.{n}") for n in range(40))}
streams = {path: path.open("wb", buffering=0) for path in before}  # these get the numbers of what is closed
for path, content in before.items():
    streams[path].write(content)
go_on.set()
for thread in threading.enumerate():
    if thread.name.startswith("surgery-"):
        thread.join(60)
        assert not thread.is_alive()
for path, content in before.items():
    assert path.read_bytes() == content, (path, "was written to by a worker")
links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
open_now = {str(link.readlink()) for link in links if link.exists()}
assert not any("surgery-" in name or name.endswith(".safetensors") for name in open_now), open_now
print("unharmed", sorted(path for path in os.listdir() if not path.startswith("own")))
"""


@pytest.mark.parametrize("output", ["out.safetensors", {"path": "out", "shard": "2KB"}], ids=["a file", "many files"])
def test_workers_that_nobody_waits_for_write_to_no_file_of_the_program(bench: Bench, output: Any) -> None:
    tensors = {f"w{n}": np.full(300, n, np.float32) for n in range(300)} | {"big": np.ones(3 * MIB, np.float32)}
    write_checkpoint(bench.root / "m.safetensors", tensors)
    content = bench.plan([{"scale_": {"target": ".*", "by": 2}}], output=False) | {"output": output}
    (bench.root / "plan.yaml").write_text(json.dumps(content))
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, cwd=bench.root)
    assert done.stdout == "unharmed ['m.safetensors', 'plan.yaml']\n", done.stderr[-2000:]


MANY_DEVICES = """
import json, jax
from pathlib import Path
from running import read_checkpoint
from surgery_jax import load_plan, run
run(load_plan("plan.yaml"))
found = read_checkpoint(Path("out.safetensors"))
print(json.dumps([jax.local_device_count(), float(found["w"].sum())]))
"""


def test_there_may_be_any_number_of_devices(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(bench.root / "m.safetensors", {"w": np.ones(99, np.float32)})
    content = bench.plan([{"scale_": {"target": ".*", "by": 2}}], output=False) | {"output": "out.safetensors"}
    (bench.root / "plan.yaml").write_text(json.dumps(content))
    assert simulated(MANY_DEVICES, bench.root, devices=65) == [65, 198.0]


def test_a_text_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted(descriptor: int) -> None:
        happened.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def named(self: Path, target: Path) -> Path:
        happened.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", named)
    write_whole(str(tmp_path / "text"), "ü\n" * 9000)
    assert happened == ["file", "name", "directory"]
    assert (tmp_path / "text").read_text() == "ü\n" * 9000
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "text").stat().st_mode) == 0o666 & ~umask


def test_as_many_files_as_a_run_needs_may_be_open_and_then_as_many_as_before() -> None:
    def soft() -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
    try:
        first, second = ExitStack(), ExitStack()
        first.enter_context(room_for_files(200))
        assert soft() == SPARE + 200
        second.enter_context(room_for_files(300))
        assert soft() == SPARE + 500
        first.close()  # in the order in which runs end, not in that in which they began
        assert soft() == SPARE + 300
        second.close()
        assert soft() == 600
        with room_for_files(300):
            resource.setrlimit(resource.RLIMIT_NOFILE, (700, before[1]))
        assert soft() == 700, "somebody else has set it meanwhile"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
