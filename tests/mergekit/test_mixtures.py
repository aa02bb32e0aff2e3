"""Mixtures of experts, against NumPy and as transformers reads them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import read_checkpoint
from tiny_models import LLAMA, Tensors, command, configuration, llama, merged, planned, write_model

from surgery_jax import PlanError, StorageError

QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 8, "num_hidden_layers": 2}
LAYER = "model.layers.1."
PROMPTED = """
    base_model: base
    gate_mode: {mode}
    dtype: float32
    experts:
      - {{ source_model: one, positive_prompts: [ab, c], negative_prompts: [d] }}
      - {{ source_model: two, positive_prompts: [xyz] }}
"""


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def loads(folder: Path) -> Any:
    """The model that transformers makes of a directory, all of whose tensors it knows."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    return model


def test_llamas_become_a_mixtral(models: dict[str, Tensors]) -> None:
    out = merged("""
        base_model: base
        gate_mode: uniform_random
        dtype: float32
        experts:
          - { source_model: one, residual_scale: 0.5 }
          - { source_model: two }
          - { source_model: base }
    """)
    got, told = read_checkpoint(out), config_of(out)
    np.testing.assert_array_equal(
        got[f"{LAYER}self_attn.q_proj.weight"], models["base"][f"{LAYER}self_attn.q_proj.weight"]
    )
    for number, name in enumerate(("one", "two", "base")):
        for part, new in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
            wanted = models[name][f"{LAYER}mlp.{part}.weight"] * np.float32(0.5 if (number, new) == (0, "w2") else 1)
            np.testing.assert_array_equal(got[f"{LAYER}block_sparse_moe.experts.{number}.{new}.weight"], wanted)
    gates = np.stack([got[f"model.layers.{n}.block_sparse_moe.gate.weight"] for n in range(4)])
    assert gates.shape == (4, 3, 16)
    assert abs(gates).max() <= 0.25
    np.testing.assert_allclose(gates.std(), 0.25 / 3**0.5, rtol=0.15)
    assert (told["model_type"], told["num_local_experts"], told["rope_theta"]) == ("mixtral", 3, 10000.0)
    assert loads(out).config.num_experts_per_tok == 2


def test_one_model_as_all_experts_computes_what_it_did(models: dict[str, Tensors]) -> None:
    torch = pytest.importorskip("torch")
    out = merged("""
        base_model: one
        gate_mode: random
        experts: [{ source_model: one }, { source_model: one }]
    """)
    tokens = torch.tensor([[3, 7, 9, 1, 22]])
    with torch.no_grad():
        torch.testing.assert_close(loads(out)(tokens).logits, loads(Path("one"))(tokens).logits, rtol=1e-4, atol=1e-5)


def test_qwen3_models_and_shared_experts_find_their_targets(models: dict[str, Tensors]) -> None:
    for seed in (7, 8):
        write_model(Path(f"q{seed}"), llama(QWEN3, seed=seed), QWEN3)
    out = merged("{ base_model: q7, gate_mode: random, experts: [{ source_model: q7 }, { source_model: q8 }] }")
    assert loads(out).config.model_type == "qwen3_moe"
    shared = """
        base_model: base
        gate_mode: random
        architecture: {}
        experts: [{{ source_model: one }}, {{ source_model: two }}]
        shared_experts: [{{ source_model: base, residual_scale: 0.1 }}]
    """
    out = merged(shared.format("qwen"), "qwen2")
    assert loads(out).config.model_type == "qwen2_moe"
    got = read_checkpoint(out)
    np.testing.assert_array_equal(got[f"{LAYER}self_attn.k_proj.bias"], np.zeros(8, "f4"))
    scaled = models["base"][f"{LAYER}mlp.down_proj.weight"] * np.float32(0.1)
    np.testing.assert_array_equal(got[f"{LAYER}mlp.shared_expert.down_proj.weight"], scaled)
    text = shared.format("deepseek").replace("random", "cheap_embed")
    for name, prompt in (("one", "ab"), ("two", "c")):  # the shared expert has no router, and needs none
        text = text.replace(f"source_model: {name}", f"source_model: {name}, positive_prompts: [{prompt}]")
    out = merged(text, "deepseek")
    np.testing.assert_array_equal(read_checkpoint(out)[f"{LAYER}mlp.shared_experts.down_proj.weight"], scaled)
    assert config_of(out)["n_shared_experts"] == 1


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_cheap_routers_are_sums_of_embeddings(models: dict[str, Tensors]) -> None:
    out = merged(PROMPTED.format(mode="cheap_embed"))
    rows = models["base"]["model.embed_tokens.weight"].astype(np.float64)
    ids = json.loads(Path("base/tokenizer.json").read_text())["model"]["vocab"]
    total = {text: sum(rows[ids[token]] for token in ("<s>", *text)) for text in ("ab", "c", "d")}
    pair = rows[ids["<s>"]] + rows[ids["ab"]] + total["c"]  # `ab` is one token
    wanted = [unit(unit(pair) - unit(total["d"])), unit(sum(rows[ids[token]] for token in ("<s>", "x", "y", "z")))]
    for number in range(4):
        got = read_checkpoint(out)[f"model.layers.{number}.block_sparse_moe.gate.weight"]
        np.testing.assert_allclose(got, np.array(wanted), rtol=1e-5, atol=1e-7)


def test_hidden_routers_come_from_a_file_that_the_script_makes(
    models: dict[str, Tensors], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    text = PROMPTED.format(mode="hidden")
    with pytest.raises(PlanError, match=r"scripts/gate_vectors\.py"):
        planned(text)
    script = Path(__file__).resolve().parents[2] / "scripts/gate_vectors.py"
    monkeypatch.setattr(
        sys, "argv", ["gate_vectors.py", configuration(text), "gates.safetensors", "--dtype", "float32"]
    )
    runpy.run_path(str(script), run_name="__main__")
    out = merged(text, gates="gates.safetensors")
    got = read_checkpoint(out)
    base, ids = loads(Path("base")), json.loads(Path("base/tokenizer.json").read_text())["model"]["vocab"]
    tokens = torch.tensor([[ids[token] for token in ("<s>", "x", "y", "z")]])
    with torch.no_grad():
        hidden = base(tokens, output_hidden_states=True).hidden_states
    for number in range(4):
        wanted = unit(hidden[number][0, -1].double().numpy())
        np.testing.assert_allclose(
            got[f"model.layers.{number}.block_sparse_moe.gate.weight"][1], wanted, rtol=1e-4, atol=1e-6
        )


def test_noise_depends_on_the_seed_and_has_its_scale(models: dict[str, Tensors]) -> None:
    text = """
        base_model: base
        gate_mode: random
        experts: [{ source_model: one, noise_scale: 0.3 }, { source_model: two }]
    """
    first, again, other = (read_checkpoint(merged(text, f"out{n}", seed=s)) for n, s in enumerate((1, 1, 2)))
    name = f"{LAYER}block_sparse_moe.experts.0.w1.weight"
    np.testing.assert_array_equal(first[name], again[name])
    assert (first[name] != other[name]).any()
    np.testing.assert_allclose((first[name] - models["one"][f"{LAYER}mlp.gate_proj.weight"]).std(), 0.3, rtol=0.15)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cheap_embed", "warm", "gate_mode is none"),
        ("positive_prompts: [xyz]", "residual_scale: 1", "needs positive_prompts"),
        ("positive_prompts: [xyz]", "positive_prompts: xyz", "positive_prompts is a list of texts"),
        ("dtype: float32", "experts_per_token: 3", "experts_per_token is no number of experts"),
        ("dtype: float32", "architecture: nonsense", "no architecture of mixtures is called so"),
        ("dtype: float32", "architecture: qwen3", "no architecture of mixtures fits these models"),
        ("source_model: two", "source_model: wide", "wide does not fit base"),
        ("source_model: two", "source_model: deep", "deep does not fit base"),
        ("source_model: two", "source_model: biased", "biased does not fit base"),
        ("negative_prompts: [d]", "noise_scale: much", "noise_scale is a number"),
        ("negative_prompts: [d]", "residual_scale: .nan", "residual_scale is a number"),
        ("base_model: base", "", "a mixture needs a base_model"),
    ],
)
def test_mixtures_that_cannot_be_are_errors(models: dict[str, Tensors], old: str, new: str, words: str) -> None:
    wide = LLAMA | {"intermediate_size": 32}
    write_model(Path("wide"), llama(wide), wide)
    deep = LLAMA | {"num_hidden_layers": 6}
    write_model(Path("deep"), llama(deep), deep)
    bias = {"model.layers.0.mlp.up_proj.bias": np.ones(24, "f4")}
    write_model(Path("biased"), llama() | bias, LLAMA | {"mlp_bias": True})
    with pytest.raises(PlanError) as error:
        planned(PROMPTED.format(mode="cheap_embed").replace(old, new))
    assert words in str(error.value)
    assert "config.yml:" in str(error.value.where)


@pytest.mark.parametrize(
    ("name", "text", "mode", "where"),
    [
        ("tokenizer.json", "{", "cheap_embed", "1:1"),
        ("tokenizer_config.json", "{", "cheap_embed", "1:1"),
        ("tokenizer_config.json", "[1]", "cheap_embed", "1:1"),
        ("config.json", json.dumps(LLAMA | {"initializer_range": "wide"}), "random", "1:13"),
    ],
)
def test_documents_of_the_base_that_cannot_be_used_are_told(
    models: dict[str, Tensors], name: str, text: str, mode: str, where: str
) -> None:
    (Path("base") / name).write_text(text)
    with pytest.raises(StorageError, match=f"{name} of base") as error:
        planned(PROMPTED.format(mode=mode))
    assert str(error.value.where) == f"config.yml:{where}"


def test_equal_experts_must_be_meant(models: dict[str, Tensors]) -> None:
    text = PROMPTED.format(mode="cheap_embed").replace("source_model: two", "source_model: one")
    with pytest.raises(PlanError, match="all experts have the same models"):
        planned(text)
    flag = "--i-understand-this-is-not-useful-without-training"
    assert command(configuration(text), "out", flag, "--quiet", "--no-sync") == 0
