"""Adapters made here are loaded by PEFT, and give the fine-tuned model back; what is told of them is true."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


def extract(tmp_path: Path, **keys: Any) -> tuple[dict[str, Any], str]:
    """Run the step on base and tuned; gives what it told."""
    step = {"base": "base::(.+)", "tuned": "tuned::\\1", "to": "adapter", **keys}
    plan = {
        "inputs": [f"base::{tmp_path / 'base'}", f"tuned::{tmp_path / 'tuned'}"],
        "transforms": [{"lora_extract": step}],
        "output": {"path": str(tmp_path / "adapter"), "format": "peft"},
    }
    report = run(plan_of(plan), Options(sync=False, overwrite=True))
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
