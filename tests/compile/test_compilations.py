"""What is compiled, read and imported: one function per structure, every byte once, no JAX where none is needed."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Bench, assert_same_bits, assert_same_values, dtype, read_checkpoint

QUIET_NAN = struct.unpack("<d", (0x7FF8008000000000).to_bytes(8, "little"))[0]  # with a payload that float32 keeps
ALIKE = [0.0, -0.0, 1.0, np.nan, QUIET_NAN, -np.nan]


def layers(count: int, shape: tuple[int, ...] = (6, 4), name: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {f"h.{layer}.w": rng.standard_normal(shape).astype(dtype(name)) for layer in range(count)}


def test_32_equal_layers_are_compiled_once(tmp_path: Path) -> None:
    report = Bench(tmp_path, m=layers(32)).report([{"scale_": {"target": ".*", "by": 0.5}}])
    assert (report.num_groups, report.num_compilations) == (1, 1)


def test_another_number_compiles_nothing_more(tmp_path: Path) -> None:
    tensors = layers(32)
    bench = Bench(tmp_path, m=tensors)
    steps = [
        {"scale_": {"target": r"h\.\d\.w", "by": 0.5}},
        {"scale_": {"target": r"h\.1\d\.w", "by": 3}},
        {"scale_": {"target": r"h\.[23]\d\.w", "by": -1}},
    ]
    assert bench.report(steps).num_compilations == 1
    found = read_checkpoint(bench.out)
    for layer, by in ((3, 0.5), (12, 3), (31, -1)):
        np.testing.assert_array_equal(found[f"h.{layer}.w"], tensors[f"h.{layer}.w"] * np.float32(by))


MERGED: dict[str, Any] = {
    "slerp": {"base": "a::(.+)", "models": {"b": {}}, "t": 0.25},
    "ties": {"base": "o::(.+)", "models": {"a": {}, "b": {}}, "weight": 0.5, "density": 0.5},
    "karcher": {"models": {"a": {"from": "a::(.+)"}, "b": {}}},
}


@pytest.mark.parametrize("method", MERGED)
def test_small_tensors_with_statistics_beside_large_ones_compile_nothing_more_and_have_the_same_bits(
    tmp_path: Path, method: str
) -> None:
    """Alone they are in the group of their structure, which is compiled."""
    rng = np.random.default_rng(8)
    shapes = {"large": (1 << 10, 1 << 10), "norm": (300,), "bias": (40, 500)}

    def merged(folder: str, names: tuple[str, ...]) -> tuple[int, dict[str, np.ndarray]]:
        (tmp_path / folder).mkdir()
        inputs = {alias: {name: held[alias, name] for name in names} for alias in "oab"}
        bench = Bench(tmp_path / folder, **inputs)
        report = bench.report([{"merge": {"method": method, **MERGED[method], "to": r"o::new.\1"}}])
        return report.num_compilations, read_checkpoint(bench.out)

    held = {(alias, name): rng.standard_normal(shape).astype("f4") for alias in "oab" for name, shape in shapes.items()}
    together, found = merged("together", ("large", "norm", "bias"))
    compiled, large = merged("large", ("large",))
    assert together == compiled > 0
    for name, array in (merged("small", ("norm", "bias"))[1] | large).items():
        assert_same_bits(found[name], array, name)


def test_layers_of_other_shapes_join_an_elementwise_group(tmp_path: Path) -> None:
    tensors = {f"w{n}": np.ones(shape, np.float32) for n, shape in enumerate([(3,), (2, 5), (4, 1, 7), (), (1000,)])}
    steps = [{"scale_": {"target": ".*", "by": 2}}, {"clamp_": {"target": ".*", "max": 1.5}}]
    assert Bench(tmp_path, m=tensors).report(steps).num_compilations == 1


def test_two_dtypes_are_two_compilations(tmp_path: Path) -> None:
    tensors = layers(4) | {f"b.{n}": array for n, array in enumerate(layers(3, name="bfloat16").values())}
    assert Bench(tmp_path, m=tensors).report([{"scale_": {"target": ".*", "by": 2}}]).num_compilations == 2


def test_matrix_products_are_compiled_per_shape(tmp_path: Path) -> None:
    tensors = (
        layers(4) | {f"g.{n}.w": np.ones((4, 6), np.float32) for n in range(4)} | {"g.0.v": np.ones((4, 2), np.float32)}
    )
    steps = [
        {"matmul": {"from_a": r"h\.(\d)\.w", "from_b": r"g.\1.w", "to": r"p.\1"}},
        {"matmul": {"from_a": r"h\.(1)\.w", "from_b": r"g.0.v", "to": "q"}},
    ]
    assert Bench(tmp_path, m=tensors).report(steps).num_compilations == 2


def test_an_equal_computation_is_done_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m=layers(1))
    steps = [{"scale": {"from": r"h\.0\.w", "to": name, "by": 2}} for name in ("a", "b")]
    program = bench.compile(steps).program
    assert [len(group.components) for group in program.groups] == [1]
    assert len(program.groups[0].sample.eqns) == 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.sampled_from(ALIKE), min_size=2, max_size=6))
def test_numbers_that_only_compare_equal_are_not_taken_for_one(tmp_path: Path, numbers: list[float]) -> None:
    x = np.array([1.5, -2, 0, -0.0, np.inf], np.float32)
    bench = Bench(tmp_path, m={"x": x})
    steps: list[Any] = []
    for at, number in enumerate(numbers):
        steps += [
            {"fill": {"from": "x", "to": f"constant.{at}", "mode": "constant", "value": number}},
            {"fill": {"from": "x", "to": f"given.{at}", "mode": "tensor", "values": [number] * 5}},
            {"scale": {"from": "x", "to": f"scaled.{at}", "by": number}},
            {"clamp": {"from": "x", "to": f"above.{at}", "min": number}},
        ]
    found = bench.tensors(steps)
    for at, number in enumerate(numbers):
        wide = np.float64(number)
        with np.errstate(all="ignore"):
            single = wide.astype(np.float32)
            assert_same_bits(found[f"constant.{at}"], np.full(5, single))
            assert_same_bits(found[f"given.{at}"], np.full(5, single))
            assert_same_values(found[f"scaled.{at}"], x * single)
            assert_same_bits(found[f"above.{at}"], np.where(x < single, single, x))


def test_what_no_output_and_no_assertion_needs_is_not_computed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m=layers(2))
    steps = [{"scale": {"from": r"h\.(\d)\.w", "to": r"t.\1", "by": 2}}, {"delete": {"target": r"t\..*"}}]
    assert not bench.compile(steps).program.groups


def test_a_tensor_that_is_checked_and_computed_is_read_once(tmp_path: Path) -> None:
    tensors = layers(3, (100, 7))
    nbytes = sum(array.nbytes for array in tensors.values())
    steps: list[Any] = [
        {"assert": {"not": {"iszero": r"h\.0\.w"}}},
        {"assert": {"equal": {"left": ".*", "right": r"\g<0>"}}},
        {"scale_": {"target": ".*", "by": 2}},
        {"assert": {"iszero": {"of": ".*", "eps": 1e9}}},
    ]
    report = Bench(tmp_path, m=tensors).report(steps)
    assert (report.bytes_read, report.bytes_computed, report.bytes_moved) == (nbytes, nbytes, 0)


def test_moved_and_computed_bytes_are_counted_apart(tmp_path: Path) -> None:
    tensors = layers(3, (100, 7))
    report = Bench(tmp_path, m=tensors).report([{"scale_": {"target": r"h\.1\.w", "by": 2}}])
    assert (report.bytes_read, report.bytes_moved) == (2800, 5600)


MOVING: list[Any] = [
    {"move": {"from": r"h\.(\d+)\.w", "to": r"layers.\1"}},
    {"copy": {"from": r"layers\.0::[1:3]", "to": "part"}},
    {"permute": {"from": r"layers\.1", "to": "turned", "order": [1, 0]}},
    {"fill": {"from": r"layers\.1", "to": "seven", "mode": "constant", "value": 7}},
    {"fill_": {"target": r"layers\.2::[:, 1:3]", "mode": "rand", "seed": 3}},
    {"zeroes": {"target": "z", "shape": [3, 3]}},
    {"split": {"from": "turned", "to": ["q", "k"], "sizes": [2, 4], "dim": 1}},
    {"concat": {"from": ["q", "k"], "to": "qk", "dim": 1}},
    {"reshape_": {"target": "qk", "shape": [-1]}},
    {"assign": {"from": r"layers\.0::[0]", "to": "layers.0::[2]"}},
    {"assert": {"shape": {"of": "qk", "is": [24]}}},
]


def test_a_plan_that_only_moves_slices_permutes_and_fills_never_imports_jax(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m=layers(3))
    code = (
        "import json, sys; from surgery_jax import Options, plan_of, run;"
        "r = run(plan_of(json.loads(sys.argv[1])), Options(sync=False));"
        "print(r.num_compilations, sorted(m for m in sys.modules if m.split('.')[0] in ('jax', 'jaxlib', 'torch')))"
    )
    plan = json.dumps(bench.plan(MOVING))
    done = subprocess.run([sys.executable, "-c", code, plan], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "0 []"
    assert read_checkpoint(bench.out)["seven"].tolist() == [[7.0] * 4] * 6


def test_a_plan_that_only_widens_floats_never_imports_jax_where_there_can_only_be_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    bench = Bench(tmp_path, m={"w": every.view(dtype("bfloat16"))})
    code = (
        "import json, sys; from surgery_jax import Options, plan_of, run; plan = plan_of(json.loads(sys.argv[1]));"
        "r = run(plan, Options(sync=False)); print(r.num_compilations, 'jax' in sys.modules, r.bytes_computed)"
    )
    plan = json.dumps(bench.plan([{"cast_": {"target": "w", "to": "float32"}}]))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run([sys.executable, "-c", code, plan], capture_output=True, text=True, check=True)
    assert done.stdout == f"0 False {4 << 16}\n"
    assert np.array_equal(read_checkpoint(bench.out)["w"].view(np.uint32), every.astype(np.uint32) << 16)


def test_checking_a_plan_imports_neither_jax_nor_numpy(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m=layers(2))
    steps = [{"scale_": {"target": ".*", "by": 2}}, {"phlora_": {"target": ".*", "rank": 2}}]
    code = (
        "import json, sys; from surgery_jax import check, plan_of; check(plan_of(json.loads(sys.argv[1])));"
        "print([m for m in ('jax', 'numpy', 'torch', 'ml_dtypes') if m in sys.modules])"
    )
    plan = json.dumps(bench.plan(steps))
    done = subprocess.run([sys.executable, "-c", code, plan], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_a_fill_of_a_whole_tensor_reads_nothing_of_it(tmp_path: Path, name: str) -> None:
    bench = Bench(tmp_path, m={"x": np.ones((50, 3), name)})
    report = bench.report([{"fill_": {"target": "x", "mode": "constant", "value": 3}}])
    assert report.bytes_read == report.bytes_moved == 0
