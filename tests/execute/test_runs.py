"""The same bits whatever the machine: workers, budgets, devices; and nothing left behind where something goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Bench, assert_same_bits, dtype, read_checkpoint

from surgery_jax import AssertionFailed, BudgetError, Options, StorageError, SurgeryError, explain, plan_of, run

MIB = 1 << 20


def model() -> dict[str, np.ndarray]:
    """Tensors above and below the size of a tile, of several dtypes; one tile holds subnormal numbers."""
    rng = np.random.default_rng(11)
    tensors = {f"h.{n}.w": rng.standard_normal((128, 96)).astype(np.float32) for n in range(12)}
    tensors |= {f"h.{n}.b": rng.standard_normal(96).astype(dtype("bfloat16")) for n in range(12)}
    tensors["big"] = rng.standard_normal((1300, 1024)).astype(np.float32)
    tensors["big"][700, 5] = 1e-40
    tensors["wide"] = rng.standard_normal((64, 64))
    tensors["ids"] = rng.integers(-(2**62), 2**62, (64, 64))
    return tensors


STEPS: list[Any] = [
    {"scale_": {"target": r"h\.\d+\.w", "by": 1 / 3}},
    {"copy": {"from": r"h\.(\d+)\.w", "to": r"t.\1"}},
    {"add_": {"from": r"h\.(\d+)\.w", "to": r"t.\1"}},
    {"clamp_": {"target": r"t\..*", "min": -0.5, "max": 0.5}},
    {"scale_": {"target": r"h\.\d+\.b", "by": 0.1}},
    {"scale": {"from": "big", "to": "scaled", "by": 0.7}},
    {"subtract_": {"from": "big", "to": "scaled"}},
    {"cast": {"from": "big", "to": "small", "dtype": "float16"}},
    {"permute": {"from": "ids", "to": "turned", "order": [1, 0]}},
    {"multiply": {"from_a": "ids", "from_b": "ids", "to": "ids"}},
    {"matmul": {"from_a": "wide", "from_b": "wide", "to": "square"}},
    {"phlora": {"target": r"h\.([01])\.w", "target_a": r"lora.\1.a", "target_b": r"lora.\1.b", "rank": 4}},
    {"fill_": {"target": "wide::[3:9]", "mode": "rand", "seed": 5}},
    {"assert": {"not": {"iszero": {"of": "big", "eps": 1}}}},
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, dict[str, np.ndarray]]:
    bench = Bench(tmp_path_factory.mktemp("runs"), m=model())
    return bench, bench.tensors(STEPS, workers=1)


def assert_all_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert_same_bits(found[name], array, name)


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("memory", ["16MiB", "2GiB"])
def test_workers_and_budgets_do_not_change_a_bit(
    expected: tuple[Bench, dict[str, np.ndarray]], workers: int, memory: str
) -> None:
    bench, wanted = expected
    report = bench.report(STEPS, workers=workers, memory=memory)
    assert_all_same(read_checkpoint(bench.out), wanted)
    assert 0 < report.peak_buffer_bytes <= Options(memory=memory).memory_bytes


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_do_not_change_a_bit(expected: tuple[Bench, dict[str, np.ndarray]], devices: int) -> None:
    bench, wanted = expected
    code = (
        "import json, sys, jax; from surgery_jax import Options, plan_of, run;"
        "run(plan_of(json.loads(sys.argv[1])), Options(overwrite=True, sync=False)); print(jax.local_device_count())"
    )
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, json.dumps(bench.plan(STEPS))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(devices), done.stderr
    assert_all_same(read_checkpoint(bench.out), wanted)


def test_a_tensor_larger_than_the_budget_is_computed_in_tiles(tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal(3 * MIB + 77).astype(np.float32)
    bench = Bench(tmp_path, m={"x": x})
    report = bench.report([{"scale_": {"target": "x", "by": 1 / 3}}], memory="8MiB")
    assert report.peak_buffer_bytes <= 8 * MIB < x.nbytes
    assert_same_bits(read_checkpoint(bench.out)["x"], x * np.float32(1 / 3))


def test_a_tensor_larger_than_the_budget_can_be_moved(tmp_path: Path) -> None:
    x = np.arange(3 * MIB, dtype=np.int32)
    found = Bench(tmp_path, m={"x": x}).tensors([{"move": {"from": "x", "to": "y"}}], memory="1MiB")
    assert_same_bits(found["y"], x)


def test_work_that_cannot_fit_the_budget_fails_before_anything_is_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones((600, 600), np.float32)})
    before = bench.left()
    with pytest.raises(BudgetError) as failed:
        bench.report([{"matmul": {"from_a": "x", "from_b": "x", "to": "y"}}], memory="1MiB")
    assert failed.value.exit_code == 4 and "--memory" in str(failed.value)
    assert bench.left() == before


# ------------------------------------------------------------------------------------------------- assertions


def test_a_failing_assertion_names_the_tensor_the_worst_value_and_its_index(tmp_path: Path) -> None:
    x = np.zeros((1100, 1024), np.float32)  # more than one tile
    x[3, 7], x[1099, 1000], x[5, 5] = 0.25, -8.5, 1e-42
    bench = Bench(tmp_path, m={"x": x, "y": np.zeros_like(x)})
    before = bench.left()
    for expression in ({"iszero": "x"}, {"equal": {"left": "x", "right": "y"}}):
        with pytest.raises(SurgeryError) as failed:
            bench.report([{"scale_": {"target": "y", "by": 2}}, {"assert": expression}])
        assert failed.value.exit_code == 1 and bench.left() == before
        text = str(failed.value)
        assert "x" in text and "3 of 1126400 elements" in text and "8.5 at [1099, 1000]" in text
    with pytest.raises(SurgeryError, match=r"1 of 1126400 .* 8\.5 at \[1099, 1000\]"):
        bench.report([{"assert": {"iszero": {"of": "x", "eps": 1}}}])


def test_the_index_of_the_worst_value_is_the_same_for_every_number_of_workers(tmp_path: Path) -> None:
    x = np.zeros(3 * MIB, np.float32)
    x[[5, 2 * MIB, 3 * MIB - 1]] = 7
    bench = Bench(tmp_path, m={"x": x})
    for workers, memory in ((1, "2GiB"), (4, "2GiB"), (3, "4MiB")):
        with pytest.raises(SurgeryError, match=r"3 of 3145728 elements are off; the worst by 7 at \[5\]"):
            bench.report([{"assert": {"iszero": "x"}}], workers=workers, memory=memory)


def test_all_failing_assertions_are_reported_in_the_order_of_the_plan(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones(3, np.float32), "n": np.array([np.nan, 1.0])})
    with pytest.raises(SurgeryError) as failed:
        bench.report([{"assert": {"iszero": "x"}}, {"assert": {"equal": {"left": "n", "right": "n"}}}])
    first, second = failed.value.errors  # type: ignore[attr-defined]
    assert isinstance(first, AssertionFailed) and "iszero: x" in str(first) and "m::n" in str(second)
    assert "1 of 2" in str(second) and "NaN" in str(second) and "[0]" in str(second)


def test_matrices_with_nan_cannot_be_factored(tmp_path: Path) -> None:
    w = np.ones((4, 3), np.float32)
    w[2, 1] = np.nan
    bench = Bench(tmp_path, m={"w": w})
    before = bench.left()
    with pytest.raises(SurgeryError, match=r"cannot be factored: w") as failed:
        bench.report([{"phlora_": {"target": "w", "rank": 2}}])
    assert failed.value.exit_code == 1 and bench.left() == before


# --------------------------------------------------------------------------------------------------- failures


def test_a_failed_run_leaves_the_input_and_the_old_output_as_they_were(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones(5000, np.float32)})
    bench.report([{"scale_": {"target": "x", "by": 3}}])
    before = {name: (tmp_path / name).read_bytes() for name in bench.left()}
    for out in (bench.out, tmp_path / "m.safetensors"):
        plan = bench.plan([{"scale_": {"target": "x", "by": 2}}, {"assert": {"iszero": "x"}}]) | {"output": str(out)}
        with pytest.raises(SurgeryError):
            run(plan_of(plan), Options(overwrite=True, sync=False))
        assert {name: (tmp_path / name).read_bytes() for name in bench.left()} == before


def test_an_existing_output_is_not_replaced_without_being_asked(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones(5, np.float32)})
    bench.report([{"scale_": {"target": "x", "by": 3}}])
    before = bench.out.read_bytes()
    with pytest.raises(SurgeryError) as failed:
        bench.report([{"scale_": {"target": "x", "by": 2}}], overwrite=False)
    assert failed.value.exit_code == 3 and bench.out.read_bytes() == before


@pytest.mark.parametrize(
    "step",
    [
        {"scale_": {"target": "x", "by": 2}},
        {"move": {"from": "x", "to": "y"}},
        {"permute": {"from": "x", "to": "y", "order": [1, 0]}},
    ],
    ids=["computed", "moved", "gathered"],
)
def test_an_input_that_became_shorter_since_the_check_is_an_error_and_leaves_nothing(tmp_path: Path, step: Any) -> None:
    bench = Bench(tmp_path, m={"x": np.ones((300, 400), np.float32)})
    compiled = bench.compile([step])
    before = bench.left()
    os.truncate(tmp_path / "m.safetensors", 200_000)
    with pytest.raises(SurgeryError) as failed:
        run(plan_of(bench.plan([step])), Options(sync=False), compiled=compiled)
    assert failed.value.exit_code == 3 and "m.safetensors" in str(failed.value)
    assert bench.left() == before


def test_a_truncated_input_is_refused_when_its_header_is_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones((300, 400), np.float32)})
    os.truncate(tmp_path / "m.safetensors", 200_000)
    with pytest.raises(SurgeryError) as failed:
        bench.compile([{"scale_": {"target": "x", "by": 2}}])
    assert failed.value.exit_code == 3


def test_an_output_that_cannot_be_written_leaves_no_other_output(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones(5, np.float32)})
    (tmp_path / "file").write_text("in the way")
    steps = [{"save": str(tmp_path / "one.safetensors")}, {"save": str(tmp_path / "file" / "two.safetensors")}]
    before = bench.left()
    with pytest.raises(SurgeryError) as failed:
        bench.report(steps)
    assert failed.value.exit_code == 3 and isinstance(failed.value, StorageError | SurgeryError)
    assert bench.left() == before


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones(5000, np.float32), "y": np.ones(70, np.int8)})
    seen: list[tuple[int, int]] = []
    plan = plan_of(bench.plan([{"scale_": {"target": "x", "by": 3}}]))
    run(plan, Options(sync=False), progress=lambda done, total: seen.append((done, total)))
    assert seen and seen[-1] == (20070, 20070)
    assert all(a[0] <= b[0] for a, b in pairwise(seen))


def test_seedless_random_numbers_differ_from_run_to_run_but_agree_within_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"x": np.ones(50, np.float32)})
    steps = [
        {"fill_": {"target": "x", "mode": "rand"}},
        {"copy": {"from": "x", "to": "y"}},
        {"assert": {"equal": {"left": "x", "right": "y"}}},
    ]
    first, second = bench.tensors(steps), bench.tensors(steps)
    assert_same_bits(first["x"], first["y"])
    assert not np.array_equal(first["x"], second["x"])


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ([{"cast_": {"target": "w", "to": "bfloat16"}}], (8192, 4096)),
        ([{"move": {"from": "w", "to": "v"}}], (8192, 4096)),
        ([{"phlora_": {"target": "w", "rank": 64}}], (6144, 2048)),
    ],
)
def test_the_predicted_peak_of_memory_is_within_a_fifth_of_what_the_process_took(
    steps: Any, shape: tuple[int, int], tmp_path: Path
) -> None:
    w = np.ones(shape, np.float32)
    if "phlora_" in steps[0]:  # all that factoring may take: for numbers too small to be squared, and hidden noise
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal(some, np.float32) for some in ((shape[0], 8), (8, shape[1])))
        w = (a @ b + np.float32(1e-2) * rng.standard_normal(shape, np.float32)) * np.float32(1e-9)
    bench = Bench(tmp_path, m={"w": w})
    explanation = explain(bench.compile(steps))
    code = (
        "import sys, json, surgery_jax as s; plan = s.plan_of(json.loads(sys.argv[1]));"
        "print(s.run(plan, s.Options(overwrite=True)).peak_rss_bytes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(bench.plan(steps))], capture_output=True, text=True, check=True
    )
    took = int(done.stdout)
    assert abs(explanation.peak_memory_bytes - took) <= 0.2 * took, (explanation.peak_memory_bytes, took)


@pytest.mark.parametrize(("shape", "order"), [((6000, 3000), [1, 0]), ((9, 500, 4000), [1, 0, 2])])
def test_a_large_tensor_is_permuted_in_parts(tmp_path: Path, shape: tuple[int, ...], order: list[int]) -> None:
    w = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    bench = Bench(tmp_path, m={"w": w})
    steps = [{"permute": {"from": "w", "to": "turned", "order": order}}, {"delete": {"target": "w"}}]
    account = explain(plan_of(bench.plan(steps)))
    assert account.groups[0].writes == ("turned",)
    report = bench.report(steps, workers=1)
    assert report.peak_buffer_bytes < 1.1 * w.nbytes  # whole, it would be twice as much
    assert np.array_equal(read_checkpoint(bench.out)["turned"], w.transpose(order))


@pytest.mark.parametrize("options", [{}, {"memory": "64MiB"}, {"workers": 1}], ids=["free", "bounded", "alone"])
def test_rows_that_are_made_move_nothing_that_lies_behind_them(tmp_path: Path, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    tensors = {name: rng.standard_normal((24, 16)).astype("f4") for name in "abcd"}
    steps = [{"pad_": {"target": "a|c", "after": 2}}, {"scale_": {"target": ".+", "by": 2}}]
    rows = np.zeros((2, 16), "f4")
    expected = {name: np.concatenate([2 * w, rows]) if name in "ac" else 2 * w for name, w in tensors.items()}
    assert_all_same(Bench(tmp_path, m=tensors).tensors(steps, **options), expected)
