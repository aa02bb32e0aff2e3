"""The plan that a configuration becomes, as it is printed, by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from running import write_checkpoint
from tiny_models import LETTERS, LINEAR, LLAMA, Tensors, configuration, llama, merged, tokenizer, write_model

from surgery_jax import MergeOptions, Options, load_plan, merge_plan, run
from surgery_jax.language.writing import plan_text

SEVERAL = """
    name: "first: one"
    models: [{ model: one+style, parameters: { weight: 1 } }, { model: more, parameters: { weight: 2 } }]
    merge_method: linear
    base_model: one+style
    tokenizer: { source: union, pad_to_multiple_of: 8, tokens: { <tool>: { source: { kind: zero } } } }
    chat_template: "{% for m in messages %}'{{ m.content }}'\\n{% endfor %}"
    ---
    slices:
      - sources: [{ model: "first: one", layer_range: [0, 3] }]
      - sources: [{ model: "first: one", layer_range: [1, 4] }]
    merge_method: passthrough
    parameters: { scale: [{ filter: o_proj, value: 0.0 }, { value: 1 }] }
    dtype: bfloat16
"""
EXPERTS = """
    base_model: base
    experts:
      - { source_model: one, positive_prompts: [ab], noise_scale: 0.1 }
      - { source_model: two, positive_prompts: ["c: d"], residual_scale: 0.5 }
    gate_mode: cheap_embed
"""
RANDOM = """
    models: [{ model: one, parameters: { density: [0.3, 0.8], weight: 0.5 } }, { model: two }]
    merge_method: dare_ties
    base_model: base
    parameters: { density: 0.5, weight: -1e-1 }
    out_dtype: float16
"""


def write_others() -> None:
    """An adapter, and a model with more tokens than the others."""
    Path("style").mkdir()
    key = "base_model.model.model.layers.1.self_attn.q_proj"
    adapter = {f"{key}.lora_A.weight": np.ones((2, 16), "f4"), f"{key}.lora_B.weight": np.ones((16, 2), "f4")}
    write_checkpoint(Path("style/adapter_model.safetensors"), adapter)
    Path("style/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    config = LLAMA | {"vocab_size": 45}
    files = {"tokenizer.json": tokenizer([*LETTERS[::-1], *(f"b{letter}" for letter in LETTERS[:17])])}
    write_model(Path("more"), llama(config, seed=9), config, files)


@pytest.mark.parametrize("text", [LINEAR, SEVERAL, EXPERTS, RANDOM], ids=["linear", "several", "experts", "random"])
def test_the_printed_plan_runs_by_itself_and_gives_the_same_bits(models: dict[str, Tensors], text: str) -> None:
    write_others()
    out = merged(text, seed=3)
    plan, _ = merge_plan(configuration(text), "again", MergeOptions(seed=3))
    Path("plan.yaml").write_text(plan_text(plan))
    run(load_plan("plan.yaml"), Options(sync=False))
    for file in sorted(out.iterdir()):
        if not file.name.startswith("surgery."):  # which speak of the time
            assert (Path("again") / file.name).read_bytes() == file.read_bytes(), file.name
