"""How processes come together: whom they wait for is said, strangers hold up nobody, and all learn why it fails."""

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from pods import Pod, Stranger, free_port, wait_for, write_endless
from running import write_checkpoint

from surgery_jax import Options, PlanError, StorageError, SurgeryError
from surgery_jax.core.interrupts import Interrupted, watched
from surgery_jax.hosts import cluster
from surgery_jax.hosts.cluster import meet
from surgery_jax.hosts.gathering import MOST_GUESTS
from surgery_jax.hosts.meeting import MeetingPlace, Patience


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def join(pool, port, rank, size=2, limit_s=20, secret=b"secret", notify=None):
    """A process as a thread of this one that comes to the meeting."""
    place = MeetingPlace(rank, size, "127.0.0.1", port, secret)
    return pool.submit(lambda: meet(place, Patience(place, limit_s, notify)))


def is_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def assert_together(stars):
    """That processes exchange messages; then let them leave."""
    with ThreadPoolExecutor(len(stars)) as pool:
        found = list(pool.map(lambda star: (star.gather(b"%d" % star.rank), star.share(b"all"))[0], stars))
        assert found[0] == [b"%d" % rank for rank in range(len(stars))]
        list(pool.map(lambda star: star.__exit__(None, None, None), stars))


# ------------------------------------------------------------------------------------------------------- strangers


@pytest.mark.parametrize("kind", Stranger.KINDS)
def test_a_stranger_is_turned_away_and_the_run_begins(kind, port, pool):
    first = join(pool, port, 0)
    wait_for(lambda: is_open(port))
    stranger = Stranger(port, kind)
    second = join(pool, port, 1)
    assert_together([first.result(), second.result()])
    assert kind == "closes" or stranger.is_turned_away()
    stranger.close()


def test_a_stranger_that_says_nothing_has_two_seconds_and_a_slow_one_no_more(port, pool):
    first = join(pool, port, 0)
    wait_for(lambda: is_open(port))
    strangers = [Stranger(port, "silent"), Stranger(port, "half an answer")]
    started = time.monotonic()

    def drip():
        while True:
            try:
                strangers[1].drip()
            except OSError:
                return
            time.sleep(0.3)

    slow = threading.Thread(target=drip)
    slow.start()
    assert all(stranger.is_turned_away() for stranger in strangers)
    assert time.monotonic() - started < 10  # what drips would take 25 to be whole
    slow.join()
    for stranger in strangers:
        stranger.close()
    second = join(pool, port, 1)
    assert_together([first.result(), second.result()])


def test_a_crowd_of_strangers_neither_keeps_the_others_out_nor_starts_the_wait_anew(port, pool):
    first = join(pool, port, 0, size=3, limit_s=5)
    wait_for(lambda: is_open(port))
    started = time.monotonic()
    strangers = []
    with suppress(OSError):  # more and more of them, until process 0 gives up
        for number in range(4 * MOST_GUESTS):
            strangers.append(Stranger(port, Stranger.KINDS[number % 3]))
            if number == 20:
                second = join(pool, port, 1, size=3)
    with pytest.raises(StorageError) as late:
        first.result()
    assert 4 < time.monotonic() - started < 30
    assert "missing: process 2" in str(late.value) and "connections that do not belong to the run" in str(late.value)
    with pytest.raises(SurgeryError, match="missing: process 2"):
        second.result()
    for stranger in strangers:
        stranger.close()


def test_whoever_does_not_know_the_secret_is_told_so_and_process_0_waits_on(port, pool):
    first = join(pool, port, 0)
    with pytest.raises(PlanError) as refused:
        join(pool, port, 1, secret=b"another").result()
    assert "another secret" in str(refused.value) and "SURGERY_JAX_SECRET" in str(refused.value)
    assert not first.done()
    second = join(pool, port, 1)
    assert_together([first.result(), second.result()])


def test_a_process_does_not_take_whoever_listens_for_process_0(port, pool):
    """One that waits for the run is not led astray by a server of something else, which goes away in the end."""
    server = socket.create_server(("127.0.0.1", port))
    second = join(pool, port, 1)
    for said in (b"HTTP/1.1 400 Bad Request\r\n" * 9, bytes(500), b""):
        connection, _ = server.accept()
        connection.sendall(said)
        connection.close()
    server.close()
    first = join(pool, port, 0)
    assert_together([first.result(), second.result()])


# ---------------------------------------------------------------------------------------------- mistakes and losses


def test_two_processes_with_one_number_and_other_numbers_of_processes_are_named(port, pool):
    first, second = join(pool, port, 0, size=3), join(pool, port, 1, size=3)
    time.sleep(0.5)
    with pytest.raises(PlanError, match="process 0 has a process 1 already"):
        join(pool, port, 1, size=3).result()
    for process in (first, second):
        with pytest.raises(SurgeryError, match="two processes have the number 1") as error:
            process.result()
        assert error.value.exit_code == 2
    first = join(pool, port, 0, size=3)
    with pytest.raises(PlanError, match="another number of processes than 2"):
        join(pool, port, 1, size=2).result()
    with pytest.raises(PlanError, match=r"process 1 on .* differs in --num-processes"):
        first.result()


def test_a_port_that_is_taken_is_a_clear_error(port, pool):
    with socket.create_server(("127.0.0.1", port)), pytest.raises(StorageError) as refused:
        join(pool, port, 0).result()
    assert f"127.0.0.1:{port}" in str(refused.value) and "--coordinator takes another port" in str(refused.value)


def test_a_wish_to_stop_that_lost_its_exception_ends_the_wait(port, pool):
    lines = []
    second = join(pool, port, 1, size=3)

    def stop(line):
        lines.append(line)
        watch.asked = signal.SIGTERM

    with watched() as watch, pytest.raises(Interrupted):
        place = MeetingPlace(0, 3, "127.0.0.1", port, b"secret")
        meet(place, Patience(place, 20, stop))
    assert lines == [f"waiting for process 2 of 3 to meet at 127.0.0.1:{port}"]
    with pytest.raises(SurgeryError, match=r"process 0 on .* stopped: it was interrupted by SIGTERM"):
        second.result(timeout=5)


# --------------------------------------------------------------------------------------------- the command, for real


@pytest.fixture
def pod(tmp_path):
    with Pod(3, write_endless(tmp_path), cwd=tmp_path) as pod:
        yield pod


def test_who_is_missing_and_where_is_said_after_two_seconds_and_at_the_end(pod):
    pod.start(0, 1, more=["--join-timeout", "3.5"])
    started = time.monotonic()
    waits = f"waiting for process 2 of 3 to meet at 127.0.0.1:{pod.port}"
    wait_for(lambda: waits in pod.said(0) and waits in pod.said(1))
    for ended in pod.ends(within_s=30):
        assert ended.code == 3 and ended.out == ""
        assert "not all of 3 processes came within 3.5 seconds; missing: process 2" in ended.err
        assert "--join-timeout" in ended.err and "Traceback" not in ended.err
    assert time.monotonic() - started > 3


def test_a_process_without_process_0_says_so(pod):
    pod.start(1, more=["--join-timeout", "2.5"])
    ended = pod.end(1, within_s=30)
    assert ended.code == 3 and ended.err.startswith("waiting for process 0 of 3") and "refused" in ended.err
    assert "missing: process 0" in ended.err


@pytest.mark.parametrize(
    ("rank", "number", "code"),
    [(0, signal.SIGTERM, 143), (1, signal.SIGKILL, -9)],
)
def test_one_that_is_stopped_while_it_waits_ends_at_once_and_the_other_names_it(pod, rank, number, code):
    pod.start(0, 1)
    wait_for(lambda: all("waiting for process 2" in pod.said(waiting) for waiting in (0, 1)))
    pod.signal(rank, number)
    stopped, other = pod.end(rank, within_s=10), pod.end(1 - rank, within_s=10)
    assert stopped.code == code and (code < 0 or stopped.err.splitlines()[1:] == ["interrupted"])
    assert other.code == 3 and f"process {rank}" in other.err and "Traceback" not in other.err
    assert ("was lost" if code < 0 else f"interrupted by {number.name}") in other.err


def test_only_who_has_the_secret_of_the_environment_takes_part(pod):
    pod.start(0, SURGERY_JAX_SECRET="a").start(1, SURGERY_JAX_SECRET="b")
    ended = pod.end(1, within_s=60)
    assert ended.code == 2 and "another secret" in ended.err
    assert pod.processes[0].poll() is None


def test_what_slurm_says_of_the_processes_is_found(tmp_path):
    write_checkpoint(tmp_path / "model.safetensors", {"a": np.arange(6, dtype=np.float32)})
    plan = {"inputs": ["model.safetensors"], "transforms": [{"scale_": {"target": "a", "by": 2}}], "output": "out"}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    with Pod(2, "plan.yaml", "--json", cwd=tmp_path, place=False, **slurm) as pod:
        for rank in range(2):
            own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "JAX_COORDINATOR_PORT": str(pod.port)}
            pod.start(rank, **own)
        ended = pod.ends(60)
    assert [process.code for process in ended] == [0, 0], ended
    assert [share["process"].split()[:2] for share in json.loads(ended[0].out)["processes"]] == [
        ["process", "0"],
        ["process", "1"],
    ]


def test_without_a_cluster_it_is_said_how_to_name_the_processes():
    with pytest.raises(PlanError, match="no cluster was found") as refused:
        cluster.join(Options(distributed=True))
    assert "no address of process 0, no number of processes, no id of this one" in str(refused.value)
    assert "--coordinator HOST:PORT --num-processes N --process-id I" in str(refused.value)
