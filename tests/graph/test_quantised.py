"""Numbers that mean nothing without their scales are moved as they are, and computed with only where a plan says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from running import Bench, assert_same_bits, read_checkpoint, write_checkpoint

from surgery_jax import PlanError, Problems, inspect, spectrum

F8 = ml_dtypes.float8_e4m3fn
W = np.arange(-8, 8, dtype=np.float32).reshape(4, 4).astype(F8)
HALF = {"weight": "q.weight", "companion": "q.weight_scale_inv"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    q8 = {"c.weight": np.arange(16, dtype=np.int8).reshape(4, 4), "c.SCB": np.ones(4, np.float32)}
    tensors = {"q.weight": W, "q.weight_scale_inv": np.full((1, 1), 0.5, np.float32), "p": W, **q8}
    return Bench(tmp_path, m=tensors | {"f": W.astype(np.float32), "i": np.arange(16, dtype=np.int8).reshape(4, 4)})


def refused(bench: Bench, *steps: Any) -> str:
    with pytest.raises((PlanError, Problems)) as caught:
        bench.compile(list(steps))
    return str(caught.value)


ARITHMETIC: dict[str, Any] = {
    "scale": {"from": "q.weight", "to": "x", "by": 2},
    "scale_": {"target": "q.weight", "by": 2},
    "clamp_": {"target": "q.weight", "max": 1},
    "cast": {"from": "q.weight", "to": "x", "dtype": "float32"},
    "cast_": {"target": "q.weight", "to": "bfloat16"},
    "add_": {"from": "q.weight", "to": "p"},
    "subtract_": {"from": "p", "to": "q.weight"},
    "add": {"from_a": "p", "from_b": "q.weight", "to": "p"},
    "multiply": {"from_a": "q.weight", "from_b": "p", "to": "p"},
    "matmul": {"from_a": "p", "from_b": "q.weight", "to": "x"},
    "phlora": {"target": "q.weight", "target_a": "a", "target_b": "b", "rank": 2},
    "phlora_": {"target": "q.weight", "rank": 2},
}


@pytest.mark.parametrize("word", ARITHMETIC)
def test_arithmetic_on_a_quantised_tensor_names_its_scales_and_raw_allows_it(bench: Bench, word: str) -> None:
    text = refused(bench, {word: ARITHMETIC[word]})
    assert "q.weight is quantised" in text and "q.weight_scale_inv" in text and "raw: true" in text
    bench.compile([{word: ARITHMETIC[word] | {"raw": True}}])


def test_integers_with_scales_are_not_told_to_be_cast_first(bench: Bench) -> None:
    text = refused(bench, {"scale_": {"target": "c.weight", "by": 2}})
    assert "c.SCB" in text and "float32 first" not in text


def test_raw_computes_with_the_stored_numbers(bench: Bench) -> None:
    found = bench.tensors([{"scale_": {"target": "q.weight", "by": 0.5, "raw": True}}])
    assert_same_bits(found["q.weight"], (W.astype(np.float32) * 0.5).astype(F8))


def test_what_is_cast_as_raw_is_a_plain_tensor_to_be_dequantised_by_the_plan(bench: Bench) -> None:
    steps = [
        {"cast_": {"target": "q.weight", "to": "float32", "raw": True}},
        {"scale_": {"target": "q.weight", "by": 0.5}},
        {"delete": {"target": r"q\.weight_scale_inv"}},
    ]
    assert_same_bits(bench.tensors(steps)["q.weight"], W.astype(np.float32) * np.float32(0.5))


MOVED: list[list[Any]] = [
    [{"move": {"from": "q.weight", "to": "y"}}],
    [{"move": {"from": r"q\.weight_scale_inv", "to": "other"}}, {"copy": {"from": "q.weight", "to": "y"}}],
    [{"delete": {"target": r"q\.weight_scale_inv"}}, {"copy": {"from": "q.weight", "to": "y"}}],
    [{"copy": {"from": "q.weight::[:2]", "to": "y"}}],
    [{"reshape": {"from": "q.weight", "to": "y", "shape": [2, 8]}}],
    [{"permute": {"from": "q.weight", "to": "y", "order": [1, 0]}}],
    [{"concat": {"from": ["p", "q.weight"], "to": "y"}}],
    [{"copy": {"from": "p", "to": "y"}}, {"assign": {"from": "q.weight::[0]", "to": "y::[0]"}}],
    [{"split": {"from": "q.weight", "to": ["y", "z"], "sizes": [1, 3]}}],
    [{"cast": {"from": "q.weight", "to": "y", "dtype": "float8_e4m3fn"}}],
]


@pytest.mark.parametrize("steps", MOVED, ids=lambda steps: "-".join(next(iter(step)) for step in steps))
def test_bytes_are_moved_freely_and_stay_quantised_under_every_name(bench: Bench, steps: list[Any]) -> None:
    bench.tensors(steps)
    assert "q.weight is quantised" in refused(bench, *steps, {"scale_": {"target": "y", "by": 2}})


def test_a_moved_tensor_has_the_same_bits(bench: Bench) -> None:
    assert_same_bits(bench.tensors(MOVED[0])["y"], W)


@pytest.mark.parametrize("step", [{"scale_": {"target": "p", "by": 2}}, {"clamp_": {"target": "f", "max": 1}}], ids=str)
def test_plain_tensors_beside_quantised_ones_are_computed_with(bench: Bench, step: Any) -> None:
    bench.compile([step, {"add_": {"from": "i", "to": "i"}}])


def test_assertions_and_diff_compare_stored_numbers(bench: Bench) -> None:
    bench.report([{"assert": {"equal": {"left": "q.weight", "right": "p"}}}, {"diff": {"left": "p", "right": "q.*"}}])


def test_spectra_leave_quantised_tensors_and_their_scales_out(bench: Bench, tmp_path: Path) -> None:
    found = spectrum(tmp_path / "m.safetensors")
    assert [module.name for module in found.modules] == ["p", "f"]
    assert any("weight_scale_inv" in reason for reason in found.left_out)
    alone = write_checkpoint(tmp_path / "alone.safetensors", {"w": W, "w_scale": np.ones((1, 1), np.float32)})
    with pytest.raises(PlanError, match="quantised with scales such as w_scale"):
        spectrum(alone)


# -------------------------------------------------------------------------------------------------------- adapters


def adapter(path: Path, **config: Any) -> str:
    import json

    a, b = np.ones((2, 4), np.float32), np.ones((4, 2), np.float32)
    names = {"base_model.model.q.lora_A.weight": a, "base_model.model.q.lora_B.weight": b}
    write_checkpoint(path / "adapter_model.safetensors", names)
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"], **config}
    (path / "adapter_config.json").write_text(json.dumps(told))
    return str(path)


def test_adapters_are_not_merged_into_stored_numbers(bench: Bench, tmp_path: Path) -> None:
    bench.inputs.append(f"a::{adapter(tmp_path / 'a')}")
    merge = {"lora_merge": {"adapters": "a", "to": "m"}}
    assert "q.weight_scale_inv" in refused(bench, merge)
    assert "q.weight_scale_inv" in refused(bench, {"move": {"from": r"m::q\.(.+)", "to": r"m::z.q.\1"}},
                                           {"lora_merge": {"adapters": "a", "to": r"m::z.\g<0>"}})  # fmt: skip
    merge["lora_merge"]["raw"] = True
    bench.compile([merge, {"prefixes": {"mode": "remove", "alias": "a"}}])


@pytest.mark.parametrize("norms", ["skip", "equal"])
@pytest.mark.parametrize("module", ["q", "c"])
def test_adapters_are_not_extracted_out_of_stored_numbers(
    tmp_path: Path, bench: Bench, module: str, norms: str
) -> None:
    base = read_checkpoint(tmp_path / "m.safetensors")
    tuned = {name: array + array if name == "f" else array for name, array in base.items()}
    both = Bench(tmp_path, m=base, t=tuned)
    step = {"base": rf"m::({module}\..+)", "tuned": r"t::\1", "to": "a", "rank": 1, "norms": norms}
    assert f"{module}.weight is quantised" in refused(both, {"lora_extract": step})


def test_statistics_of_stored_numbers_are_still_shown(bench: Bench, tmp_path: Path) -> None:
    found = inspect(tmp_path / "m.safetensors", stats=True, filter="q.weight$")
    assert found.tensors[0].statistics is not None and found.tensors[0].statistics.max == 7
