#!/usr/bin/env python3
"""Make the vectors of prompts that routers with `gate_mode: hidden` are made of; runs the base model with transformers.

    python scripts/gate_vectors.py CONFIG.yml gates.safetensors [--device cpu] [--dtype bfloat16]

For every layer one tensor, called as the layer (`model.layers.0`), with a row for each expert and then for each shared
expert that has prompts: the mean over its prompts of the hidden state that enters the layer, at the last token
(`hidden`, `hidden_last`) or as the mean over the tokens (`hidden_avg`), less that of the negative prompts, as a unit
vector.
`surgery-jax merge CONFIG.yml OUTPUT --gates gates.safetensors` takes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def states(model: Any, tokenizer: Any, prompts: list[str], *, average: bool) -> torch.Tensor:
    """[layers, width]: the mean over prompts of what enters each layer."""
    found = []
    for prompt in prompts:
        text = (tokenizer.bos_token or "") + prompt
        tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(model.device)
        with torch.no_grad():
            hidden = model(**tokens, output_hidden_states=True).hidden_states[:-1]
        stacked = torch.stack(hidden)[:, 0].double()
        found.append(stacked.mean(1) if average else stacked[:, -1])
    return torch.stack(found).mean(0)


def vectors(config: dict[str, Any], device: str, dtype: str) -> dict[str, torch.Tensor]:
    """The tensors of the file."""
    base, average = config["base_model"], config.get("gate_mode", "hidden") == "hidden_avg"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(device)
    rows = []
    for expert in [*config["experts"], *config.get("shared_experts", [])]:
        if not expert.get("positive_prompts"):
            continue
        row = states(model, tokenizer, expert["positive_prompts"], average=average)
        if expert.get("negative_prompts"):
            row = row - states(model, tokenizer, expert["negative_prompts"], average=average)
        rows.append(torch.nn.functional.normalize(row, dim=-1, eps=1e-8))
    table = torch.stack(rows, 1).float()
    return {f"model.layers.{number}": layer.contiguous() for number, layer in enumerate(table)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", type=Path, help="the configuration of the mixture")
    parser.add_argument("out", type=Path, help="the file to write, in safetensors")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", help="that the model is loaded in")
    options = parser.parse_args()
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    save_file(vectors(config, options.device, options.dtype), options.out)


if __name__ == "__main__":
    main()
