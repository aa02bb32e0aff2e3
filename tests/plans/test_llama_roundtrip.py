"""A model of transformers survives surgery: taken apart and put together again, it loads and computes the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from running import read_checkpoint

from surgery_jax import Options, load_plan, run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROUND_TRIP = r"""
inputs: [ "llama::MODEL" ]
transforms:
  # other names, and one matrix for q, k and v
  - move: { from: 'model\.layers\.(\d+)\.(.+)', to: 'blocks.\1.\2' }
  - move: { from: [ blocks, $i, self_attn, "~part::([qkvo])_proj", weight ], to: [ blocks, $i, attn, $part ] }
  - concat: { from: [ blocks.0.attn.q, blocks.0.attn.k, blocks.0.attn.v ], to: blocks.0.attn.qkv }
  - concat: { from: [ blocks.1.attn.q, blocks.1.attn.k, blocks.1.attn.v ], to: blocks.1.attn.qkv }
  - delete: { target: 'blocks\.\d\.attn\.[qkv]' }
  - permute: { from: 'blocks\.(\d)\.mlp\.(.+)\.weight', to: 'turned.\1.\2', order: [ 1, 0 ] }
  - delete: { target: 'blocks\.\d\.mlp\..+' }
  - reshape_: { target: model.embed_tokens.weight, shape: [ 4, -1, 16 ] }
  - assert: { shape: { of: 'blocks\.\d\.attn\.qkv', is: [ 32, 16 ] } }
  - assert: { not: { exists: '.*_proj.*attn.*' } }
  # and back
  - reshape_: { target: model.embed_tokens.weight, shape: [ -1, 16 ] }
  - permute: { from: 'turned\.(\d)\.(.+)', to: 'blocks.\1.mlp.\2.weight', order: [ 1, 0 ] }
  - delete: { target: 'turned\..+' }
  - split: { from: blocks.0.attn.qkv, to: [ blocks.0.attn.q, blocks.0.attn.k, blocks.0.attn.v ], sizes: [ 16, 8, 8 ] }
  - split: { from: blocks.1.attn.qkv, to: [ blocks.1.attn.q, blocks.1.attn.k, blocks.1.attn.v ], sizes: [ 16, 8, 8 ] }
  - delete: { target: '.+\.qkv' }
  - move: { from: 'blocks\.(\d)\.attn\.(.)', to: 'model.layers.\1.self_attn.\2_proj.weight' }
  - move: { from: 'blocks\.(.+)', to: 'model.layers.\1' }
output: OUT
"""


def tiny_llama(path: Path) -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=32,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval()
    made.save_pretrained(path)
    return made


@pytest.mark.filterwarnings("ignore")
def test_a_llama_taken_apart_and_put_together_loads_and_computes_the_same(tmp_path: Path) -> None:
    before = tiny_llama(tmp_path / "model")
    file = tmp_path / "plan.yaml"
    file.write_text(ROUND_TRIP.replace("MODEL", str(tmp_path / "model")).replace("OUT", str(tmp_path / "out")))
    report = run(load_plan(file), Options(sync=False))
    assert report.num_compilations == 0 and report.bytes_moved > 0
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "out")
    after, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(before(tokens).logits, after.eval()(tokens).logits)


@pytest.mark.filterwarnings("ignore")
def test_an_upcycled_llama_computes_with_its_scaled_weights(tmp_path: Path) -> None:
    before = tiny_llama(tmp_path / "model")
    file = tmp_path / "plan.yaml"
    plan = {
        "inputs": [f"m::{tmp_path / 'model'}"],
        "transforms": [{"scale_": {"target": "lm_head.weight", "by": 2}}],
        "output": str(tmp_path / "out"),
    }
    file.write_text(yaml.safe_dump(plan))
    run(load_plan(file), Options(sync=False))
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "out")
    after = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(before(tokens).logits * 2, after.eval()(tokens).logits)
    found = read_checkpoint(tmp_path / "out")
    assert np.array_equal(found["lm_head.weight"], before.lm_head.weight.detach().numpy() * 2)
