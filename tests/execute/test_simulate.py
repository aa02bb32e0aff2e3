"""Predicted runs have the tasks, shares and bytes of real ones; rates only add time."""

import os
from pathlib import Path

import numpy as np
import pytest
from make_headers import make_headers
from running import Bench, write_checkpoint

from surgery_jax import BudgetError, Options, PlanError, batch, compile_plan, load_plan, plan_of, run
from surgery_jax.io.pagecache import is_cached
from surgery_jax.reports.simulate import Machines, Simulation, parse_machines, simulate, simulate_batch
from surgery_jax.session.rehearsal import rehearsed
from surgery_jax.storage.places.found import place_of

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
    (one,) = simulate(compile_plan(plan, options).passes, options, Machines(hosts=size)).passes
    report = on_all(stars(size), lambda star: run(plan, options, peers=star))[0] if size > 1 else run(plan, options)
    found = [(share.bytes_read, share.bytes_written) for share in report.processes]
    assert [(host.bytes_read, host.bytes_written) for host in one.hosts] == found


@pytest.mark.parametrize("size", [1, 3])
def test_a_pass_that_answers_the_questions_of_a_plan_is_predicted_too(bench: Bench, size: int) -> None:
    """Everything changed and all energy is to be kept, so that the bounds on the ranks are what the data answers."""
    weights = {f"{name}.weight": array for name, array in TENSORS.items() if array.ndim == 2}
    noise = np.random.default_rng(8)
    tuned = {
        name: array + noise.standard_normal(array.shape).astype(np.float32) for name, array in sorted(weights.items())
    }
    for alias, tensors in (("base", weights), ("tuned", tuned)):
        write_checkpoint(bench.root / f"{alias}.safetensors", tensors)
    step = {"lora_extract": {"base": "base::(.+)", "tuned": r"tuned::\1", "to": "adapter", "energy": 1.0}}
    inputs = ["base::base.safetensors", "tuned::tuned.safetensors"]
    plan = plan_of({"inputs": inputs, "transforms": [step], "output": {"path": "adapter", "format": "peft"}})
    options = Options(workers=3, sync=False)
    first, last = simulate(compile_plan(plan, options).passes, options, Machines(hosts=size)).passes
    report = on_all(stars(size), lambda star: run(plan, options, peers=star))[0] if size > 1 else run(plan, options)
    assert sum(before.bytes_read for before in first.hosts) == 2 * sum(array.nbytes for array in weights.values())
    for host, before, share in zip(last.hosts, first.hosts, report.processes, strict=True):
        assert before.bytes_written == 0
        assert before.bytes_read + host.bytes_read == share.bytes_read
        assert host.bytes_written == share.bytes_written


def forecast(bench: Bench, **machines: float) -> Simulation:
    options = Options(memory="64MiB", workers=4)
    passes = compile_plan(plan_of(bench.plan(STEPS)), options).passes
    return simulate(passes, options, Machines(**machines))  # type: ignore[arg-type]


def test_without_bounds_only_the_start_takes_time(bench: Bench) -> None:
    assert forecast(bench, startup=2.5).wall_s == 2.5


def test_a_slow_storage_is_what_the_time_is_made_of(bench: Bench) -> None:
    slow, fast = forecast(bench, storage=1e6), forecast(bench, storage=2e6)
    (host,) = slow.passes[0].hosts
    through = host.bytes_read + host.bytes_written
    assert slow.wall_s == pytest.approx(through / 1e6) == pytest.approx(2 * fast.wall_s)
    assert host.link_s == pytest.approx(slow.wall_s)


def test_hosts_share_the_storage_but_not_their_links(bench: Bench) -> None:
    together = forecast(bench, hosts=2, storage=2e6)
    apart = forecast(bench, hosts=2, network=1e6)
    assert together.wall_s == pytest.approx(apart.wall_s)
    (alone,) = forecast(bench).passes[0].hosts
    assert sum(host.bytes_read for host in together.passes[0].hosts) == alone.bytes_read
    assert together.passes[0].balance == apart.passes[0].balance >= 1


def test_devices_and_memory_decide_how_much_goes_on_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={f"w{i}": np.ones((600, 600), np.float32) for i in range(8)})
    passes = compile_plan(plan_of(bench.plan([{"phlora_": {"target": "w.", "rank": 3}}]))).passes
    ample, four = Options(workers=4), Machines(devices=4, compute=1e6)
    serial = simulate(passes, ample, Machines(devices=1, compute=1e6)).wall_s
    assert simulate(passes, ample, four).wall_s == pytest.approx(serial / 4)
    assert simulate(passes, Options(workers=1), four).wall_s == pytest.approx(serial)
    room_for_one = simulate(passes, Options(workers=4, memory="24MiB"), four)
    assert room_for_one.wall_s == pytest.approx(serial)
    assert room_for_one.passes[0].hosts[0].peak_buffer_bytes <= 24 * MIB
    with pytest.raises(BudgetError):  # as the run itself
        simulate(passes, Options(memory="8MiB"), four)


def test_work_on_whole_tensors_has_a_rate_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={f"w{i}": np.ones((600, 600), np.float32) for i in range(2)})
    steps = [{"scale_": {"target": "w0", "by": 2}}, {"phlora_": {"target": "w1", "rank": 3}}]
    passes = compile_plan(plan_of(bench.plan(steps))).passes
    both = 2 * 4 * 600 * 600

    def busy(**rates: float) -> float:
        return simulate(passes, Options(), Machines(**rates)).passes[0].hosts[0].device_s  # type: ignore[arg-type]

    assert busy(whole=1e6) == pytest.approx(both / 1e6)
    assert busy(compute=1e6) - busy(compute=1e6, whole=4e6) == pytest.approx(both / 1e6 - both / 4e6)


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


# ------------------------------------------------------------------------------------- large models, headers alone


def bytes_read_so_far() -> int:
    """Bytes that this process has asked the system for."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


@pytest.mark.parametrize(("kind", "hosts"), [("upcycle", 64), ("extract", 4)])
def test_plans_for_large_mixtures_of_experts_are_predicted_from_headers_alone(
    kind: str, hosts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plans are those that benchmarks/simulate.py predicts for 671 billion parameters; this model is smaller."""
    plan = load_plan(Path(__file__).parents[2] / "benchmarks" / "plans" / f"{kind}_671b.yaml")
    names = {"upcycle": ["671b"], "extract": ["671b-base", "671b-tuned"]}[kind]
    sizes = [make_headers(tmp_path / name, layers=8, experts=48, is_wide=kind == "extract") for name in names]
    assert all(nbytes > 12e9 for _, nbytes in sizes)
    files = [path for name in names for path in (tmp_path / name).iterdir()]
    assert sum(path.stat().st_blocks * 512 for path in files) < 2 * MIB  # nothing but headers takes room
    monkeypatch.chdir(tmp_path)

    before = bytes_read_so_far()
    options = Options(memory="64GiB", workers=16)
    compiled = compile_plan(plan, options)
    machines = parse_machines(f"hosts={hosts},devices=4,storage=10GB/s,compute=50GB/s,whole=1GB/s")
    found = simulate(compiled.passes, options, machines)
    assert bytes_read_so_far() - before < 16 * MIB

    assert len(found.passes) == len(compiled.passes) == {"upcycle": 1, "extract": 2}[kind]
    for one, program in zip(found.passes, compiled.passes, strict=True):
        assert len(one.hosts) == hosts
        assert sum(host.bytes_read for host in one.hosts) == program.bytes_moved + program.bytes_read
        assert sum(host.bytes_written for host in one.hosts) == program.bytes_moved + program.bytes_computed
        assert all(host.peak_buffer_bytes <= options.memory_bytes for host in one.hosts)
        assert one.balance < 1.1
    assert found.passes[-1].hosts[0].bytes_written > 0
    least = sum(program.bytes_moved + program.bytes_read for program in compiled.passes)
    assert least >= 0.99 * len(compiled.passes) * sum(nbytes for _, nbytes in sizes)
    assert found.wall_s > least / (10 << 30)


BULK = """\
plan:
  tuned: x
  inputs: [ "base::base.safetensors", "tuned::${tuned}" ]
  transforms:
    - STEP
  output: { path: out, FORMAT }
matrix: { tuned: { glob: 'runs/*' } }
set: { output.path: 'out/${job}' }
"""
EXTRACT = "lora_extract: { base: 'base::(.+)', tuned: 'tuned::\\1', to: adapter, rank: 2 }"
ADD = "add_: { from: 'base::(.+)', to: 'tuned::\\1' }\n    - prefixes: { mode: remove, alias: base }"


@pytest.fixture
def bulk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and ten fine-tunes of it, with matrices that are large enough to be read past the page cache."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(4)
    for path in ["base", *(f"runs/{number}" for number in range(10))]:
        tensors = {f"{name}.weight": rng.normal(size=(300, 300)).astype(np.float32) for name in "ab"}
        write_checkpoint(tmp_path / f"{path}.safetensors", tensors)
    return tmp_path


@pytest.mark.parametrize(("step", "format", "passes"), [(EXTRACT, "peft", 2), (ADD, "safetensors", 1)])
def test_a_batch_on_machines_reads_and_writes_what_its_tasks_do(
    bulk: Path, step: str, format: str, passes: int
) -> None:
    Path("jobs.yaml").write_text(BULK.replace("STEP", step).replace("FORMAT", f"format: {format}"))
    options, machines = Options(workers=2, sync=False), Machines(hosts=3, storage=3e6, compute=1e9)
    shares = ([one.passes for one in share] for share in rehearsed("jobs.yaml", 3, options, together=16))
    found = simulate_batch(shares, options, machines)
    (one,) = found.passes
    own = passes * 2 * 300 * 300 * 4  # bytes of a checkpoint
    assert sorted(host.bytes_read for host in one.hosts) == [4 * own, 4 * own, 5 * own]  # the base once
    reports = [batch("jobs.yaml", options, task=f"{number}/3") for number in (1, 2, 3)]
    assert [len(report.jobs) for report in reports] == [4, 3, 3]
    layouts = sum(job.bytes_written for report in reports for job in report.jobs)
    assert 0 < sum(host.bytes_written for host in one.hosts) <= layouts
    assert found.wall_s >= 5 * own / (3e6 / 3)
    assert one.balance == pytest.approx(max(h.bytes_read + h.bytes_written for h in one.hosts) * 3
                                        / sum(h.bytes_read + h.bytes_written for h in one.hosts))  # fmt: skip


def test_hosts_without_jobs_are_idle(bulk: Path) -> None:
    Path("jobs.yaml").write_text(BULK.replace("STEP", ADD).replace("FORMAT", "format: safetensors"))
    shares = ([one.passes for one in share] for share in rehearsed("jobs.yaml", 16, together=16))
    (one,) = simulate_batch(shares, Options(), Machines(hosts=16)).passes
    assert sorted(host.num_tasks > 0 for host in one.hosts) == [False] * 6 + [True] * 10
    assert not Path("out").exists()


def test_what_several_jobs_factor_with_comes_from_the_page_cache(bulk: Path) -> None:
    Path("jobs.yaml").write_text(BULK.replace("STEP", EXTRACT).replace("FORMAT", "format: peft"))
    files = ["base.safetensors", "runs/0.safetensors"]

    def cached() -> list[bool]:
        found = []
        for name in files:
            with (bulk / name).open("rb") as stream:
                found.append(is_cached(stream.fileno(), 4096, 700_000))
        return found

    for name in files:
        with (bulk / name).open("r+b") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    reader = place_of(str(bulk)).open_direct(str(bulk / files[0]))  # None: there is no such way
    if reader is None or any(cached()):
        pytest.skip("this file system keeps all files in memory, or cannot read past that")
    reader.close()
    batch("jobs.yaml", Options(sync=False, receipt=False))  # a receipt has digests of whole inputs
    assert cached() == [True, False]
