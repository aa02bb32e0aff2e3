"""Configurations as people publish them, on stand-ins with as many layers: what comes out loads in transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import read_checkpoint
from tiny_models import LLAMA, Tensors, llama, merged, write_model

MISTRAL = LLAMA | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 32,
    "sliding_window": None,
    "torch_dtype": "bfloat16",
}

SLERP = """
    slices:
      - sources:
          - model: OpenPipe/mistral-ft-optimized-1218
            layer_range: [0, 32]
          - model: mlabonne/NeuralHermes-2.5-Mistral-7B
            layer_range: [0, 32]
    merge_method: slerp
    base_model: OpenPipe/mistral-ft-optimized-1218
    parameters:
      t:
        - filter: self_attn
          value: [0, 0.5, 0.3, 0.7, 1]
        - filter: mlp
          value: [1, 0.5, 0.7, 0.3, 0]
        - value: 0.5
    dtype: bfloat16
"""
DARE = """
    models:
      - model: mistralai/Mistral-7B-v0.1
        # No parameters necessary for base model
      - model: samir-fama/SamirGPT-v1
        parameters:
          density: 0.53
          weight: 0.4
      - model: abacusai/Slerp-CM-mist-dpo
        parameters:
          density: 0.53
          weight:
            - filter: mlp
              value: 0.5
            - value: 0.3
    merge_method: dare_ties
    base_model: mistralai/Mistral-7B-v0.1
    parameters:
      int8_mask: true
    dtype: bfloat16
"""
TIES = """
    models:
      - model: top1
        parameters:
          density: [1, 0.7, 0.1] # density gradient
          weight: 1.0
      - model: top2
        parameters:
          density: 0.5
          weight: [0, 0.3, 0.7, 1] # weight gradient
      - model: top3
        parameters:
          density: 0.33
          weight:
            - filter: mlp
              value: 0.5
            - value: 0
    merge_method: ties
    base_model: top
    parameters:
      normalize: true
      int8_mask: true
    dtype: float16
"""
SHORTENED = """
    dtype: float16
    merge_method: linear
    slices:
    - sources:
      - layer_range: [0, 8]
        model: mistralai/Mistral-7B-Instruct-v0.2
        parameters:
          weight: 0.33
      - layer_range: [8, 16]
        model: mistralai/Mistral-7B-Instruct-v0.2
        parameters:
          weight: 0.33
      - layer_range: [16, 24]
        model: mistralai/Mistral-7B-Instruct-v0.2
        parameters:
          weight: 0.25
      - layer_range: [24, 32]
        model: mistralai/Mistral-7B-Instruct-v0.2
        parameters:
          weight: 0.09
"""
FRANKEN = """
    slices:
    - sources:
      - model: upstage-like
        layer_range: [0, 24]
    - sources:
      - model: upstage-like
        layer_range: [8, 32]
    merge_method: passthrough
    dtype: bfloat16
"""
DUMPED = """
    base_model: mistralai/Mistral-7B-v0.1
    dtype: bfloat16
    merge_method: task_arithmetic
    modules:
      default:
        slices:
        - sources:
          - layer_range: [0, 32]
            model: samir-fama/SamirGPT-v1
            parameters:
              weight: [0.9, 0.2, 0.4]
          - layer_range: [0, 32]
            model: mistralai/Mistral-7B-v0.1
    parameters:
      int8_mask: 1.0
      lambda: 1.0
      normalize: 0.0
    tokenizer: {}
"""
SEVERAL = """
    name: knowledge_core
    merge_method: nuslerp
    models:
      - model: top1
        parameters:
          weight: 0.4
      - model: top2
        parameters:
          weight: 0.6
    ---
    merge_method: passthrough
    slices:
    - sources:  # foundation
      - model: top
        layer_range: [0, 5]
    - sources:  # knowledge
      - model: knowledge_core
        layer_range: [5, 20]
    - sources: # output layer
      - model: top
        layer_range: [20, 32]
        parameters:
          scale:
            - filter: o_proj
              value: 0.0
            - value: 1.0
    dtype: bfloat16
"""
SELECTED = """
    models:
      - model: top1
      - model: top2
    merge_method: sce
    base_model: top
    select_topk: .15
    parameters:
      normalize: true
      select_topk: 0.5
    tokenizer:
      source: union
    chat_template: auto
    out_dtype: bfloat16
    dtype: float32
"""
MEANS = """
    models:
      - model: top1
      - model: top2
    merge_method: %s
    base_model: top
    dtype: float32
    parameters:
      tol: 1e-10
      max_iter: 20.0
      t: 0.001
"""
EXPERTS = """
    base_model: mlabonne/Marcoro14-7B-slerp
    experts:
      - source_model: openchat/openchat-3.5-1210
        positive_prompts:
        - "chat"
        - "assistant"
      - source_model: beowolx/CodeNinja-1.0-OpenChat-7B
        positive_prompts:
        - "code"
        - "python"
    gate_mode: cheap_embed
    dtype: bfloat16
"""


def stand_ins(models: dict[str, Tensors], *names: str) -> dict[str, Tensors]:
    """Models of 32 layers at the paths that a configuration names, close to each other."""
    made: dict[str, Tensors] = {}
    files = {name: (Path("base") / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")}
    base = llama(MISTRAL)
    for seed, name in enumerate(names):
        made[name] = write_model(Path(name), llama(MISTRAL, seed=seed, near=base), MISTRAL, files)
    return made


def loaded(folder: Path, layers: int, kind: str = "mistral") -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert (model.config.num_hidden_layers, model.config.model_type) == (layers, kind)
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (SLERP, ("OpenPipe/mistral-ft-optimized-1218", "mlabonne/NeuralHermes-2.5-Mistral-7B")),
        (DARE, ("mistralai/Mistral-7B-v0.1", "samir-fama/SamirGPT-v1", "abacusai/Slerp-CM-mist-dpo")),
        (TIES, ("top", "top1", "top2", "top3")),
        (DUMPED, ("mistralai/Mistral-7B-v0.1", "samir-fama/SamirGPT-v1")),
        (SEVERAL, ("top", "top1", "top2")),
        (SELECTED, ("top", "top1", "top2")),
        (MEANS % "karcher", ("top", "top1", "top2")),
        (MEANS.replace("      - model: top2\n", "") % "arcee_fusion", ("top", "top1")),
        (MEANS.replace("      - model: top2\n", "") % "nearswap", ("top", "top1")),
    ],
    ids=["slerp", "dare_ties", "ties", "dumped", "several", "sce", "karcher", "arcee_fusion", "nearswap"],
)
def test_merges_of_whole_models_load(models: dict[str, Tensors], text: str, names: tuple[str, ...]) -> None:
    made = stand_ins(models, *names)
    out = merged(text)
    got = read_checkpoint(out)
    assert set(got) == set(made[names[0]])
    assert all(np.isfinite(value.astype("f4")).all() for value in got.values())
    loaded(out, 32)


def test_a_model_merged_with_itself_is_shorter_and_loads(models: dict[str, Tensors]) -> None:
    (made,) = stand_ins(models, "mistralai/Mistral-7B-Instruct-v0.2").values()
    out = merged(SHORTENED)
    name = "model.layers.{}.mlp.up_proj.weight"
    wide = [made[name.format(number)].astype(np.float16).astype(np.float64) for number in (3, 11, 19, 27)]
    wanted = sum(weight * value for weight, value in zip((0.33, 0.33, 0.25, 0.09), wide, strict=True))
    np.testing.assert_allclose(read_checkpoint(out)[name.format(3)], wanted, rtol=1e-3, atol=1e-4)
    loaded(out, 8)


def test_a_frankenmerge_loads(models: dict[str, Tensors]) -> None:
    stand_ins(models, "upstage-like")
    out = merged(FRANKEN)
    got = read_checkpoint(out)
    np.testing.assert_array_equal(got["model.layers.24.mlp.up_proj.weight"], got["model.layers.8.mlp.up_proj.weight"])
    loaded(out, 48)


def test_a_mixture_loads(models: dict[str, Tensors]) -> None:
    stand_ins(models, "mlabonne/Marcoro14-7B-slerp", "openchat/openchat-3.5-1210", "beowolx/CodeNinja-1.0-OpenChat-7B")
    loaded(merged(EXPERTS), 32, "mixtral")
