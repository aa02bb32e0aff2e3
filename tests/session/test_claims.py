"""Claims on jobs: one at a time, renewed, taken over when nobody renews them, and noticed by who has lost one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from pods import wait_for

from surgery_jax.session.claims import Claims, Lost, claim_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tasks"


@pytest.fixture
def claims() -> Iterator[Claims]:
    with Claims() as made:
        yield made


def foreign(folder: Path, key: str, number: int = 1, lease: float = 0.2, **said: object) -> Path:
    """A claim of a process on another machine."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{key}.{number}.claim"
    content = {"state": "held", "host": "node7", "process": 42, "boot": "another", "lease": lease, "why": ""} | said
    path.write_text(json.dumps(content))
    return path


CHILD = """
import sys
from pathlib import Path
from surgery_jax.session.claims import Claims, Lost
job = Path(sys.argv[1]) / "a"
with Claims(float(sys.argv[2])) as claims:
    claims.take(job, "a")
    print("taken", flush=True)
    sys.stdin.readline()
    try:
        claims.check([job])
        print("held")
        claims.done(job)
    except Lost:
        print("Lost")
        claims.fail(job, "lost")
"""


@contextmanager
def other_process(folder: Path, lease: float) -> Iterator[subprocess.Popen[str]]:
    """A process that has claimed the job `a`, and tells at a line of input whether it still holds it."""
    command = [sys.executable, "-c", CHILD, str(folder), str(lease)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "taken\n"
            yield child
        finally:
            child.kill()


def state(folder: Path, key: str) -> str:
    found = claim_of(folder / key)
    return "none" if found is None else found.state


def taken_in(claims: Claims, job: Path, seconds: float = 10.0) -> float:
    """After how many seconds a job can be had."""
    began = time.monotonic()
    while claims.take(job, job.name) is not None:
        assert time.monotonic() - began < seconds
        time.sleep(0.01)
    return time.monotonic() - began


def test_a_job_is_claimed_by_one_at_a_time(folder, claims):
    assert claims.take(folder / "a", "a") is None
    with Claims() as others:
        held = others.take(folder / "a", "a")
        assert held is not None
        assert (held.process, held.state, held.is_dead) == (os.getpid(), "held", False)
        assert others.take(folder / "b", "b") is None
        assert claims.take(folder / "b", "b") is not None
        claims.check([folder / "a"])
        others.check([folder / "b"])


def test_of_many_who_want_a_job_at_once_one_gets_it(folder):
    barrier = threading.Barrier(8)

    def want(number: int) -> int:
        with Claims() as own:
            barrier.wait()
            got = [key for key in "abcdefgh" if own.take(folder / key, key) is None]
            barrier.wait()
            return len(got)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(want, range(8))) == 8
    assert [state(folder, key) for key in "abcdefgh"] == ["left"] * 8


def test_what_is_done_leaves_no_claim_and_what_failed_says_why(folder, claims):
    for key in "abc":
        claims.take(folder / key, key)
    claims.done(folder / "a")
    claims.fail(folder / "b", "no such file")
    claims.leave(folder / "c")
    assert [state(folder, key) for key in "abc"] == ["none", "failed", "left"]
    assert claim_of(folder / "b").why == "no such file"
    with Claims() as others:
        assert [others.take(folder / key, key) for key in "abc"] == [None] * 3
        for key in "abc":
            others.done(folder / key)
    assert list(folder.iterdir()) == []


def test_the_claim_of_a_process_that_has_ended_is_free_at_once(folder, claims):
    with other_process(folder, lease=1000) as child:
        assert claims.take(folder / "a", "a") is not None
        child.kill()
        child.wait()
        assert claim_of(folder / "a").is_dead
        assert claims.take(folder / "a", "a") is None
        claims.check([folder / "a"])


def test_a_lease_that_nobody_renews_runs_out_and_clocks_do_not_matter(folder, claims):
    path = foreign(folder, "a", lease=0.5)
    os.utime(path, (0, 0))  # its clock is decades behind
    assert 0.4 <= taken_in(claims, folder / "a") < 5
    claims.check([folder / "a"])


def test_a_lease_that_is_renewed_does_not_run_out(folder, claims):
    path = foreign(folder, "a", lease=0.3)
    for second in range(8):
        assert claims.take(folder / "a", "a") is not None
        time.sleep(0.1)
        os.utime(path, (second, second))


def test_claims_renew_themselves(folder):
    with Claims(lease=0.6) as own:
        own.take(folder / "a", "a")
        before = claim_of(folder / "a").seen
        wait_for(lambda: claim_of(folder / "a").seen > before)
        own.check([folder / "a"])


def test_who_stands_still_loses_the_job_and_does_not_disturb_the_next_one(folder, claims):
    with other_process(folder, lease=0.5) as child:
        child.send_signal(signal.SIGSTOP)
        assert taken_in(claims, folder / "a") > 0.2
        child.send_signal(signal.SIGCONT)
        told, _ = child.communicate("\n", timeout=20)
        assert told == "Lost\n"
        claims.check([folder / "a"])
        assert state(folder, "a") == "held"
        claims.done(folder / "a")
    assert list(folder.iterdir()) == []


def test_who_stood_still_goes_on_if_nobody_has_taken_the_job(folder):
    with other_process(folder, lease=0.5) as child:
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.7)
        child.send_signal(signal.SIGCONT)
        told, _ = child.communicate("\n", timeout=20)
        assert told == "held\n"


def test_a_job_that_another_has_finished_meanwhile_is_lost(folder):
    with Claims() as own:
        own.take(folder / "a", "a")
        (folder / "a.1.claim").unlink()
        with pytest.raises(Lost):
            own.check([folder / "a"])


def test_a_claim_that_is_just_being_made_is_respected(folder, claims):
    folder.mkdir(exist_ok=True)
    (folder / "a.1.claim").write_bytes(b"")
    assert claims.take(folder / "a", "a") is not None
