"""Adapters made here are loaded by PEFT, and give the fine-tuned model back; what is told of them is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import assert_same_bits, read_checkpoint

from surgery_jax import Options, plan_of, run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

RANK = 2


def tiny(kind: str) -> Any:
    torch.manual_seed(3)
    small = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 32, "tie_word_embeddings": False,
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
