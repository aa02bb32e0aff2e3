"""The harness of the benchmarks runs rows, counts rightly, and says no more about the machine than it should."""

from __future__ import annotations

import ast
import json
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from running import assert_same_bits, read_checkpoint, write_checkpoint

from surgery_jax import Options, load_plan, run

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TIMES = [0.31, 0.12, 0.25, 0.19, 0.44, 0.28]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the folder, which are scripts beside each other."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    words = "run suites measure guard machine make_llama make_tensors quote simulate house floor make_proven with_s3"
    names = [*words.split(), "hundred"]
    modules: dict[str, ModuleType] = {name: __import__(name) for name in names}
    yield SimpleNamespace(**modules)
    for name in names:
        sys.modules.pop(name, None)


def start(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / program), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def sample(harness: Any, wall_s: float, rss_bytes: int = 0, **report: float) -> Any:
    return harness.measure.Sample(wall_s, wall_s / 2, rss_bytes, 0, report)


def judged(harness: Any, samples: dict[str, list[float]], **target: Any) -> Any:
    taken = {side: [sample(harness, wall_s) for wall_s in times] for side, times in samples.items()}
    return harness.run.judge(harness.suites.Target("wall_s", **target), taken, {})


# ------------------------------------------------------------------------------------------------------- end to end


@pytest.mark.parametrize("suite", [["storage"], ["--suite", "storage"]])
def test_a_row_runs_from_end_to_end(suite: list[str], tmp_path: Path) -> None:
    folders = ("--work", tmp_path / "work", "--results", tmp_path / "results")
    done = start("run.py", *suite, "--size", "tiny", "--repeats", 2, "--only", "rename", *folders)
    assert done.returncode == 1, done.stderr  # on so few bytes a copy wins: its targets are missed
    assert "MISSED" in done.stdout
    text = (tmp_path / "results" / "storage-tiny.json").read_text(encoding="utf-8")
    result = json.loads(text)
    (row,) = result["rows"]
    assert (row["row"], row["size"], row["identical"]) == ("rename", "tiny", True)
    assert {side: found["status"] for side, found in row["sides"].items()} == {
        "cp": "measured",
        "cp && sync": "measured",
        "ours": "measured",
        "ours --no-sync": "measured",
        "earlier": "missing",
        "earlier --no-sync": "missing",
        "brainsurgery": "missing",
    }
    ours = row["sides"]["ours"]
    assert len(ours["runs"]) == 2 and ours["output_bytes"] == row["output_bytes"] > 0
    assert ours["runs"][0]["report"]["num_compilations"] == 0
    assert set(ours["engine"]) == {"overlap", "stream_s", "compile_s", "busy_s"} and "move" in ours["engine"]["busy_s"]
    assert [target["met"] for target in row["targets"]] == [False, False, *[None] * 4]  # the last: another version

    assert {"cpu", "cores", "memory_bytes", "file_system", "kernel", "jax", "surgery_jax"} <= set(result["machine"])
    assert not re.search(rf"\b{re.escape(platform.node())}\b", json.dumps(result["machine"]))
    assert str(tmp_path) not in text and not re.search(r'"/\w', text)
    assert sorted(path.name for path in (tmp_path / "work" / "tiny").iterdir()) == ["base", "compiled", "log.txt"]


def test_merges_are_measured_without_mergekit_and_a_hundred_by_one_start(harness: Any, tmp_path: Path) -> None:
    work = tmp_path / "tiny"
    harness.hundred.write(work / "hundred", 1)
    assert len(list((work / "hundred").iterdir())) == len(harness.hundred.METHODS) == 20
    few = ("arcee_fusion", "della", "linear", "passthrough")
    for path in (work / "hundred").iterdir():
        if path.stem.removesuffix("_0") not in few:
            path.unlink()
    programs = {
        "ours": Path(sys.executable).with_name("surgery-jax"),
        "hundred": shlex.join([sys.executable, str(BENCHMARKS / "hundred.py")]),
        "mergekit": None,
    }
    suite = harness.suites.MERGES
    slerp, many = (
        harness.run.measured(suite, replace(row, once=tuple(row.sides)), "tiny", work, programs, 1)
        for row in suite.rows
        if row.name in ("slerp", "hundred merges")
    )
    assert {side: found["status"] for side, found in slerp["sides"].items()} == {
        "ours --no-sync --no-receipt": "measured",
        "mergekit": "missing",
    }
    # the peak of a command is at least that of the process that starts it, so here it may be missed
    assert [target["value"] is None for target in slerp["targets"]] == [True, True, False]
    most, count, _ = many["targets"]
    assert most["met"] and most["value"] <= 2
    assert count["value"] == len(few)


def test_a_met_target_is_0_and_a_missed_one_is_1(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, row, suite = harness.suites.Target, harness.suites.Row, harness.suites.Suite

    def exit_code(*targets: Any, **more: Any) -> int:
        sides = {"fast": "sleep 0.01", "slow": "sleep 0.2", **more}
        rows = (row("sleeping", "as long as it is told", sides, targets),)
        monkeypatch.setitem(harness.run.SUITES, "storage", suite("one row", {}, rows))
        words = ["run.py", "storage", "--repeats", "2", "--work", str(tmp_path), "--results", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", words)
        return int(harness.run.main())

    assert exit_code(target("wall_s", "fast", per="slow", at_most=0.9)) == 0
    assert exit_code(target("wall_s", "fast", per="slow", at_least=0.9)) == 1
    assert exit_code(target("wall_s", "slow", at_least=0.2), target("wall_s", "slow", at_most=0.1)) == 1
    assert exit_code(target("wall_s", "brainsurgery", at_most=1), brainsurgery="{brainsurgery}") == 0
    assert "not measured" in capsys.readouterr().out
    assert exit_code(wrong="false") == 1


def test_what_has_no_bounds_is_recorded(harness: Any) -> None:
    found = judged(harness, {"slow": [3.0], "fast": [2.0]}, of="slow", per="fast")
    assert found["value"] == 1.5 and found["met"] and harness.run.describe(found) == "wall: slow / fast"


def test_a_row_without_room_on_the_disk_is_left_out(harness: Any, tmp_path: Path) -> None:
    target = harness.suites.Target("wall_s", "side", at_most=1)
    row = harness.suites.Row("huge", "", {"side": "false"}, (target,), disk_bytes=1e30)
    record = harness.run.measured(harness.suites.STORAGE, row, "tiny", tmp_path, {}, 1)
    assert record["sides"]["side"]["status"].startswith("left out")
    assert record["targets"][0]["met"] is None and not harness.run.failed(record)


@pytest.mark.parametrize("words", [(), ("storage", "--only", "nothing"), ("--suite", "nothing")])
def test_a_wrong_command_line_is_2(words: tuple[str, ...]) -> None:
    assert start("run.py", *words).returncode == 2


# ------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_the_spread_is_that_of_the_standard_library(harness: Any, count: int) -> None:
    values = TIMES[:count]
    found = harness.measure.spread(values)
    assert found["median"] == pytest.approx(statistics.median(values))
    assert (found["min"], found["max"]) == (min(values), max(values))
    if count > 1:
        q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
        assert (found["q1"], found["q3"]) == (q1, q3)


def test_a_ratio_is_that_of_medians_and_its_rounds_are_kept(harness: Any) -> None:
    found = judged(harness, {"a": [1.0, 2.0, 9.0], "b": [4.0, 1.0, 3.0]}, of="a", per="b", at_most=1)
    assert found["value"] == pytest.approx(2 / 3) and found["met"]
    assert (found["rounds"]["min"], found["rounds"]["max"]) == (0.25, 3)


def test_start_up_is_subtracted_and_counts_divide(harness: Any) -> None:
    times = {"1k": [0.5, 0.5], "10k": [1.4, 1.4], "100k": [10.4, 10.4]}
    counts = {"count": 99_000, "less": "1k"}
    rate = judged(harness, times, of="100k", **counts, at_most=1e-4)
    assert rate["value"] == pytest.approx(1e-4)
    growth = judged(harness, times, of="100k", **counts, per="10k", per_less="1k", per_count=9_000, at_most=1.3)
    assert growth["value"] == pytest.approx(1) and growth["met"]
    assert harness.run.describe(growth) == "wall: (100k − 1k) / 99000 ≤ 1.3 × (10k − 1k) / 9000"
    hidden = judged(harness, times, of="100k", per="1k", per_less="10k", at_most=1.3)
    assert hidden["met"] is None


def test_what_the_engine_reports_is_judged(harness: Any) -> None:
    run, target = harness.run, harness.suites.Target
    samples = {"ours": [sample(harness, 2.0, compile_s=0.03, num_compilations=3, num_groups=3)], "cp": []}
    share = run.judge(target("compile_share", "ours", at_most=0.02), samples, {})
    assert share["value"] == pytest.approx(0.015) and share["met"]
    assert run.describe(share) == "compiling: ours ≤ 2 % of wall"
    once = run.judge(target("compilations_per_group", "ours", at_most=1, at_least=1), samples, {})
    assert once["met"] and run.describe(once) == "compilations per group: ours = 1"
    per_gb = run.judge(target("s_per_gb", "ours", at_most=1), samples, {"ours": 4_000_000_000})
    assert per_gb["value"] == pytest.approx(0.5)
    assert run.judge(target("s_per_gb", "ours", at_most=1), samples, {})["met"] is None
    assert run.judge(target("wall_s", "ours", per="cp", at_most=1), samples, {})["met"] is None


def test_every_row_names_what_there_is(harness: Any) -> None:
    suites = harness.suites
    for suite in (*suites.SUITES.values(), suites.GUARD):
        for row in suite.rows:
            assert set(row.inputs) <= set(suite.inputs), row.name
            assert row.plan is None or (BENCHMARKS / "plans" / row.plan).exists()
            lines = " ".join(row.sides.values())
            if row.plan:
                lines += (BENCHMARKS / "plans" / row.plan).read_text(encoding="utf-8")
            read = set(re.findall(r"(\w+)/model\.safetensors", lines)) - {"out"}
            assert read <= set(row.inputs) | {"many_1k"}, row.name
            for target in row.targets:
                assert target.measure in harness.run.MEASURES
                assert {target.of, target.less, target.per, target.per_less} - {None} <= set(row.sides), row.name


def test_the_sides_of_an_upcycling_write_the_same_experts_and_as_many_bytes(harness: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    harness.make_llama.write(
        tmp_path / "base", "tiny", "bfloat16", harness.make_llama.Source("bfloat16", 0, None, 0), 1e9
    )
    theirs, ours, floor = tmp_path / "theirs", tmp_path / "ours", tmp_path / "floor"
    for program, *words in (
        ("with_torch.py", theirs, "mixtral", tmp_path / "base", "--experts", 3),
        ("floor.py", floor, tmp_path / "base", "--experts", 3),
    ):
        done = start(program, *words)
        assert done.returncode == 0, done.stderr
    plan = str(BENCHMARKS.parent / "plans" / "upcycle_mixtral.yaml")
    run(load_plan(plan, f"source={tmp_path / 'base'}", f"output={ours}", "experts=3"), Options(sync=False))
    expected, found = read_checkpoint(theirs), read_checkpoint(ours)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        if "sparse_moe.gate" not in name:  # routers are drawn
            assert_same_bits(array, expected[name], name)
    nbytes = sum(array.nbytes for name, array in found.items() if "sparse_moe.gate" not in name)
    assert harness.floor.upcycled_bytes(tmp_path / "base", 3) == nbytes
    assert nbytes <= (floor / "floor.bin").stat().st_size < nbytes + harness.floor.BUFFER


# -------------------------------------------------------------------------------------------------- inputs and plans


def test_the_plan_of_small_tensors_renames_all_of_them(harness: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from surgery_jax import check, load_plan

    harness.make_tensors.write(tmp_path / "many_1k", 60, (8,), 0)
    monkeypatch.chdir(tmp_path)
    compiled = check(load_plan(BENCHMARKS / "plans" / "small_tensors.yaml"))
    (save,) = compiled.symbolic.saves
    assert sorted({name.split(".")[0] for name, _ in save.tensors}) == sorted(f"part{number}" for number in range(20))
    assert len(save.tensors) == 60


def test_of_a_hundred_steps_the_edited_one_is_made_again_and_no_other(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama, name = harness.make_llama, "hundred.yaml"
    llama.write(tmp_path / "base", "tiny", "bfloat16", llama.Source("bfloat16", 0, None, 0), float("inf"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SURGERY_JAX_CACHE", "off")
    harness.make_proven.write("earlier", "base", name)
    edit = harness.suites.EDITED.split()[-1]
    report = run(load_plan(BENCHMARKS / "plans" / name, edit), Options(sync=False, reuse="earlier"))
    assert (report.num_tensors, report.tensors_reused) == (21, 20)


def test_a_large_tensor_that_is_needed_whole_is_refused_at_once(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tensor of the row `large tensor`, whose bytes nobody may read: they are a hole in the file."""
    from surgery_jax.cli.main import main

    path = tmp_path / "one_large" / "model.safetensors"
    path.parent.mkdir()
    with path.open("wb") as file:
        harness.make_llama.write_header(file, {"group0.0.weight": (25_000, 15_000)}, 4, "F32")
        file.truncate(file.tell() + 1_500_000_000)
    monkeypatch.chdir(tmp_path)
    Path("factor.yaml").write_text(
        "inputs: [ one_large/model.safetensors ]\n"
        "transforms:\n"
        "  - phlora: { target: '(.+)\\.weight', target_a: '\\1.a', target_b: '\\1.b', rank: 8 }\n"
        "output: out\n",
        encoding="utf-8",
    )
    for command in ("check", "run"):
        assert main([command, "--memory", "256MiB", "factor.yaml"]) == 4
        assert "does not fit the memory budget" in capsys.readouterr().err
    assert not Path("out").exists()
    plan = str(BENCHMARKS / "plans" / "large_tensor.yaml")
    assert main(["check", "--memory", "256MiB", plan]) == 0


# ------------------------------------------------------------------------------------------------------------- guard


def test_the_guard_notices_what_became_slower(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guard, suites = harness.guard, harness.suites
    sides = {"baseline": "sleep 0.2", "ours": "sleep 0.1", "ours, tiny": "true"}
    row = suites.Row("sleeping", "", sides, (suites.Target("wall_s", "ours", less="ours, tiny", per="baseline"),))
    committed = tmp_path / "guard.json"

    def exit_code(*words: str, ours: str = "sleep 0.1") -> int:
        rows = (suites.Row(row.name, "", sides | {"ours": ours}, row.targets),)
        monkeypatch.setattr(guard, "GUARD", suites.Suite("one row", {}, rows))
        folders = ("--work", str(tmp_path), "--results", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["guard.py", "--repeats", "2", *folders, *words])
        return int(guard.main())

    assert exit_code() == 0  # nothing to compare with
    assert "--update" in capsys.readouterr().out
    assert not committed.exists()
    assert exit_code("--update") == 0
    before = committed.read_text(encoding="utf-8")
    assert json.loads(before)["ratios"]["sleeping"] == pytest.approx(2, rel=0.9)  # however loaded the machine is
    assert exit_code(ours="sleep 0.8") == 1
    assert "WORSE" in capsys.readouterr().out
    assert committed.read_text(encoding="utf-8") == before
    assert exit_code("--update", ours="false") == 1
    assert not guard.fallen(0.71, 1.0) and guard.fallen(0.69, 1.0)
    assert not guard.fallen(None, 1.0) and not guard.fallen(1.0, None)


# ------------------------------------------------------------------------------------------------------- predictions


def test_a_rate_and_a_start_follow_from_a_small_run_and_a_large_one(harness: Any) -> None:
    rate, start_s = harness.simulate.rate_and_start([10.0, 110.0], [1.0, 3.0])
    assert (rate, start_s) == (pytest.approx(50), pytest.approx(0.8))
    assert harness.simulate.rate_and_start([100.0, 200.0], [1.0, 3.0])[1] == 0


@pytest.mark.parametrize(("kind", "processes"), [("move", 1), ("move", 2), ("extract", 1)])
def test_a_prediction_is_held_to_a_run(harness: Any, kind: str, processes: int, tmp_path: Path) -> None:
    simulate = harness.simulate
    matrices = {
        f"h.{n}.weight": np.full((600, 40), n + 1, np.float32) + np.eye(600, 40, dtype=np.float32) for n in (0, 1)
    }
    simulate.write_model(tmp_path / "tiny.safetensors", matrices)
    simulate.write_model(tmp_path / "tiny-base.safetensors", matrices)
    simulate.write_model(tmp_path / "tiny-tuned.safetensors", {name: 2 * array for name, array in matrices.items()})
    row = simulate.Row(kind, "two matrices", "tiny", simulate.KINDS[kind], processes)
    assert 0 < simulate.run(tmp_path, row) < 60
    nbytes = sum(array.nbytes for array in matrices.values())
    factors = 4 * 2 * 16 * (600 + 40)
    spectra = 8 * 2 * (2 + 16)
    norms = 8 * 2 * 2
    extracted = 4 * nbytes + spectra + factors + norms  # two passes read both
    through = extracted if kind == "extract" else 2 * nbytes
    assert simulate.amount(tmp_path, row) == through

    known = {"bytes_per_s": float(nbytes), "start_s": 1.0}
    calibration = [{"kind": name, "processes": processes, **known} for name in simulate.KINDS]
    record = simulate.judged(tmp_path, row, calibration, {"median": 10.0, "min": 8.0, "max": 20.0})
    assert record["predicted_s"] >= 1 + through / nbytes - 0.1  # two processes share the rate
    ratio = record["ratio"]
    assert ratio["value"] == record["predicted_s"] / 10 and (ratio["min"], ratio["max"]) == (
        record["predicted_s"] / 20,
        record["predicted_s"] / 8,
    )


@pytest.mark.parametrize("kind", ["upcycle", "extract", "mixtral"])
def test_planning_for_a_large_model_is_measured_and_leaves_nothing(harness: Any, kind: str, tmp_path: Path) -> None:
    row = harness.simulate.planning(tmp_path, kind, 1, layers=5, experts=4)
    assert row["cpu_s"]["median"] > 0 and row["rss_bytes"]["median"] > 20e6
    assert len(row["passes"]) == {"upcycle": 1, "extract": 2, "mixtral": 1}[kind]
    assert kind == "mixtral" or all(one["bytes_read"] > 0.9 * row["input_bytes"] > 1e9 for one in row["passes"])
    assert kind != "mixtral" or row["passes"][0]["bytes_written"] > 6 * row["input_bytes"] / 2 > 1e9
    assert row["predicted_s"] == pytest.approx(sum(one["wall_s"] for one in row["passes"]))
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]
    assert str(tmp_path) not in json.dumps(row)


def test_a_batch_by_many_hosts_is_predicted_and_leaves_nothing(harness: Any, tmp_path: Path) -> None:
    machines = "hosts=3,devices=2,storage=10GB/s,compute=10GB/s,whole=1GB/s"
    row = harness.simulate.bulk(tmp_path, num_jobs=7, layers=1, machines=machines)
    assert row["about"] == "adapters of 7 fine-tunes, by 3 hosts"
    assert 0 < row["bytes_read"]["min"] < row["bytes_read"]["max"]
    assert 1 < row["balance"] < 1.5  # three jobs and the base, against two
    assert row["predicted_s"] > row["bytes_read"]["max"] / (10e9 / 3)
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_adapters_by_tasks_are_those_of_one_process_and_each_task_reads_the_base_once(
    harness: Any, tmp_path: Path
) -> None:
    """The program of the rows of tasks, with four fine-tunes whose matrices are few."""
    llama = harness.make_llama
    for name, seed in (("base", 0), *((f"base-{number}", number) for number in range(1, 5))):
        shapes = {"model.layers.0.mlp.up_proj.weight": (1024, 1024), "model.norm.weight": (1024,)}
        (tmp_path / name).mkdir()
        source = llama.Source("bfloat16", seed, None, 0)
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            llama.write_header(file, shapes, 2, "BF16")
            for tensor, shape in shapes.items():
                source.tensor(tensor, shape).tofile(file)
    written = []
    for count in (2, 1):
        ours = f"{sys.executable} -m surgery_jax"
        words = [count, BENCHMARKS / "plans" / "adapter.yaml", "--base", "base", "--tuned", 4, "--ours", ours]
        command = [sys.executable, str(BENCHMARKS / "by_tasks.py"), *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["jobs"] == [4 // count] * count
        assert 1 < told["read_ratio"] < 1.1
        files = sorted((tmp_path / "out").rglob("adapter_model.safetensors"))
        written.append({str(path.relative_to(tmp_path)): path.read_bytes() for path in files})
        shutil.rmtree(tmp_path / "out")
    assert len(written[0]) == 4 and written[0] == written[1]


def test_predictions_are_quoted_with_their_spread(harness: Any) -> None:
    spread = {"min": 2.0, "median": 2.5, "max": 4.0}
    ratio = {"value": 1.2, "min": 0.75, "max": 1.5}
    held = {"row": "move", "about": "bytes", "predicted_s": 3.0, "real_s": spread, "ratio": ratio}
    one = {"wall_s": 20.0, "balance": 1.25, "bytes_read": 3e12, "bytes_written": 0, "peak_buffer_bytes": 5e9}
    planned = {"row": "extract", "about": "ranks", "cpu_s": spread, "rss_bytes": {"median": 5e8}, "passes": [one, one]}
    result: dict[str, Any] = {"rows": [held], "planned": [planned]}
    assert harness.quote.predictions(result).splitlines()[2:] == [
        "| move | bytes | 3.00 s | 2.50 s | 2.00 to 4.00 s | 1.20 | 0.75 to 1.50 |"
    ]
    assert harness.quote.planning(result).splitlines()[2:] == [
        "| extract | ranks | 2.5 s | 500 MB | 1 of 2 | 3.00 TB | 0.00 TB | 20.0 s | 1.250 | 5.0 GB |",
        "|  |  |  |  | 2 of 2 | 3.00 TB | 0.00 TB | 20.0 s | 1.250 | 5.0 GB |",
    ]
    read = {"min": 1e12, "mean": 2e12, "max": 3e12}
    many = {"about": "adapters", "cpu_s": 99.6, "rss_bytes": 5e8, "predicted_s": 1234.5, "balance": 1.0625}
    result["bulk"] = many | {"bytes_read": read, "bytes_written": 2e9}
    assert harness.quote.bulk(result).splitlines()[2:] == [
        "| adapters | 100 s | 500 MB | 1234 s | 2.00 TB, 1.00 to 3.00 | 2.0 GB | 1.062 |"
    ]


def test_the_documentation_quotes_the_results_as_they_are(harness: Any) -> None:
    quotes = 0
    for page in harness.quote.PAGES:
        text = page.read_text(encoding="utf-8")
        quotes += len(harness.quote.QUOTE.findall(text))
        assert harness.quote.quoted(text) == text, f"{page.name}: run benchmarks/quote.py --write"
    assert quotes > 3


def test_lines_of_the_plan_and_of_the_script_are_what_the_page_says() -> None:
    plans = BENCHMARKS.parent / "plans"
    text = (plans / "upcycle_mixtral.yaml").read_text(encoding="utf-8")
    files = [
        text,
        *((plans / part).read_text(encoding="utf-8") for part in re.findall(r"path: (parts/\w+\.yaml)", text)),
    ]
    lines = [line.strip() for file in files for line in file.splitlines()]
    of_plan = sum(bool(line) and not line.startswith("#") for line in lines)
    tree = ast.parse((BENCHMARKS / "with_torch.py").read_text(encoding="utf-8"))
    script = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "mixtral")
    assert script.end_lineno is not None
    page = " ".join((BENCHMARKS.parent / "docs" / "performance.md").read_text(encoding="utf-8").split())
    assert f"names has {of_plan} lines that are no comments" in page
    assert f"`benchmarks/with_torch.py` has {script.end_lineno - script.lineno + 1} and" in page


def test_the_structure_has_no_circles_and_storage_and_verbs_say_their_types(harness: Any) -> None:
    tree = BENCHMARKS.parent
    assert harness.house.circles(tree) == []
    found = harness.house.files(tree)
    assert {room: found[room]["any"] for room in ("asserts", "ops", "storage")} == {
        "asserts": 0,
        "ops": 0,
        "storage": 0,
    }


def test_circles_are_found_also_within_functions_and_through_others(harness: Any, tmp_path: Path) -> None:
    place = tmp_path / "surgery_jax"
    place.mkdir()
    files = {
        "__init__": "",
        "a": "from . import b",
        "b": "def late():\n    from .c import x",
        "c": "import surgery_jax.a",
        "d": "from typing import TYPE_CHECKING\nfrom .a import y\nif TYPE_CHECKING:\n    from .e import z",
        "e": "from .d import y",
    }
    for name, text in files.items():
        (place / f"{name}.py").write_text(text)
    assert harness.house.circles(tmp_path) == [["surgery_jax.a", "surgery_jax.b", "surgery_jax.c"]]


# ------------------------------------------------------------------------------------------------------------ places


def test_the_store_of_the_benchmarks_takes_ranges_and_parts_from_ours_and_from_boto3(
    harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from servers import running

    tensors = {f"w.{n}": np.random.default_rng(n).normal(size=(1 << 20,)).astype(np.float32) for n in range(5)}
    write_checkpoint(tmp_path / "base" / "model.safetensors", tensors)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with running(harness.with_s3.Store(tmp_path, latency=0.0, failing=0.25)) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_address[1]}")
        run(load_plan(str(BENCHMARKS / "plans" / "rename_places.yaml")), Options(sync=False))
        done = start("with_boto3.py", "base/model.safetensors", "out/copy.safetensors")
    assert done.returncode == 0, done.stderr
    ours = read_checkpoint(tmp_path / "out" / "model.safetensors")
    for name, array in tensors.items():
        assert_same_bits(ours[f"decoder.{name}"], array)
    copy = (tmp_path / "out" / "copy.safetensors").read_bytes()
    assert copy == (tmp_path / "base" / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob(".u*"))


def test_a_command_runs_with_a_store_beside_it_that_is_gone_afterwards(tmp_path: Path) -> None:
    asked = "import os, urllib.request as r; print(r.urlopen(os.environ['AWS_ENDPOINT_URL'] + '/bucket/a').read())"
    (tmp_path / "a").write_text("held")
    done = start("with_s3.py", "--folder", tmp_path, "--latency", 0.01, "--", sys.executable, "-c", asked)
    assert (done.returncode, done.stdout) == (0, "b'held'\n"), done.stderr
    assert start("with_s3.py", "--", "false").returncode == 1


def test_a_store_says_nothing_of_a_command_that_leaves_in_the_middle_of_a_request(tmp_path: Path) -> None:
    leave = (
        "import os, socket, urllib.parse as u, urllib.request as r; url = os.environ['AWS_ENDPOINT_URL']\n"
        "one = socket.create_connection((u.urlsplit(url).hostname, u.urlsplit(url).port))\n"
        "one.sendall(b'PUT /bucket/b HTTP/1.1\\r\\nContent-Length: 9\\r\\n\\r\\nshort'); one.close()\n"
        "print(r.urlopen(url + '/bucket/a').status)"
    )
    (tmp_path / "a").write_text("held")
    done = start("with_s3.py", "--folder", tmp_path, "--latency", 0.1, "--", sys.executable, "-c", leave)
    assert (done.returncode, done.stdout, done.stderr) == (0, "200\n", "")
