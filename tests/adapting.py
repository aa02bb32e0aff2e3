"""Adapters made by PEFT, and steps that merge them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import read_checkpoint, write_checkpoint

from surgery_jax import Options, plan_of, run
from surgery_jax.core.errors import SurgeryError

PREFIX = "base_model.model."


def stored(model: Any, path: Path, config: dict[str, Any] | None = None, drop: str = "") -> dict[str, np.ndarray]:
    """Write the parameters of a model but those that `drop` matches, and config.json beside them."""
    found = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    found = {name: value for name, value in found.items() if not re.fullmatch(drop, name)}
    write_checkpoint(path / "model.safetensors", found)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return found


def adapted(model: Any, path: Path, seed: int = 5, **config: Any) -> dict[str, np.ndarray]:
    """Store an adapter of PEFT with random factors; gives the parameters after PEFT has merged it."""
    import peft
    import torch

    torch.manual_seed(seed)
    found = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **({"r": 2, "lora_alpha": 3} | config)))
    found.save_pretrained(path, save_embedding_layers=False)
    return {name: value.detach().numpy() for name, value in found.merge_and_unload().named_parameters()}


def merge(tmp_path: Path, adapters: Any = "one", *before: Any, **keys: Any) -> dict[str, np.ndarray]:
    """The tensors of the base after steps and a merge."""
    told_merging(tmp_path, adapters, *before, **keys)
    return read_checkpoint(tmp_path / "merged")


def told_merging(tmp_path: Path, adapters: Any = "one", *before: Any, **keys: Any) -> str:
    """What a merge prints."""
    names = [adapters] if isinstance(adapters, str) else list(adapters)
    plan = {
        "inputs": [f"base::{tmp_path / 'base'}", *(f"{name}::{tmp_path / name}" for name in names)],
        "transforms": [*before, {"lora_merge": {"adapters": adapters, "to": "base", **keys}}],
        "output": {"path": str(tmp_path / "merged")},
    }
    if before:
        plan["transforms"] += [{"prefixes": {"mode": "remove", "alias": name}} for name in names]
    return run(plan_of(plan), Options(sync=False, overwrite=True)).printed


def refused(tmp_path: Path, adapters: Any = "one", **keys: Any) -> str:
    with pytest.raises(SurgeryError) as found:
        merge(tmp_path, adapters, **keys)
    message = str(found.value)
    assert found.value.exit_code == 2 and len(message) < 1000, message
    return message


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> None:
    """All that a base has is as wanted, and something is not as it was."""
    assert found.keys() == base.keys()
    for name in base:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert any(not np.array_equal(wanted[name], base[name]) for name in base)
