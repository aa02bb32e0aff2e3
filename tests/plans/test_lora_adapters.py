"""Adapters of other vocabularies, other spellings and other bases are merged as PEFT computes them, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import PREFIX, adapted, assert_close, merge, refused, stored, told_merging
from running import read_checkpoint, write_checkpoint

from surgery_jax import Options, plan_of, run
from surgery_jax.core.errors import SurgeryError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 32,
}  # fmt: skip


def llama(tied: bool = False, kind: str = "LlamaForCausalLM", rows: int = 0) -> Any:
    torch.manual_seed(3)
    model = getattr(transformers, kind)(transformers.LlamaConfig(**SMALL, tie_word_embeddings=tied)).eval()
    if rows:
        model.resize_token_embeddings(rows)
    return model


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits.numpy()


# ------------------------------------------------------------------------------------------------- other vocabularies


@pytest.mark.parametrize("how", ["factors", "whole"])
def test_the_embeddings_of_an_adapter_with_more_tokens_take_the_place_of_the_bases(tmp_path: Path, how: str) -> None:
    stored(llama(), tmp_path / "base")
    model = llama(rows=44)
    ends = ["embed_tokens", "lm_head"]
    targets = {"target_modules": ["q_proj", *ends]} if how == "factors" else {
        "target_modules": ["q_proj"], "modules_to_save": ends
    }  # fmt: skip
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **targets))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "modules_to_save" in name:
                value += 0.1
    model.save_pretrained(tmp_path / "one", save_embedding_layers=True)
    wanted = {name: value.detach().numpy() for name, value in model.merge_and_unload().named_parameters()}
    assert any("base_layer" in name or "original_module" in name for name in read_checkpoint(tmp_path / "one"))
    found = merge(tmp_path)
    assert found["lm_head.weight"].shape == (44, 16)
    assert_close(found, wanted, found | {"lm_head.weight": np.zeros((44, 16))})
    message = refused(tmp_path, {"one": 0.5})
    assert "cannot be mixed" in message and "[44, 16]" in message and "[40, 16]" in message


def test_factors_for_more_tokens_than_the_base_has_name_the_tensor(tmp_path: Path) -> None:
    stored(llama(), tmp_path / "base")
    adapted(llama(rows=44), tmp_path / "one", target_modules=["q_proj", "v_proj", "up_proj", "lm_head"])
    message = refused(tmp_path)
    assert "lm_head.weight [40, 16]" in message and "[44, 2]" in message and "q_proj" not in message


# ---------------------------------------------------------------------------------------------- outputs that are shared


TIED: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "output layer": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "embedding stored whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("what", TIED)
def test_outputs_that_share_the_embedding_become_what_peft_computes(tmp_path: Path, what: str) -> None:
    base = stored(llama(tied=True), tmp_path / "base")
    assert "lm_head.weight" not in base
    torch.manual_seed(5)
    model = peft.get_peft_model(llama(tied=True), peft.LoraConfig(r=2, init_lora_weights=False, **TIED[what])).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "modules_to_save" in name:
                value += 0.1 * torch.randn(value.shape)
    model.save_pretrained(tmp_path / "one", save_embedding_layers=False)
    message = refused(tmp_path)
    assert "tie_word_embeddings" in message and "tied: lm_head" in message
    found = merge(tmp_path, tied="lm_head")
    assert found.keys() == {*base, "lm_head.weight"}
    merged = llama()
    merged.load_state_dict({name: torch.tensor(value) for name, value in found.items()})
    np.testing.assert_allclose(logits(merged), logits(model), rtol=1e-4, atol=1e-5)


def test_an_embedding_without_outputs_is_merged_where_that_is_known(tmp_path: Path) -> None:
    base = stored(llama(kind="LlamaModel"), tmp_path / "base")
    wanted = adapted(llama(kind="LlamaModel"), tmp_path / "one", target_modules=["embed_tokens"])
    assert "tied: none" in refused(tmp_path)
    assert_close(merge(tmp_path, tied="none"), wanted, base)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"tie_word_embeddings": False}))
    assert_close(merge(tmp_path), wanted, base)


def test_adapters_that_change_embedding_and_outputs_alike_do_so(tmp_path: Path) -> None:
    base = stored(llama(tied=True), tmp_path / "base")
    keys = {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
    torch.manual_seed(5)
    model = peft.get_peft_model(llama(tied=True), peft.LoraConfig(r=2, init_lora_weights=False, **keys)).eval()
    model.save_pretrained(tmp_path / "one", save_embedding_layers=False)
    found = merge(tmp_path)
    assert found.keys() == base.keys()
    merged = llama(tied=True)
    merged.load_state_dict({name: torch.tensor(value) for name, value in found.items()}, strict=False)
    np.testing.assert_allclose(logits(merged), logits(model), rtol=1e-4, atol=1e-5)
    own = stored(llama(), tmp_path / "base")  # with an output layer
    assert merge(tmp_path).keys() == own.keys()
    factors = {name: held for name, held in read_checkpoint(tmp_path / "one").items() if "lm_head" not in name}
    write_checkpoint(tmp_path / "one" / "adapter_model.safetensors", factors)
    assert "but the base has an output layer of its own" in refused(tmp_path)
    wanted = adapted(llama(tied=True), tmp_path / "one", target_modules=["q_proj"], ensure_weight_tying=True)
    assert_close(merge(tmp_path), wanted | {"lm_head.weight": own["lm_head.weight"]}, own)  # ties nothing
    stored(llama(tied=True), tmp_path / "base")
    adapted(llama(tied=True), tmp_path / "one", **keys)
    adapted(llama(tied=True), tmp_path / "two", 6, target_modules=["embed_tokens"])
    assert "merge them in two steps, two first" in refused(tmp_path, ["one", "two"], tied="lm_head")


def test_a_config_that_is_no_longer_true_is_told(tmp_path: Path) -> None:
    stored(llama(), tmp_path / "base", {"tie_word_embeddings": True})
    adapted(llama(), tmp_path / "one", target_modules=["embed_tokens"])
    assert "tie_word_embeddings must be false in config.json" in told_merging(tmp_path)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_config_gets_the_vocabulary_that_an_adapter_was_trained_with(tmp_path: Path) -> None:
    base = stored(llama(), tmp_path / "base", {"vocab_size": len(llama().lm_head.weight), "model_type": "llama"})
    rows, width = base["lm_head.weight"].shape
    adapted(llama(), tmp_path / "one", target_modules=["q_proj"])
    names = ("model.embed_tokens.weight", "lm_head.weight")
    held = {f"base_model.model.{name}": np.ones((rows + 3, width), np.float32) for name in names}
    write_checkpoint(
        tmp_path / "one" / "adapter_model.safetensors",
        read_checkpoint(tmp_path / "one" / "adapter_model.safetensors") | held,
    )
    assert merge(tmp_path)["lm_head.weight"].shape == (rows + 3, width)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == rows + 3


# ------------------------------------------------------------------------------------------------- what the base lacks


def test_modules_that_only_the_adapter_has_become_tensors_of_the_model(tmp_path: Path) -> None:
    base = stored(llama(kind="LlamaModel"), tmp_path / "base")
    base = {f"model.{name}": value for name, value in base.items()}
    write_checkpoint(tmp_path / "base" / "model.safetensors", base)
    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"], task_type="SEQ_CLS")
    model = peft.get_peft_model(llama(kind="LlamaForSequenceClassification"), config)
    model.save_pretrained(tmp_path / "one")
    wanted = {name: value.detach().numpy() for name, value in model.merge_and_unload().named_parameters()}
    found = merge(tmp_path)
    assert found.keys() == {*base, "score.weight"}
    assert_close(found, wanted, found | {"score.weight": np.zeros((2, 16))})
    message = refused(tmp_path, {"one": 0.5})
    assert "score.weight is stored whole" in message and "none in the base" in message


def test_factors_for_modules_that_the_base_lacks_can_be_left_out_as_the_message_says(tmp_path: Path) -> None:
    base = stored(llama(), tmp_path / "base", drop=r".*\.v_proj\.weight")
    wanted = adapted(llama(), tmp_path / "one", target_modules=["q_proj", "v_proj"])
    message = refused(tmp_path)
    assert "it changes model.layers.0.self_attn.v_proj.weight, but there is no base::" in message
    remedy = message.partition("delete: { target: '")[2].partition("' }")[0]
    assert_close(merge(tmp_path, "one", {"delete": {"target": remedy}}), wanted, base)


def test_whole_modules_under_other_names_do_not_become_new_tensors(tmp_path: Path) -> None:
    base = stored(llama(), tmp_path / "base")
    adapted(llama(), tmp_path / "one", target_modules=["q_proj"], modules_to_save=["norm"])
    inner = {name.removeprefix("model."): value for name, value in base.items()}
    write_checkpoint(tmp_path / "base" / "model.safetensors", inner)
    assert "there is no base::model." in refused(tmp_path)
    found = merge(tmp_path, **{"from": r"(?:model\.)?(.+)", "to": r"base::\1"})
    assert found.keys() == inner.keys()


# ------------------------------------------------------------------------------------------------------ other spellings


def spelled(names: list[str], how: str) -> list[str]:
    return {
        "adapter": [name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.") for name in names],
        "compiled": [name.replace(PREFIX, "_orig_mod." + PREFIX) for name in names],
        "compiled layers": [name.replace("layers.0.", "layers.0._orig_mod.") for name in names],
        "sharded": [name.replace("layers.0.", "layers.0._fsdp_wrapped_module.") for name in names],
        "wrapped": ["module." + name for name in names],
        "wrapped inside": [name.replace(PREFIX, PREFIX + "module.") for name in names],
        "bare": [name.removeprefix(PREFIX) for name in names],
    }[how]


@pytest.mark.parametrize(
    "how", ["adapter", "compiled", "compiled layers", "sharded", "wrapped", "wrapped inside", "bare"]
)
def test_names_with_those_of_adapters_and_wrappers_are_understood(tmp_path: Path, how: str) -> None:
    base = stored(llama(), tmp_path / "base")
    wanted = adapted(llama(), tmp_path / "one", target_modules=["q_proj", "lm_head"], rank_pattern={"q_proj": 3})
    tensors = read_checkpoint(tmp_path / "one")
    renamed = dict(zip(spelled(list(tensors), how), tensors.values(), strict=True))
    assert renamed.keys() != tensors.keys()
    write_checkpoint(tmp_path / "one" / "adapter_model.safetensors", renamed)
    assert_close(merge(tmp_path), wanted, base)


def test_an_adapter_without_safetensors_is_read_and_runs_nothing(tmp_path: Path) -> None:
    base = stored(llama(), tmp_path / "base")
    wanted = adapted(llama(), tmp_path / "one", target_modules=["q_proj", "embed_tokens"])
    tensors = read_checkpoint(tmp_path / "one")
    (tmp_path / "one" / "adapter_model.safetensors").unlink()
    torch.save({name: torch.tensor(value) for name, value in tensors.items()}, tmp_path / "one" / "adapter_model.bin")
    assert_close(merge(tmp_path, tied="none"), wanted, base)

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"x": Hostile()}, tmp_path / "one" / "adapter_model.bin")
    with pytest.raises(SurgeryError) as found:
        merge(tmp_path)
    assert found.value.exit_code == 3 and not (tmp_path / "touched").exists()


def test_two_adapters_in_one_file_are_told_apart(tmp_path: Path) -> None:
    stored(llama(), tmp_path / "base")
    adapted(llama(), tmp_path / "one", target_modules=["q_proj"])
    tensors = read_checkpoint(tmp_path / "one")
    both = {name.replace(".weight", f".{alias}.weight"): value for name, value in tensors.items() for alias in "ab"}
    write_checkpoint(tmp_path / "one" / "adapter_model.safetensors", both)
    with pytest.raises(SurgeryError, match=r"several adapters(?s:.+)adapters named a, b"):
        merge(tmp_path)


# ------------------------------------------------------------------------------------------------------------- messages


def test_an_error_of_one_module_names_that_module_only(tmp_path: Path) -> None:
    stored(llama(), tmp_path / "base")
    adapted(llama(), tmp_path / "one", target_modules="all-linear")
    tensors = read_checkpoint(tmp_path / "one")
    name = f"{PREFIX}model.layers.0.mlp.up_proj.lora_A.weight"
    tensors[name] = tensors[name][:, :-1].copy()
    write_checkpoint(tmp_path / "one" / "adapter_model.safetensors", tensors)
    message = refused(tmp_path)
    assert "does not fit the weight model.layers.0.mlp.up_proj.weight [24, 16]" in message
    assert message.count("proj") == 1 and "A [rank, 16] and B [24, rank]" in message


@pytest.mark.parametrize(
    ("ending", "said"),
    [("lora_magnitude_vector", "is of DoRA"), ("lora_monteclora.x", "is not of a plain LoRA adapter")],
)
def test_only_dora_is_called_dora(tmp_path: Path, ending: str, said: str) -> None:
    stored(llama(), tmp_path / "base")
    adapted(llama(), tmp_path / "one", target_modules=["q_proj"])
    tensors = read_checkpoint(tmp_path / "one") | {f"{PREFIX}model.q_proj.{ending}": np.ones(3, np.float32)}
    write_checkpoint(tmp_path / "one" / "adapter_model.safetensors", tensors)
    message = refused(tmp_path)
    assert f"{ending} {said}" in message


def test_tensors_without_their_configuration_are_no_adapter(tmp_path: Path) -> None:
    stored(llama(), tmp_path / "base")
    adapted(llama(), tmp_path / "one", target_modules=["q_proj"])
    shutil.move(tmp_path / "one" / "adapter_model.safetensors", tmp_path / "two.safetensors")
    plan = {
        "inputs": [f"base::{tmp_path / 'base'}", f"two::{tmp_path / 'two.safetensors'}"],
        "transforms": [{"lora_merge": {"adapters": "two", "to": "base"}}],
        "output": str(tmp_path / "merged"),
    }
    with pytest.raises(SurgeryError, match=r"not an adapter(?s:.+)name the directory in inputs"):
        run(plan_of(plan), Options(sync=False))
