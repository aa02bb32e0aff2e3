"""Elementwise results are those of IEEE arithmetic, one operation at a time: every value of the small floats, and the
places where compilers cheat: subnormal numbers, a product and a sum, 64 bits."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np
import oracle
import pytest
from running import Bench, assert_same_bits, assert_same_values, bits, dtype, read_checkpoint

from surgery_jax.core.dtypes import BY_NAME
from surgery_jax.numerics.host_kernel import HostKernel
from surgery_jax.numerics.kernels import DeviceKernel

torch = pytest.importorskip("torch")

FLOATS = (
    "float64", "float32", "bfloat16", "float16",
    "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
)  # fmt: skip


def every_value(name: str, normal: bool) -> np.ndarray:
    """All bit patterns of a dtype; with `normal` without the numbers that are subnormal in float32."""
    made = dtype(name)
    values = np.arange(2 ** (8 * made.itemsize), dtype=f"u{made.itemsize}").view(made)
    with np.errstate(all="ignore"):
        wide = np.abs(values.astype(np.float32))
    return values[~((wide > 0) & (wide < 2.0**-126))] if normal else values


def largest(name: str) -> np.ndarray:
    import ml_dtypes

    return np.asarray(ml_dtypes.finfo(dtype(name)).max)


def as_torch(array: np.ndarray) -> torch.Tensor:
    raw = torch.from_numpy(
        bits(array).view({1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[array.itemsize]).copy()
    )
    return raw.view(getattr(torch, array.dtype.name)) if array.dtype != np.uint8 else raw


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    name = str(tensor.dtype).removeprefix("torch.")
    return tensor.contiguous().view(raw).numpy().view(dtype(name))


@pytest.mark.parametrize("path", ["device", "host"])
@pytest.mark.parametrize("source", FLOATS[2:])
def test_casts_of_every_value_to_every_float_and_back_are_exact(tmp_path: Path, source: str, path: str) -> None:
    values = every_value(source, normal=path == "device")
    steps = [{"cast": {"from": "x", "to": f"to.{name}", "dtype": name}} for name in FLOATS]
    steps += [{"cast": {"from": f"to.{name}", "to": f"back.{name}", "dtype": source}} for name in FLOATS]
    bench = Bench(tmp_path, m={"x": values})
    report = bench.report(steps)
    found = read_checkpoint(bench.out)
    # the padding of a tile is a subnormal number of e8m0, which has no zero
    assert report.num_host_fallbacks == (source == "float8_e8m0fnu" or (path == "host" and source == "bfloat16"))
    there = as_torch(values).to(torch.float32)
    for name in FLOATS:
        expected = there.to(torch.float64 if name == "float64" else torch.float32).to(getattr(torch, name))
        made = found[f"to.{name}"]
        if source == name:
            assert_same_bits(made, values)
        elif "e8m0" not in name:
            # of numbers that no 8-bit float holds, torch makes the largest one since lately; ml_dtypes makes NaN
            fits = np.abs(oracle.exact(values)) <= oracle.exact(largest(name))
            assert_same_values(made[fits], as_numpy(expected)[fits], f"{source} to {name}")
        with np.errstate(all="ignore"):
            rounded = oracle.round_float(oracle.exact(values), dtype(name)) if source != name else values
            assert_same_values(found[f"to.{name}"], rounded, f"{source} to {name}")
            again = oracle.round_float(oracle.exact(rounded), values.dtype) if source != name else values
        assert_same_values(found[f"back.{name}"], again, f"{source} to {name} and back")


@pytest.mark.parametrize("path", ["device", "host"])
@pytest.mark.parametrize("source", ["bfloat16", "float16"])
def test_arithmetic_on_every_value_is_torchs(tmp_path: Path, source: str, path: str) -> None:
    values = every_value(source, normal=path == "device")
    other = np.random.default_rng(0).permutation(values)
    steps = [
        {"scale": {"from": "x", "to": "scaled", "by": 0.1}},
        {"clamp": {"from": "x", "to": "clamped", "min": -1.3, "max": 1.7}},
        {"copy": {"from": "x", "to": "sum"}},
        {"add_": {"from": "y", "to": "sum"}},
        {"copy": {"from": "x", "to": "difference"}},
        {"subtract_": {"from": "y", "to": "difference"}},
        {"copy": {"from": "x", "to": "product"}},
        {"multiply": {"from_a": "x", "from_b": "y", "to": "product"}},
    ]
    found = Bench(tmp_path, m={"x": values, "y": other}).tensors(steps)
    x, y = as_torch(values), as_torch(other)
    expected = {
        "scaled": x * 0.1, "clamped": x.clamp(-1.3, 1.7), "sum": x + y, "difference": x - y, "product": x * y,
    }  # fmt: skip
    for name, tensor in expected.items():
        assert_same_values(found[name], as_numpy(tensor), name)


# ------------------------------------------------------------------------------------------- subnormal numbers

SUBNORMAL = {
    "float32": np.array([1e-40, -1e-45, 2.0**-126, 1.5 * 2.0**-126, -(2.0**-127), 0.0, -0.0, 1.0], np.float32),
    "bfloat16": np.array([1, 0x8001, 0x80, 0xC0, 0x8040, 0, 0x8000, 0x3F80], np.uint16).view(dtype("bfloat16")),
    "float64": np.array([5e-324, -1e-310, 2.0**-1022, 1.5 * 2.0**-1022, -(2.0**-1023), 0.0, -0.0, 1.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", SUBNORMAL)
@pytest.mark.parametrize("work", ["scale", "add", "subtract", "multiply"])
def test_subnormal_operands_and_results_are_exact(tmp_path: Path, name: str, work: str) -> None:
    x = SUBNORMAL[name]
    y = np.roll(x, 3)
    if work == "scale":
        steps = [{"scale": {"from": "x", "to": "r", "by": 0.75}}]
        expected = oracle.scale(x, 0.75)
    else:
        steps = [{"copy": {"from": "x", "to": "r"}}, {work: {"from_a": "x", "from_b": "y", "to": "r"}}]
        expected = oracle.combine(work, x, y)
    bench = Bench(tmp_path, m={"x": x, "y": y})
    report = bench.report(steps)
    assert_same_bits(read_checkpoint(bench.out)["r"], expected)
    assert report.num_host_fallbacks == 1


@pytest.mark.parametrize(("name", "by"), [("float32", 2.0**-100), ("float64", 2.0**-900), ("bfloat16", 2.0**-100)])
def test_normal_operands_with_a_subnormal_result_are_exact(tmp_path: Path, name: str, by: float) -> None:
    x = (np.array([1.5, -1.25, 3.0, 1.0 + 2.0**-7]) * (2.0**-150 if name == "float64" else 2.0**-30)).astype(
        dtype(name)
    )
    found = Bench(tmp_path, m={"x": x}).tensors([{"scale_": {"target": "x", "by": by}}])
    assert_same_bits(found["x"], oracle.scale(x, by))
    assert np.count_nonzero(found["x"].astype(np.float64)) == 4


def test_casts_from_float64_to_subnormal_float32_are_exact(tmp_path: Path) -> None:
    x = np.array([1e-40, 2.0**-149, 2.0**-150, 1.5 * 2.0**-149, -1e-310, 1.0, np.pi * 2.0**-130])
    names = ("float32", "bfloat16", "float16")
    bench = Bench(tmp_path, m={"x": x})
    report = bench.report([{"cast": {"from": "x", "to": name, "dtype": name}} for name in names])
    found = read_checkpoint(bench.out)
    with np.errstate(all="ignore"):
        for name in names:
            assert_same_bits(found[name], oracle.round_float(x, dtype(name)))
    assert report.num_host_fallbacks == 1


@pytest.mark.parametrize("name", SUBNORMAL)
def test_assertions_see_subnormal_numbers(tmp_path: Path, name: str) -> None:
    smallest = np.zeros(8, dtype(name))
    smallest[5] = SUBNORMAL[name][0]
    size = float(smallest[5].astype(np.float64))
    bench = Bench(tmp_path, m={"x": smallest, "zero": np.zeros(8, dtype(name)), "negative": -np.zeros(8, dtype(name))})
    bench.report(
        [
            {"assert": {"not": {"iszero": "x"}}},
            {"assert": {"iszero": {"of": "x", "eps": size}}},
            {"assert": {"not": {"iszero": {"of": "x", "eps": 0}}}},
            {"assert": {"not": {"equal": {"left": "x", "right": "zero"}}}},
            {"assert": {"not": {"equal": {"left": "x", "right": "zero", "eps": 0}}}},
            {"assert": {"equal": {"left": "x", "right": "zero", "eps": size}}},
            {"assert": {"equal": {"left": "zero", "right": "negative"}}},
            {"assert": {"iszero": "negative"}},
            *([{"assert": {"not": {"iszero": {"of": "x", "eps": size / 2}}}}] if size / 2 else []),
        ],
        output=False,
    )


# ----------------------------------------------------------------------------------- one operation at a time


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_product_and_a_sum_are_never_one_operation(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    a, b, c = (rng.standard_normal(5000).astype(name) for _ in range(3))
    c[:2500] = -(a * b)[:2500]  # a fused operation would leave the rounding error of the product
    x = rng.standard_normal(5000).astype(name)
    steps = [
        {"multiply": {"from_a": "a", "from_b": "b", "to": "a"}},
        {"add_": {"from": "c", "to": "a"}},
        {"scale_": {"target": "x", "by": 1 / 3}},
        {"subtract_": {"from": "c", "to": "x"}},
    ]
    bench = Bench(tmp_path, m={"a": a, "b": b, "c": c, "x": x})
    report = bench.report(steps)
    found = read_checkpoint(bench.out)
    assert report.num_host_fallbacks == 0 and report.num_compilations > 0
    assert_same_bits(found["a"], a * b + c)
    assert not found["a"][:2500].any()
    assert_same_bits(found["x"], x * np.dtype(name).type(1 / 3) - c)


# --------------------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize("tiny", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("source", ["float16", "bfloat16", "float32", "float64"])
def test_floats_become_integers_toward_zero_and_saturate_and_nan_becomes_zero(
    tmp_path: Path, source: str, tiny: bool
) -> None:
    values = [0.0, -0.0, 0.9, -0.9, 1.5, -1.5, 127.9, 128, 255.9, 256, -128.9, -129, 32767.5, 65535.9, 65536]
    values += [2.0**e * s for e in (31, 32, 53, 63, 64, 100) for s in (1, -1)] + [np.inf, -np.inf, np.nan, 300.7, -1.2]
    values += [2.0**31 - 1, 2.0**63 - 1024, -(2.0**63) - 2048]
    with np.errstate(all="ignore"):
        x = np.array([*values, 1e-310 if source == "float64" else 1e-40] if tiny else values).astype(dtype(source))
    names = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
    bench = Bench(tmp_path, m={"x": x})
    report = bench.report([{"cast": {"from": "x", "to": name, "dtype": name}} for name in names])
    found = read_checkpoint(bench.out)
    for name in names:
        np.testing.assert_array_equal(found[name], oracle.cast(x, np.dtype(name)), err_msg=name)
        assert found[name][values.index(np.inf)] == np.iinfo(name).max
        assert found[name][values.index(-np.inf)] == np.iinfo(name).min
    assert report.num_host_fallbacks == (tiny and source != "float16")


@pytest.mark.parametrize("name", ["int64", "uint64"])
def test_64_bit_integers_are_exact_at_their_ends(tmp_path: Path, name: str) -> None:
    info = np.iinfo(name)
    x = np.array([info.max, info.max - 1, info.min, 2**53 + 1, 2**62 + 1, 3], name)
    y = np.array([1, info.max, 1, 2**53 - 1, 2**62, 2**62], name)
    words = {"add": lambda a, b: a + b, "subtract": lambda a, b: a - b, "multiply": lambda a, b: a * b}
    steps = [
        step
        for word in words
        for step in ({"copy": {"from": "x", "to": word}}, {word: {"from_a": "x", "from_b": "y", "to": word}})
    ]
    others = [
        "int8",
        "uint8",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float32",
        "float64",
        "bfloat16",
        "float16",
        "bool",
    ]
    steps += [{"cast": {"from": "x", "to": f"to.{other}", "dtype": other}} for other in others]
    steps += [{"matmul": {"from_a": "x", "from_b": "y", "to": "dot"}}]
    found = Bench(tmp_path, m={"x": x, "y": y}).tensors(steps)
    for word, do in words.items():
        whole = [oracle.wrap(do(a, b), x.dtype) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        assert found[word].tolist() == whole and found[word].dtype == x.dtype
    dot = oracle.wrap(sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True)), x.dtype)
    assert found["dot"].item() == dot
    for other in others:
        assert_same_values(found[f"to.{other}"], oracle.cast(x, dtype(other)), other)


def test_float64_values_keep_all_their_bits(tmp_path: Path) -> None:
    x = np.array([1 + 2.0**-52, np.pi, 1e300, -(2.0**-1000)])
    found = Bench(tmp_path, m={"x": x}).tensors(
        [
            {"scale": {"from": "x", "to": "third", "by": 1 / 3}},
            {"clamp": {"from": "x", "to": "clamped", "max": 1 + 2.0**-51}},
            {"cast": {"from": "x", "to": "whole", "dtype": "int64"}},
            {"fill": {"from": "x", "to": "filled", "mode": "constant", "value": 1 / 3}},
        ]
    )
    exact = [float(Fraction(a) * Fraction(1 / 3)) for a in x.tolist()]
    assert found["third"].tolist() == exact
    assert found["clamped"].tolist() == [1 + 2.0**-52, 1 + 2.0**-51, 1 + 2.0**-51, -(2.0**-1000)]
    assert found["filled"].tolist() == [1 / 3] * 4 and found["whole"].dtype == np.int64


def test_the_engine_leaves_the_64_bit_switch_of_jax_alone(tmp_path: Path) -> None:
    assert not jax.config.jax_enable_x64
    Bench(tmp_path, m={"x": np.array([1.5])}).report([{"scale_": {"target": "x", "by": 3}}])
    assert not jax.config.jax_enable_x64 and jax.numpy.asarray(np.float64(1)).dtype == np.float32


def test_results_do_not_depend_on_the_64_bit_switch_of_jax(tmp_path: Path) -> None:
    x = np.array([2**63 - 1, -(2**63), 2**53 + 1])
    bench = Bench(tmp_path, m={"x": x, "y": x / 3})
    steps = [{"add_": {"from": "x", "to": "x"}}, {"scale_": {"target": "y", "by": 0.1}}]
    expected = bench.tensors(steps)
    code = (
        "import jax, sys, json; jax.config.update('jax_enable_x64', sys.argv[1] == '1');"
        "from surgery_jax import *; plan = json.loads(sys.argv[2]); run(plan_of(plan), Options(overwrite=True))"
    )
    for switch in "01":
        subprocess.run([sys.executable, "-c", code, switch, json.dumps(bench.plan(steps))], check=True)
        for name, array in read_checkpoint(bench.out).items():
            assert_same_bits(array, expected[name])


# ------------------------------------------------------------------------------------------------------- NaN


@pytest.mark.parametrize("source", FLOATS)
def test_nan_gets_the_same_bits_in_casts_on_the_host_and_on_a_device(source: str) -> None:
    if dtype(source).itemsize <= 2:
        x = every_value(source, normal=True)
    else:
        width = 8 * dtype(source).itemsize
        infinity = int(bits(np.array([np.inf], source))[0])
        raw = np.random.default_rng(4).integers(1, 2**width - 1, 4096, dtype=f"u{width // 8}")
        x = (raw | np.array(infinity, raw.dtype)).view(source)
    targets = [BY_NAME[name] for name in FLOATS if name != source]

    def casts(zeros: tuple[Any, Any], x: Any) -> list[Any]:
        return [DeviceKernel(zeros).cast(x, target) for target in targets]

    with jax.enable_x64(True), np.errstate(all="ignore"):
        options = {"xla_allow_excess_precision": False}
        device = jax.jit(casts, compiler_options=options)((np.int32(0), np.int64(0)), x)
        for target, found in zip(targets, device, strict=True):
            assert_same_bits(np.asarray(found), HostKernel().cast(x, target), f"{source} to {target}")


def test_a_memory_budget_does_not_decide_the_bits_of_nan(tmp_path: Path) -> None:
    x = np.ones(1 << 20, np.float32)
    x.view(np.uint32)[:8] = 0x7F812345
    x[600_000] = 1e-40  # its tile is computed on the host
    bench = Bench(tmp_path, m={"x": x})
    steps = [{"cast": {"from": "x", "to": name, "dtype": name}} for name in FLOATS[2:]]
    wide, narrow = bench.tensors(steps, memory="2GiB", workers=1), bench.tensors(steps, memory="16MiB", workers=8)
    for name, array in wide.items():
        assert_same_bits(narrow[name], array, name)
