"""Tiny models in the layout of model hubs, and configurations that merge them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from running import write_checkpoint

from surgery_jax import MergeOptions, Options, merge, merge_plan
from surgery_jax.cli.main import main

Tensors = dict[str, np.ndarray]

LINEAR = """
    models:
      - { model: one, parameters: { weight: 0.25 } }
      - { model: two, parameters: { weight: [0, 0.75] } }
    merge_method: linear
    parameters: { normalize: false }
"""
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float32",
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def llama(config: Mapping[str, Any] = LLAMA, seed: int = 0, near: Tensors | None = None) -> Tensors:
    """Random weights of a Llama, Mistral or Qwen3 model; `near` has those that they are close to."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for number in range(config["num_hidden_layers"]):
        p = f"model.layers.{number}."
        q, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
        shapes |= {f"{p}self_attn.{x}_proj.weight": (n, hidden) for x, n in (("q", q), ("k", kv), ("v", kv))}
        shapes |= {f"{p}self_attn.o_proj.weight": (hidden, q), f"{p}mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{p}mlp.{x}_proj.weight": (inner, hidden) for x in ("gate", "up")}
        shapes |= {f"{p}{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
        if config["model_type"] == "qwen3":
            shapes |= {f"{p}self_attn.{x}_norm.weight": (head,) for x in "qk"}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    drawn = {name: rng.standard_normal(shape).astype("f4") * np.float32(0.1) for name, shape in shapes.items()}
    return {name: value + (near[name] if near else np.float32(value.ndim == 1)) for name, value in drawn.items()}


def tokenizer(tokens: Sequence[str], special: Sequence[str] = ("<s>", "</s>")) -> dict[str, Any]:
    """A byte-level tokenizer whose tokens are the special ones and then the others."""
    ids = {token: number for number, token in enumerate((*special, *tokens))}
    merges = [f"{token[0]} {token[1]}" for token in tokens if len(token) == 2]
    added = [
        {
            "id": ids[t],
            "content": t,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for t in special
    ]
    parts = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "unk_token": None, "fuse_unk": False, "vocab": ids, "merges": merges}
    return {"version": "1.0", "added_tokens": added, "pre_tokenizer": parts, "decoder": parts, "model": model}


def write_model(
    folder: Path, tensors: Tensors, config: Mapping[str, Any] = LLAMA, files: Mapping[str, Any] | None = None
) -> Tensors:
    """A directory with a model; `files` are further documents, as text or as JSON."""
    folder.mkdir(parents=True)
    write_checkpoint(folder / "model.safetensors", tensors, {"format": "pt"})
    for name, body in {"config.json": config, **(files or {})}.items():
        (folder / name).write_text(body if isinstance(body, str) else json.dumps(body, indent=1))
    return tensors


def configuration(text: str, name: str = "config.yml") -> str:
    """A file with a configuration in the working directory."""
    lines = text.strip("\n").split("\n")
    margin = len(lines[0]) - len(lines[0].lstrip())
    Path(name).write_text("\n".join(line[margin:] for line in lines) + "\n")
    return name


def merged(text: str, out: str = "out", **options: Any) -> Path:
    """Merge as a configuration says; where the result is."""
    merge(configuration(text), out, Options(sync=False), merge_options=MergeOptions(**options))
    return Path(out)


def planned(text: str, **options: Any) -> list[dict[str, Any]]:
    """The steps that a configuration becomes."""
    from surgery_jax.language.document import plain

    plan, _ = merge_plan(configuration(text), "out", MergeOptions(**options))
    assert plan.steps is not None
    steps = plain(plan.steps)
    assert isinstance(steps, list)
    return steps


def command(*words: str) -> int:
    """The exit code of a command."""
    return main(["merge", *words])
