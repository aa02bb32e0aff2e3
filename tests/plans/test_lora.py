"""Adapters made here are loaded by PEFT, and give the fine-tuned model back; what is told of them is true."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from running import assert_same_bits, read_checkpoint, write_checkpoint

from surgery_jax import Options, batch, check, load_plan, plan_of, run
from surgery_jax.core.errors import SurgeryError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

RANK = 2


def tiny(kind: str, tied: bool = False) -> Any:
    torch.manual_seed(3)
    small = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 32, "tie_word_embeddings": tied,
    }  # fmt: skip
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small)).eval()
    if kind == "mixtral":
        config = transformers.MixtralConfig(**small, num_local_experts=3, num_experts_per_tok=2)
        return transformers.MixtralForCausalLM(config).eval()
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=40, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


def fine_tuned(model: Any, pattern: str, rank: int = RANK, bias: str = "") -> Any:
    """The model with changes of known rank in the parameters that a pattern matches."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if re.fullmatch(pattern, name):
                *experts, m, n = parameter.shape
                parameter += 0.1 * torch.randn(*experts, m, rank) @ torch.randn(*experts, rank, n)
            elif bias and re.fullmatch(bias, name):
                parameter += 0.1 * torch.randn(parameter.shape)
    return model


def stored(model: Any, path: Path) -> dict[str, np.ndarray]:
    """Write the parameters as they are named in the model, each once."""
    from safetensors.numpy import save_file

    found = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    path.mkdir()
    save_file(found, path / "model.safetensors")
    return found


def extracting(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    step = {"base": "base::(.+)", "tuned": "tuned::\\1", "to": "adapter", **keys}
    return {
        "inputs": [f"base::{tmp_path / 'base'}", f"tuned::{tmp_path / 'tuned'}"],
        "transforms": [{"lora_extract": step}],
        "output": {"path": str(tmp_path / "adapter"), "format": "peft"},
    }


def extract(tmp_path: Path, **keys: Any) -> tuple[dict[str, Any], str]:
    """Run the step on base and tuned; gives what it told."""
    report = run(plan_of(extracting(tmp_path, **keys)), Options(sync=False, overwrite=True))
    return json.loads((tmp_path / "adapter" / "extraction.json").read_text()), report.printed


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits.numpy()


def loaded(model: Any, path: Path) -> Any:
    """The model with the adapter; PEFT must have nothing to complain of."""
    # For models that it knows, PEFT 0.19 rewrites names of old checkpoints with a converter that newer transformers
    # changed, and fails. Names are new here.
    model.config.model_type += "-new"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings")  # said of every lm_head, tied or not
        return peft.PeftModel.from_pretrained(model, path).eval()


LINEAR = r"model\.layers\..*_proj\.weight|lm_head\.weight"
CASES = {
    "llama": (LINEAR, {}),
    "llama-embeddings": (r".*embed_tokens\.weight|" + LINEAR, {"rank": 3}),
    "mixtral": (LINEAR + r"|.*experts\.(gate_up|down)_proj", {}),
    "gpt2": (r".*(c_attn|c_proj|c_fc)\.weight", {"fan_in_fan_out": True}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_was_extracted_and_computes_as_the_fine_tuned_model(tmp_path: Path, case: str) -> None:
    pattern, keys = CASES[case]
    kind = case.split("-")[0]
    base = stored(tiny(kind), tmp_path / "base")
    tuned_model = fine_tuned(tiny(kind), pattern)
    tuned = stored(tuned_model, tmp_path / "tuned")
    told, printed = extract(tmp_path, **({"rank": RANK} | keys))
    model = loaded(tiny(kind), tmp_path / "adapter")
    before, after = logits(tiny(kind)), logits(tuned_model)
    assert np.abs(before - after).max() > 0.01
    np.testing.assert_allclose(logits(model), after, rtol=1e-4, atol=1e-5)
    changed = {name for name in base if not np.array_equal(base[name], tuned[name])}
    assert told["modules"].keys() == changed and all(name in printed for name in changed)
    assert all(row["energy_kept"] > 1 - 1e-9 for row in told["modules"].values())


def merging(tmp_path: Path, adapters: Any) -> dict[str, Any]:
    names = [adapters] if isinstance(adapters, str) else list(adapters)
    return {
        "inputs": [f"base::{tmp_path / 'base'}", *(f"{name}::{tmp_path / name}" for name in names)],
        "transforms": [{"lora_merge": {"adapters": adapters, "to": "base"}}],
        "output": str(tmp_path / "merged"),
    }


def merge(tmp_path: Path, adapters: Any) -> dict[str, np.ndarray]:
    run(plan_of(merging(tmp_path, adapters)), Options(sync=False))
    return read_checkpoint(tmp_path / "merged")


def trained(kind: str, path: Path, seed: int, **config: Any) -> dict[str, np.ndarray]:
    """Store an adapter of PEFT with random factors; gives the parameters after PEFT has merged it."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(tiny(kind), peft.LoraConfig(init_lora_weights=False, **config))
    model.save_pretrained(path, save_embedding_layers=False)
    merged = model.merge_and_unload()
    return {name: parameter.detach().numpy() for name, parameter in merged.named_parameters()}


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "down_proj", "lm_head"]}),
    "patterns": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": r".*\.(q|v|gate)_proj",
            "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "gate_proj": 3},
            "alpha_pattern": {"v_proj": 9},
        },
    ),
    "rslora": ("llama", {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["up_proj", "embed_tokens"]}),
    "whole": ("llama", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "experts": (
        "mixtral",
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    "conv1d": ("gpt2", {"r": 2, "target_modules": ["c_attn", "c_fc", "attn.c_proj"], "fan_in_fan_out": True}),
    "biases": ("gpt2", {"r": 2, "target_modules": ["c_fc"], "fan_in_fan_out": True, "lora_bias": True}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CONFIGS)
def test_merging_gives_what_peft_merges(tmp_path: Path, case: str) -> None:
    kind, config = CONFIGS[case]
    base = stored(tiny(kind), tmp_path / "base")
    expected = trained(kind, tmp_path / "one", 5, **config)
    found = merge(tmp_path, "one")
    assert found.keys() == base.keys()
    changed = [name for name in base if not np.array_equal(base[name], expected[name])]
    assert changed
    for name in base:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_several_adapters_are_added_with_their_weights(tmp_path: Path) -> None:
    base = stored(tiny("llama"), tmp_path / "base")
    one = trained("llama", tmp_path / "one", 5, **CONFIGS["whole"][1])
    two = trained("llama", tmp_path / "two", 6, **CONFIGS["patterns"][1])
    found = merge(tmp_path, {"one": 0.5, "two": -2.0})
    for name, before in base.items():
        wanted = before + 0.5 * (one[name] - before) - 2.0 * (two[name] - before)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_what_was_extracted_merges_back_to_the_fine_tuned_model(tmp_path: Path) -> None:
    stored(tiny("mixtral"), tmp_path / "base")
    tuned = stored(fine_tuned(tiny("mixtral"), CASES["mixtral"][0]), tmp_path / "tuned")
    extract(tmp_path, rank=RANK)
    for name, array in merge(tmp_path, "adapter").items():
        np.testing.assert_allclose(array, tuned[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore")
def test_devices_do_not_change_a_bit_of_adapters_and_merged_models(tmp_path: Path) -> None:
    stored(tiny("llama"), tmp_path / "base")
    stored(fine_tuned(tiny("llama"), LINEAR, rank=4), tmp_path / "tuned")
    extract(tmp_path, energy=0.9)
    wanted = {**read_checkpoint(tmp_path / "adapter"), **merge(tmp_path, "adapter")}
    code = (
        "import json, sys, jax; from surgery_jax import Options, plan_of, run;"
        "[run(plan_of(plan), Options(overwrite=True, sync=False)) for plan in json.loads(sys.argv[1])];"
        "print(jax.local_device_count())"
    )
    plans = [extracting(tmp_path, energy=0.9), merging(tmp_path, "adapter")]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, json.dumps(plans)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "3", done.stderr
    found = {**read_checkpoint(tmp_path / "adapter"), **read_checkpoint(tmp_path / "merged")}
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert_same_bits(found[name], array, name)


# ---------------------------------------------------------------------------------------------- ranks and reports


def bfloat16_pair(tmp_path: Path, changes: dict[str, tuple[tuple[int, int], int, float]]) -> dict[str, np.ndarray]:
    """Write base and tuned weights in bfloat16; a change has a shape, a rank and a size. Gives changes as stored."""
    rng = np.random.default_rng(4)
    base, tuned = {}, {}
    for name, (shape, rank, size) in changes.items():
        base[name] = (0.05 * rng.standard_normal(shape)).astype(ml_dtypes.bfloat16)
        change = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1])) * size
        tuned[name] = (base[name].astype(np.float64) + change).astype(ml_dtypes.bfloat16)
    write_checkpoint(tmp_path / "base" / "model.safetensors", base)
    write_checkpoint(tmp_path / "tuned" / "model.safetensors", tuned)
    return {name: tuned[name].astype(np.float64) - base[name].astype(np.float64) for name in base}


MODULES = {
    "a.q.weight": ((96, 64), 2, 0.02),
    "a.k.weight": ((40, 64), 3, 0.005),
    "a.v.weight": ((64, 64), 0, 0.0),
    "b.up.weight": ((64, 120), 5, 0.01),
}


@pytest.mark.parametrize("keys", [{"max_rank": 3}, {"energy": 0.9}, {"budget": 900, "multiple_of": 2}], ids=str)
def test_what_is_told_of_each_module_is_what_numpy_finds(tmp_path: Path, keys: dict[str, Any]) -> None:
    changes = bfloat16_pair(tmp_path, MODULES)
    told, printed = extract(tmp_path, **keys)
    factors = read_checkpoint(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["left_out"]["a.v.weight"] == "unchanged" and "1 unchanged" in printed
    for name, row in told["modules"].items():
        module, change = name.removesuffix(".weight"), changes[name]
        a, b = (factors[f"base_model.model.{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
        assert a.shape[0] == b.shape[1] == row["rank"]
        assert peft.utils.other.get_pattern_key(config["rank_pattern"], module) in {*config["rank_pattern"], module}
        rest, whole = np.linalg.norm(change - b @ a), np.linalg.norm(change)
        np.testing.assert_allclose(row["relative_error"], rest / whole, rtol=1e-4)
        np.testing.assert_allclose(row["energy_kept"], 1 - (rest / whole) ** 2, rtol=1e-6)
        np.testing.assert_allclose(row["norm"], whole, rtol=1e-6)
        energies = np.square(np.linalg.svd(change, compute_uv=False))
        np.testing.assert_allclose(rest**2, energies[row["rank"] :].sum(), rtol=1e-3)
        if "energy" in keys:
            kept = np.cumsum(energies) / energies.sum()
            assert row["rank"] == 1 + int((kept < keys["energy"]).sum())
    sizes = sum(factors[key].size for key in factors)
    assert told["parameters"] == sizes <= keys.get("budget", sizes)
    if "budget" in keys:
        assert all(row["rank"] % 2 == 0 for row in told["modules"].values()) and sizes > 900 - 2 * 184


def test_rounding_noise_is_not_bought_as_rank(tmp_path: Path) -> None:
    bfloat16_pair(tmp_path, MODULES)
    plain, _ = extract(tmp_path, energy=1)
    told, _ = extract(tmp_path, energy=1, noise_floor=True)
    assert {name: row["rank"] for name, row in told["modules"].items()} == {
        "a.q.weight": 2, "a.k.weight": 3, "b.up.weight": 5
    }  # fmt: skip
    assert all(plain["modules"][name]["rank"] > 20 for name in told["modules"])


def test_an_adapter_for_vllm_has_one_padded_rank(tmp_path: Path) -> None:
    changes = bfloat16_pair(tmp_path, MODULES)
    told, _ = extract(tmp_path, energy=0.99, serving="vllm")
    factors = read_checkpoint(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8 and not config["rank_pattern"] and not config["modules_to_save"]
    for name, row in told["modules"].items():
        module = name.removesuffix(".weight")
        a, b = (factors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        assert a.shape[0] == b.shape[1] == 8 and not a[row["rank"] :].any() and not b[:, row["rank"] :].any()
        assert np.linalg.norm(changes[name] - b @ a) < 0.11 * np.linalg.norm(changes[name])


def test_bounds_that_no_server_takes_do_not_stop_a_plan_that_asks_the_data(tmp_path: Path) -> None:
    bfloat16_pair(tmp_path, {"a.q.weight": ((600, 520), 2, 0.02)})
    plan = plan_of(extracting(tmp_path, energy=0.9, serving="vllm"))
    options = Options(sync=False, memory="32MiB")
    assert len(check(plan, options).symbolic.questions) == 1
    run(plan, options)
    factors = read_checkpoint(tmp_path / "adapter")
    assert {array.shape for array in factors.values()} == {(8, 520), (600, 8)}


# ------------------------------------------------------------------------------------------------------ bad input

STEP = "lora_extract: { base: 'base::(.+)', tuned: 'tuned::\\1', to: adapter, %s }"
REFUSED = {
    "rank: 0": "not a whole number of at least 1",
    "rank: 65": "no rank 65 in a.k.weight",
    "energy: 0": "not a number above 0 and at most 1",
    "energy: 1.5": "not a number above 0 and at most 1",
    "energy: 0.5, rank: 3": "rank is for all modules alike",
    "method: exact": "nothing says which ranks",
    "rank: 2, serving: vlm": "did you mean vllm",
    "budget: 5": "the budget pays for no rank",
    "rank: 2, skip: '('": "invalid regex",
    "max_rank: 3, multiple_of: 8": "max_rank is below multiple_of",
    "rank: 2, dtype: int8": "factors are floating-point tensors",
}


def refused(tmp_path: Path, step: str) -> str:
    """Run a plan of one step that must fail; gives the message. Nothing may be left behind."""
    file = tmp_path / "plan.yaml"
    inputs = "".join(
        f'"{name}::{tmp_path / name}", ' for name in ("base", "tuned", "adapter") if (tmp_path / name).exists()
    )
    file.write_text(f"inputs: [ {inputs} ]\ntransforms:\n  - {step}\noutput: {tmp_path / 'out'}\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SurgeryError) as failed:
        run(load_plan(file), Options(sync=False))
    assert sorted(tmp_path.iterdir()) == before
    text = str(failed.value)
    assert f"{file}:3:" in text, text
    return text


@pytest.mark.parametrize("keys", REFUSED)
def test_ranks_that_make_no_sense_are_refused(tmp_path: Path, keys: str) -> None:
    bfloat16_pair(tmp_path, MODULES)
    assert REFUSED[keys] in refused(tmp_path, STEP % keys)


CHANGED: dict[str, tuple[Any, str]] = {
    "missing": (lambda t: t.pop("a.q.weight"), "tuned missing: tuned::a.q.weight"),
    "extra": (lambda t: t.update({"c.weight": t["a.q.weight"]}), "tuned has tensors that base has not"),
    "reshaped": (lambda t: t.update({"a.q.weight": t["a.q.weight"][:5]}), "a.q.weight has another shape in tuned"),
    "norm": (lambda t: t.update({"norm.weight": t["norm.weight"] * 2}), "norm.weight is not extracted but was changed"),
    "nan": (lambda t: t.update({"a.q.weight": t["a.q.weight"] * np.nan}), "a.q.weight holds NaN or infinity"),
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("what", CHANGED)
def test_checkpoints_that_do_not_match_are_refused(tmp_path: Path, what: str) -> None:
    change, message = CHANGED[what]
    base = {"a.q.weight": np.ones((6, 8), np.float32), "norm.weight": np.ones(4, np.float32)}
    tuned = {"a.q.weight": base["a.q.weight"] * 2, "norm.weight": base["norm.weight"]}
    change(tuned)
    write_checkpoint(tmp_path / "base" / "model.safetensors", base)
    write_checkpoint(tmp_path / "tuned" / "model.safetensors", tuned)
    assert message in refused(tmp_path, STEP % "rank: 2")


def test_the_same_model_twice_has_nothing_to_extract(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        write_checkpoint(tmp_path / name / "model.safetensors", {"a.weight": np.ones((6, 8), np.float32)})
    for keys in ("rank: 2", "energy: 0.9"):
        assert "base and tuned do not differ" in refused(tmp_path, STEP % keys)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_biases_and_norms_that_changed_are_in_the_adapter(tmp_path: Path, kind: str) -> None:
    stored(tiny(kind), tmp_path / "base")
    weights = r".*(c_attn|attn\.c_proj|q_proj)\.weight"
    tuned_model = fine_tuned(tiny(kind), weights, bias=r".*(c_attn|h\.1\.attn\.c_proj)\.bias|.*\.(ln_f|norm)\.\w+")
    stored(tuned_model, tmp_path / "tuned")
    keys: dict[str, Any] = {"rank": RANK, "norms": "save", "biases": "lora", "fan_in_fan_out": kind == "gpt2"}
    told, _ = extract(tmp_path, **keys)
    assert set(told["saved"]) == (
        {"transformer.ln_f.weight", "transformer.ln_f.bias"} if kind == "gpt2" else {"model.norm.weight"}
    )
    model = loaded(tiny(kind), tmp_path / "adapter")
    np.testing.assert_allclose(logits(model), logits(tuned_model), rtol=1e-4, atol=1e-5)
    tuned = read_checkpoint(tmp_path / "tuned")
    for name, array in merge(tmp_path, "adapter").items():
        np.testing.assert_allclose(array, tuned[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("embeddings", ["lora", "save"])
def test_an_output_layer_that_shares_the_embedding_changes_with_it(tmp_path: Path, embeddings: str) -> None:
    stored(tiny("llama", tied=True), tmp_path / "base")
    tuned_model = fine_tuned(tiny("llama", tied=True), r".*(embed_tokens|q_proj)\.weight")
    tuned = stored(tuned_model, tmp_path / "tuned")
    assert "lm_head.weight" not in tuned
    with pytest.raises(SurgeryError, match="the model may compute its outputs with it"):
        extract(tmp_path, rank=RANK, embeddings=embeddings)
    extract(tmp_path, rank=RANK, embeddings=embeddings, tied="lm_head")
    model = loaded(tiny("llama", tied=True), tmp_path / "adapter")
    np.testing.assert_allclose(logits(model), logits(tuned_model), rtol=1e-4, atol=1e-5)
    for name, array in merge(tmp_path, "adapter").items():
        np.testing.assert_allclose(array, tuned[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_experts_stored_as_in_out_are_extracted_and_merged(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    base = {f"m.experts.{part}": rng.standard_normal((3, *shape)) for part, shape in PARTS.items()}
    base = {name: array.astype(np.float32) for name, array in base.items()}
    tuned = {
        name: array + (rng.standard_normal((3, array.shape[1], 2)) @ rng.standard_normal((3, 2, array.shape[2])))
        for name, array in base.items()
    }
    write_checkpoint(tmp_path / "base" / "model.safetensors", base)
    write_checkpoint(tmp_path / "tuned" / "model.safetensors", {n: a.astype(np.float32) for n, a in tuned.items()})
    extract(tmp_path, rank=2, experts="in_out")
    factors = read_checkpoint(tmp_path / "adapter")
    a = factors["base_model.model.m.experts.base_layer.lora_A.weight"].reshape(3, 2, 6)
    b = factors["base_model.model.m.experts.base_layer.lora_B.weight"].reshape(10, 2, 3)
    change = tuned["m.experts.gate_up_proj"] - base["m.experts.gate_up_proj"]
    np.testing.assert_allclose(np.einsum("ore,eri->eio", b, a), change, rtol=1e-3, atol=1e-5)
    for name, array in merge(tmp_path, "adapter").items():
        np.testing.assert_allclose(array, tuned[name], rtol=1e-4, atol=1e-5, err_msg=name)


PARTS = {"gate_up_proj": (6, 10), "down_proj": (5, 6)}
UNMERGED = {
    "{ adapters: base, to: base }": "base: not an adapter",
    "{ adapters: adaptor, to: base }": "unknown model alias: 'adaptor'",
    "{ adapters: { adapter: heavy }, to: base }": "not adapters",
    "{ adapters: [ adapter, adapter ], to: base }": "not adapters",
    "{ adapters: adapter, to: 'base::model.\\1' }": "there is no base::model.a.k.weight",
    "{ adapters: adapter, to: 'base::\\1', from: 'b\\.(.+)' }": "which `from` does not match",
    "{ adapters: adapter, to: 'base::\\2' }": "from and to do not fit",
}


@pytest.mark.parametrize("keys", UNMERGED)
def test_adapters_that_do_not_fit_are_refused(tmp_path: Path, keys: str) -> None:
    bfloat16_pair(tmp_path, MODULES)
    extract(tmp_path, max_rank=2)
    assert UNMERGED[keys] in refused(tmp_path, f"lora_merge: {keys}")


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    bfloat16_pair(tmp_path, MODULES)
    extract(tmp_path, max_rank=2)
    small = {name: array[:30] for name, array in read_checkpoint(tmp_path / "base").items()}
    write_checkpoint(tmp_path / "base" / "model.safetensors", small)
    assert "does not fit the weight" in refused(tmp_path, "lora_merge: { adapters: adapter, to: base }")


def test_a_batch_extracts_from_many_fine_tunes_in_common_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bfloat16_pair(tmp_path, MODULES)
    shutil.copytree(tmp_path / "tuned", tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    steps = "{ lora_extract: { base: 'base::(.+)', tuned: 'tuned::\\1', to: adapter, energy: 0.9 } }"
    Path("plan.yaml").write_text(f"tuned: x\ninputs: [ 'base::base', 'tuned::${{tuned}}' ]\ntransforms: [ {steps} ]\n")
    Path("jobs.yaml").write_text(
        "plan: plan.yaml\nmatrix: { tuned: [ tuned, other ] }\nset: { output: 'out/${job}' }\n"
    )
    report = batch("jobs.yaml", Options(sync=False))
    assert report.num_passes == 1 and [job.status for job in report.jobs] == ["done", "done"]
    found = [read_checkpoint(tmp_path / "out" / name) for name in ("tuned", "other")]
    for name, array in found[0].items():
        assert_same_bits(found[1][name], array, name)
    assert all((tmp_path / "out" / name / "extraction.json").exists() for name in ("tuned", "other"))


# ---------------------------------------------------------------------------------------------------------- plans

PLANS = Path(__file__).parent.parent.parent / "plans"


def test_the_plans_of_the_repository_take_a_change_out_and_put_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = bfloat16_pair(tmp_path, MODULES)
    monkeypatch.chdir(tmp_path)
    options = Options(sync=False)
    run(load_plan(PLANS / "lora_extract.yaml", "output.path=one", "energy=1.0"), options)
    run(load_plan(PLANS / "lora_extract.yaml", "output.path=two", "max_rank=1"), options)
    run(load_plan(PLANS / "lora_merge.yaml", "weights.one=1.0", "weights.two=0"), options)
    base, merged = read_checkpoint(tmp_path / "base"), read_checkpoint(tmp_path / "merged")
    two = json.loads((tmp_path / "two" / "extraction.json").read_text())
    assert {row["rank"] for row in two["modules"].values()} == {1}
    for name, change in changes.items():
        found = merged[name].astype(np.float64) - base[name].astype(np.float64)
        assert merged[name].dtype == base[name].dtype
        assert np.abs(found - change).max() <= 2.0**-8  # one step of bfloat16 at most
