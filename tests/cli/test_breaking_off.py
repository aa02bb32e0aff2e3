"""A run that is stopped, or that the disk refuses, leaves no output, and only what a run can go on with."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import environment

LONG = """\
inputs: [ long.safetensors ]
transforms:
  - assert: { iszero: big }
  - delete: { target: big }
output: deep/out
"""


def write_sparse(path, nbytes):
    """A checkpoint with one tensor of so many zeros, which take no room, and a small one."""
    table = {
        "big": {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [0, nbytes]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [nbytes, nbytes + 8]},
    }
    text = json.dumps(table).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + nbytes + 8)


# What a child process sets for itself before it becomes the command: forking a process that runs JAX is not safe.
DEFAULT_SIGNALS = "import signal; [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM)]"
SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))"


def after(preparation, *arguments):
    """The command that prepares its process and then runs ours."""
    become = "import os, sys; os.execv(sys.executable, [sys.executable, '-m', 'surgery_jax', *sys.argv[1:]])"
    return [sys.executable, "-c", f"{preparation}; {become}", *arguments]


def wait_for(condition, limit_s=60):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def is_reading(process, name):
    """Whether a process has had a file open for a while, not only for its header."""

    def is_open():
        links = Path(f"/proc/{process.pid}/fd")
        return any(str(link.readlink()).endswith(name) for link in links.iterdir() if link.is_symlink())

    with suppress(OSError):  # it closes files while we look
        if is_open():
            time.sleep(0.1)
            return is_open()
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_what_it_has_finished_and_says_so(number, code, place, plan, surgery):
    write_sparse(place / "long.safetensors", 48 << 30)
    plan(LONG)
    before = sorted(place.rglob("*"))
    command = after(DEFAULT_SIGNALS, "run", "plan.yaml", "--no-sync")
    process = subprocess.Popen(command, cwd=place, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: is_reading(process, "long.safetensors") or process.poll() is not None)
        assert list(place.glob("deep/.out*"))
        time.sleep(0.2)
        process.send_signal(number)
        process.send_signal(number)  # impatience does no harm
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, told
    left = sorted(place.glob("deep/.*"))
    kept = "what is finished of deep/out is kept: --resume goes on, surgery-jax clean removes it\n"
    assert told == "interrupted\n" + kept * bool(left)  # it depends on how far it came
    if left:
        done = surgery("clean", "deep/out")
        assert (done.returncode, done.stdout.count("removed")) == (0, 1), done.stderr
        (place / "deep").rmdir()
    assert sorted(place.rglob("*")) == before


MOVES = "inputs: [ a.safetensors ]\ntransforms:\n  - move: { from: norm, to: ln }\noutput: out\n"


def test_a_file_larger_than_allowed_is_3_and_leaves_nothing(place, plan):
    plan(MOVES)
    before = sorted(place.iterdir())
    command = after(SMALL_FILES, "run", "plan.yaml")
    done = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: out: cannot write there: File too large")
    assert sorted(place.iterdir()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_is_3_and_leaves_nothing(place, surgery):
    disk = place / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (disk / "filler").write_bytes(bytes(60 << 10))
        write_sparse(place / "c.safetensors", 32 << 10)
        done = surgery("convert", "c.safetensors", "disk/out")
        assert done.returncode == 3
        assert "not enough room on the disk" in done.stderr
        assert sorted(path.name for path in disk.iterdir()) == ["filler"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
