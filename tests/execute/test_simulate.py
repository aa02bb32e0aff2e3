"""Predicted runs have the tasks, shares and bytes of real ones; rates only add time."""

import time
from pathlib import Path

import numpy as np
import pytest
from make_headers import make_headers
from running import Bench

from surgery_jax import Options, PlanError, compile_plan, plan_of, run
from surgery_jax.execute.simulate import Machines, Simulation, parse_machines, simulate

from .test_hosts import STEPS, TENSORS, on_all, stars

MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, model=TENSORS)


@pytest.mark.parametrize("size", [1, 3])
def test_the_bytes_of_every_host_are_those_of_a_real_run(bench: Bench, size: int) -> None:
    options = Options(memory="64MiB", workers=3, sync=False)
    plan = plan_of(bench.plan(STEPS))
    forecast = simulate(compile_plan(plan, options).program, options, Machines(hosts=size))
    if size == 1:
        report = run(plan, options)
    else:
        report = on_all(stars(size), lambda star: run(plan, options, peers=star))[0]
    found = [(share.bytes_read, share.bytes_written) for share in report.processes]
    assert [(host.bytes_read, host.bytes_written) for host in forecast.hosts] == found


def forecast(bench: Bench, **machines: float) -> Simulation:
    options = Options(memory="64MiB", workers=4)
    program = compile_plan(plan_of(bench.plan(STEPS)), options).program
    return simulate(program, options, Machines(**machines))  # type: ignore[arg-type]


def test_without_bounds_only_the_start_takes_time(bench: Bench) -> None:
    assert forecast(bench, startup=2.5).wall_s == 2.5


def test_a_slow_storage_is_what_the_time_is_made_of(bench: Bench) -> None:
    slow, fast = forecast(bench, storage=1e6), forecast(bench, storage=2e6)
    through = slow.hosts[0].bytes_read + slow.hosts[0].bytes_written
    assert slow.wall_s == pytest.approx(through / 1e6) == pytest.approx(2 * fast.wall_s)
    assert slow.hosts[0].link_s == pytest.approx(slow.wall_s)


def test_hosts_share_the_storage_but_not_their_links(bench: Bench) -> None:
    together = forecast(bench, hosts=2, storage=2e6)
    apart = forecast(bench, hosts=2, network=1e6)
    assert together.wall_s == pytest.approx(apart.wall_s)
    assert sum(host.bytes_read for host in together.hosts) == forecast(bench).hosts[0].bytes_read
    assert together.balance == apart.balance >= 1


def test_devices_and_memory_decide_how_much_goes_on_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={f"w{i}": np.ones((600, 600), np.float32) for i in range(8)})
    program = compile_plan(plan_of(bench.plan([{"phlora_": {"target": "w.", "rank": 3}}]))).program
    ample, four = Options(workers=4), Machines(devices=4, compute=1e6)
    serial = simulate(program, ample, Machines(devices=1, compute=1e6)).wall_s
    assert simulate(program, ample, four).wall_s == pytest.approx(serial / 4)
    assert simulate(program, Options(workers=1), four).wall_s == pytest.approx(serial)
    room_for_one = Options(workers=4, memory="24MiB")
    assert simulate(program, room_for_one, four).wall_s == pytest.approx(serial)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("host=3", "did you mean hosts"),
        ("hosts=0", "a whole number above 0"),
        ("hosts=two", "a whole number above 0"),
        ("storage=3", "10GB/s"),
        ("storage=fast/s", "10GB/s"),
        ("startup=-1", "number of seconds"),
        ("devices", "a whole number above 0"),
    ],
)
def test_machines_that_cannot_be_are_clear_errors(text: str, words: str) -> None:
    with pytest.raises(PlanError) as refused:
        parse_machines(text)
    assert words in str(refused.value)


def test_machines_are_read_from_text() -> None:
    found = parse_machines("hosts=64, devices=4,storage=10GB/s,network=none,compute=1.5GiB/s,startup=3s")
    assert found == Machines(64, 4, 10 * 2.0**30, float("inf"), 1.5 * 2**30, startup=3.0)


def test_a_mixture_of_experts_of_671_billion_parameters_is_planned_for_64_hosts(tmp_path: Path) -> None:
    count, nbytes = make_headers(tmp_path / "v3")
    assert count == 90_427 and nbytes > 671e9
    steps = [
        {"copy": {"from": r"(.+)\.mlp\.experts\.(\d+)\.(.+)", "to": r"\1.mlp.experts.1000\2.\3"}},  # twice the experts
        {"scale_": {"target": r".+\.experts\.1000\d+\..+\.weight_scale_inv", "by": 0.5}},
        {"cast_": {"target": r".+\.mlp\.gate\.weight", "to": "float32"}},
    ]
    plan = plan_of({"inputs": [str(tmp_path / "v3")], "transforms": steps, "output": str(tmp_path / "o")})
    options = Options(memory="16GiB", workers=16)
    began = time.process_time()
    machines = parse_machines("hosts=64,devices=4,storage=100GB/s,network=10GB/s,compute=50GB/s")
    forecast = simulate(compile_plan(plan, options).program, options, machines)
    assert time.process_time() - began < 30
    assert sum(host.bytes_read for host in forecast.hosts) < 2.02 * nbytes
    assert forecast.balance < 1.05
    assert 20 < forecast.wall_s < 40  # 2.6 TB at 100 GB/s
