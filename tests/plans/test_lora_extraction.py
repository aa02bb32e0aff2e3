"""Adapters extracted from models of many kinds are loaded by PEFT and compute what the fine-tune computes, or the plan
is refused with a remedy that works."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import read_checkpoint, write_checkpoint

from surgery_jax import Options, plan_of, run
from surgery_jax.core.errors import SurgeryError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip
ENCODER_DECODER = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 32,
}  # fmt: skip
ONE_LAYER = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 32}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
LOCAL = {"num_local_experts": 3, "num_experts_per_tok": 2}
SHARING = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "first_k_dense_replace": 1,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "n_group": 2,
    "topk_group": 2, "num_key_value_heads": 4,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5ForConditionalGeneration", "T5Config",
           {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}),
    "bart": ("BartForConditionalGeneration", "BartConfig", ENCODER_DECODER),
    "clip": ("CLIPTextModel", "CLIPTextConfig", ONE_LAYER | {"max_position_embeddings": 32}),
    "vit": ("ViTForImageClassification", "ViTConfig", ONE_LAYER | {"image_size": 8, "patch_size": 4}),
    "bert": ("BertModel", "BertConfig", ONE_LAYER | {"max_position_embeddings": 32}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", "GPT2Config", GPT2 | {"tie_word_embeddings": False}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", SMALL),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", SMALL | LOCAL),
    "phimoe": ("PhimoeForCausalLM", "PhimoeConfig", SMALL | LOCAL),
    "qwen2-moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", SMALL | EXPERTS | {"shared_expert_intermediate_size": 20}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", SMALL | EXPERTS | {"head_dim": 8}),
    "deepseek": ("DeepseekV3ForCausalLM", "DeepseekV3Config", SMALL | SHARING),
    "gpt-oss": ("GptOssForCausalLM", "GptOssConfig", SMALL | LOCAL | {"head_dim": 8, "intermediate_size": 16}),
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", SMALL | LOCAL | {
        "num_experts_per_tok": 1, "intermediate_size_mlp": 20, "head_dim": 8, "interleave_moe_layer_step": 1,
        "attention_chunk_size": None, "pad_token_id": 0, "layer_types": ["full_attention"] * 2}),
    "mamba": ("MambaForCausalLM", "MambaConfig",
              {"vocab_size": 40, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "time_step_rank": 2,
               "tie_word_embeddings": False}),
}  # fmt: skip


def tiny(kind: str) -> Any:
    model, config, keys = MODELS[kind]
    torch.manual_seed(3)
    return getattr(transformers, model)(getattr(transformers, config)(**keys)).eval()


def changed(model: Any, pattern: str) -> Any:
    """The model with changes of rank 2 in the matrices that a pattern matches, of any kind in other parameters."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not re.fullmatch(pattern, name):
                continue
            if parameter.ndim not in (2, 3):
                parameter += 0.1 * torch.randn(parameter.shape)
                continue
            *experts, m, n = parameter.shape
            parameter += 0.1 * torch.randn(*experts, m, 2) @ torch.randn(*experts, 2, n)
    return model


def outputs(kind: str, model: Any) -> np.ndarray:
    torch.manual_seed(1)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        if kind == "vit":
            return model(torch.randn(1, 3, 8, 8)).logits.numpy()
        found = model(tokens, decoder_input_ids=tokens) if kind in ("t5", "bart") else model(tokens)
        return (found.logits if hasattr(found, "logits") else found.last_hidden_state).numpy()


def store(model: Any, path: Path, named: str) -> None:
    """As transformers saves it, with the names of the hub; or under the `model`'s own names."""
    if named == "hub":
        model.save_pretrained(path)
        return
    write_checkpoint(path / "model.safetensors", {n: p.detach().numpy() for n, p in model.named_parameters()})


def prepared(tmp_path: Path, kind: str, pattern: str, named: str = "hub") -> tuple[np.ndarray, np.ndarray]:
    """Write base and tuned; gives what they compute."""
    base, tuned = tiny(kind), changed(tiny(kind), pattern)
    store(base, tmp_path / "base", named)
    store(tuned, tmp_path / "tuned", named)
    return outputs(kind, base), outputs(kind, tuned)


def extract(tmp_path: Path, **keys: Any) -> str:
    """Run the step; gives what it told."""
    step = {"base": "base::(.+)", "tuned": "tuned::\\1", "to": "adapter", "rank": 2, **keys}
    plan = {
        "inputs": [f"base::{tmp_path / 'base'}", f"tuned::{tmp_path / 'tuned'}"],
        "transforms": [{"lora_extract": {key: value for key, value in step.items() if value is not ...}}],
        "output": {"path": str(tmp_path / "adapter"), "format": "peft"},
    }
    report = run(plan_of(plan), Options(sync=False, overwrite=True))
    return "\n".join([report.printed, *(f"warning: {warning}" for warning in report.warnings)])


def refusal(tmp_path: Path, **keys: Any) -> str:
    with pytest.raises(SurgeryError) as failed:
        extract(tmp_path, **keys)
    assert not (tmp_path / "adapter").exists()
    return str(failed.value)


def loaded(tmp_path: Path, kind: str) -> Any:
    """The base with the adapter; PEFT must have nothing to say but that weights are tied, or layers Linear."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings|fan_in_fan_out is set to True but")
        return peft.PeftModel.from_pretrained(tiny(kind), tmp_path / "adapter").eval()


def check_loads(tmp_path: Path, kind: str, before: np.ndarray, after: np.ndarray, merges: bool = True) -> None:
    """PEFT gives the outputs of the fine-tune, and merges them into the model."""
    model = loaded(tmp_path, kind)
    assert np.abs(before - after).max() > 1e-4
    tolerance = 1e-3 * np.abs(before - after).max()
    assert np.abs(outputs(kind, model) - after).max() < tolerance
    if merges:
        assert np.abs(outputs(kind, model.merge_and_unload()) - after).max() < tolerance


def configuration(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())


EXPERT_PARTS = r"|.*experts\.(gate_up|down)_proj"
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "relative positions": ("t5", r".*relative_attention_bias\.weight|.*\.q\.weight", {"task": "SEQ_2_SEQ_LM"}),
    "text of images": ("clip", r".*embedding\.weight|.*q_proj\.weight", {"tied": "none", "task": "none"}),
    "embeddings of words": ("bert", r".*embeddings\.weight|.*query\.weight", {"tied": "none", "task": None}),
    "positions": ("gpt2", r".*(c_attn|wpe)\.weight", {}),
    "positions looked up otherwise": ("bart", r".*embed_positions\.weight|.*q_proj\.weight", {"task": "SEQ_2_SEQ_LM"}),
    "conv1d, unsaid": ("gpt2", r".*(c_attn|c_proj|c_fc)\.weight", {}),
    "conv1d beside linear": ("gpt2-untied", r".*c_proj\.weight|lm_head\.weight", {"fan_in_fan_out": True}),
    "norms alone": ("qwen2", r".*norm\.weight", {"norms": "save"}),
    "biases stored": ("qwen2", r".*(q|o)_proj\.weight|.*[qk]_proj\.bias", {"biases": "save"}),
    "convolution stored": ("mamba", r".*(x_proj|conv1d)\.weight", {"others": "save"}),
    "convolution, named by norms": ("mamba", r".*(x_proj|conv1d)\.weight", {"norms": "save"}),
    "parameters among modules": ("mamba", r".*(x_proj\.weight|A_log)", {"modules_to_save": ".*mixer"}),
    "output of mamba": ("mamba", r".*(in|out)_proj\.weight", {"others": "save"}),
    "router of gpt-oss": ("gpt-oss", r".*q_proj\.weight|.*router\.weight" + EXPERT_PARTS, {}),
    "axes of llama 4": ("llama4", r".*q_proj\.weight" + EXPERT_PARTS, {}),
    "biases of experts": ("gpt-oss", r".*q_proj\.weight|.*proj_bias", {"modules_to_save": ".*experts"}),
    "bias of a router": ("gpt-oss", r".*q_proj\.weight|.*router\.(bias|weight)", {"biases": "save"}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_peft_computes_what_the_fine_tune_does(tmp_path: Path, case: str) -> None:
    kind, pattern, keys = CASES[case]
    before, after = prepared(tmp_path, kind, pattern, "model")
    assert "warning" not in extract(tmp_path, **keys)
    check_loads(tmp_path, kind, before, after)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, tied", [("t5", "lm_head"), ("bart", "lm_head"), ("gpt2", "lm_head")])
def test_every_module_that_shares_an_embedding_changes_with_it(tmp_path: Path, kind: str, tied: str) -> None:
    pattern = r"(model\.)?shared\.weight|.*wte\.weight|.*(\.q|q_proj|c_attn)\.weight"
    before, after = prepared(tmp_path, kind, pattern)
    task = "CAUSAL_LM" if kind == "gpt2" else "SEQ_2_SEQ_LM"
    assert "tied: lm_head" in refusal(tmp_path, task=task)
    extract(tmp_path, tied=tied, task=task)
    check_loads(tmp_path, kind, before, after, merges=False)  # PEFT adds to one tensor for every module that has it


# --------------------------------------------------------------------------------------------------------- experts

FAMILIES = ["mixtral", "qwen3-moe", "deepseek"]
ROUTED = r".*(q|q_a)_proj\.weight|.*mlp\.gate\.weight" + EXPERT_PARTS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("named", ["hub", "model"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_experts_and_routers_are_loaded_whether_stored_one_by_one_or_not(tmp_path: Path, kind: str, named: str) -> None:
    before, after = prepared(tmp_path, kind, ROUTED, named)
    names = read_checkpoint(tmp_path / "base")
    assert any(re.search(r"experts\.0\.", name) for name in names) == (named == "hub")
    assert "warning" not in extract(tmp_path)
    check_loads(tmp_path, kind, before, after)


def uneven(model: Any) -> Any:
    """The model with changes of rank 1 to 3 in some experts, none in others."""
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("0.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj")):
                for number, matrix in enumerate(parameter[:2]):
                    rank = number + 1 + 2 * ("down" in name)
                    matrix += 0.1 * torch.randn(matrix.shape[0], rank) @ torch.randn(rank, matrix.shape[1])
            elif name.endswith("1.self_attn.q_proj.weight"):
                parameter += 0.1 * torch.randn(parameter.shape[0], 1) @ torch.randn(1, parameter.shape[1])
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keys", [{"energy": 1}, {"max_rank": 4}, {"budget": 6000, "max_rank": 4}], ids=str)
@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_the_experts_of_a_layer_have_one_rank_and_none_is_missing(
    tmp_path: Path, kind: str, keys: dict[str, Any]
) -> None:
    base, tuned = tiny(kind), uneven(tiny(kind))
    store(base, tmp_path / "base", "hub")
    store(tuned, tmp_path / "tuned", "hub")
    extract(tmp_path, rank=..., **keys)
    factors = read_checkpoint(tmp_path / "adapter")
    told = json.loads((tmp_path / "adapter" / "extraction.json").read_text())
    assert told["parameters"] == sum(array.size for array in factors.values()) <= keys.get("budget", 10**9)
    by_layer: dict[str, list[int]] = {}
    for name, array in factors.items():
        layer = re.match(r"(.+\.layers\.\d+\..+experts)\.\d+\..*lora_A", name)
        if layer:
            by_layer.setdefault(layer[1], []).append(len(array))
    assert [len(ranks) for ranks in by_layer.values()] == [9, 9]
    assert all(len(set(ranks)) == 1 for ranks in by_layer.values())
    check_loads(tmp_path, kind, outputs(kind, base), outputs(kind, tuned))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("base", [r"(.*experts\.1\..+|.*q_proj.+)", r"(.*(gate|up|q)_proj.+)", r"(.*(down|q)_proj.+)"])
def test_experts_that_a_pattern_leaves_out_are_said(tmp_path: Path, base: str) -> None:
    prepared(tmp_path, "qwen3-moe", r".*q_proj\.weight" + EXPERT_PARTS)
    told = extract(tmp_path, base=f"base::{base}")
    is_whole = "down" in base  # PEFT stacks these by themselves
    assert ("lora_extract: PEFT 0.21 loads factors for all experts" in told) == (not is_whole)
    if is_whole:
        loaded(tmp_path, "qwen3-moe")
        return
    with pytest.raises((ValueError, KeyError, RuntimeError, UserWarning)):
        loaded(tmp_path, "qwen3-moe")


# What PEFT 0.21 gets wrong, and whether it does: a warning must come exactly then
GETS_WRONG = {
    ("deepseek", "hub", r".*shared_experts.*proj\.weight"): True,
    ("deepseek", "model", r".*q_a_proj\.weight|.*shared_experts.*proj\.weight"): True,
    ("deepseek", "hub", r".*\.0\.mlp.*proj\.weight"): True,
    ("qwen2-moe", "hub", r".*q_proj\.weight|.*experts\.(gate_up|down)_proj"): True,
    ("qwen2-moe", "model", r".*shared_expert\..*|.*experts\.(gate_up|down)_proj"): False,
    ("qwen2-moe", "hub", r".*shared_expert\..*"): False,
    ("phimoe", "hub", r".*q_proj\.weight|.*experts\.(gate_up|down)_proj"): True,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", GETS_WRONG, ids=lambda case: "-".join(case[:2]))
def test_what_peft_leaves_out_is_said(tmp_path: Path, case: tuple[str, str, str]) -> None:
    kind, named, pattern = case
    before, after = prepared(tmp_path, kind, pattern, named)
    told = extract(tmp_path)
    model = peft.PeftModel.from_pretrained(tiny(kind), tmp_path / "adapter").eval()
    error = np.abs(outputs(kind, model) - after).max()
    assert (error > 0.1 * np.abs(before - after).max()) == GETS_WRONG[case]
    assert ("lora_extract: PEFT 0.21" in told) == GETS_WRONG[case]


# ---------------------------------------------------------------------------------------- refusals and their remedies


def hinted(text: str) -> dict[str, Any]:
    """The first remedy that a message names, as keys of the step."""
    found = re.search(r"(?:try: |decide with )(?:.*?: (?=\w+: ))?(\w+): (\[.*?'\]|\w+)", text)
    assert found, text
    key, value = found.groups()
    return {key: re.findall(r"'(.+?)'", value) or {"true": True, "false": False}.get(value, value)}


ARRAYS = {"a.q.weight": (6, 8), "norm.weight": (4,)}
Tensors = dict[str, np.ndarray]


def pair(tmp_path: Path, shapes: dict[str, Any], change: Callable[[Tensors], None] = lambda tuned: None) -> None:
    """Write a base of these shapes, and a fine-tune in which names that start with `a` or have no dot changed, and what
    is said."""
    rng = np.random.default_rng(4)
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    tuned = {name: array + 1 if name.startswith("a") or "." not in name else array for name, array in base.items()}
    change(tuned)
    write_checkpoint(tmp_path / "base" / "model.safetensors", base)
    write_checkpoint(tmp_path / "tuned" / "model.safetensors", tuned)


REMEDIED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "top": ({"cls_token": (1, 1, 8), "weight": (8, 8)}, {}, "cls_token, weight are not extracted"),
    "top, saved": ({"cls_token": (1, 1, 8)}, {"others": "save"}, "neither factor nor store parameters of the model"),
    "among modules": ({"am.cls_token": (1, 1, 8), "am.proj.weight": (8, 8)}, {}, "am.cls_token is not extracted"),
    "beside factors": ({"am.experts.up_proj": (3, 6, 8), "am.experts.up_proj_bias": (3, 6)}, {},
                       "am.experts.up_proj_bias is not extracted"),
    "norm": ({"anorm.weight": (8,), "anorm.bias": (8,)}, {}, "anorm.bias, anorm.weight are not extracted"),
    "convolution": ({"aconv.weight": (8, 4, 3, 3), "aconv.bias": (8,)}, {}, "aconv.bias, aconv.weight are not"),
    "part of attention": ({"am.in_proj_weight": (24, 8), "am.out_proj.weight": (8, 8)}, {},
                          "am.in_proj_weight is not extracted"),
    "name of another": ({"at.cls": (1, 1, 8), "at.flat.weight": (8, 8)}, {}, "at.cls is not extracted"),
    "bias alone": ({"am.weight": (6, 8), "am.bias": (6,), "b.weight": (6, 8)}, {"biases": "lora"}, "no bias in a.q"),
    "embedding?": ({"a.foo_emb.weight": (40, 8)}, {}, "whether modules that changed are embeddings"),
    "experts?": ({"am.mix": (3, 6, 8)}, {}, "am.mix is not extracted"),
    "conv1d?": ({"a.c_proj.weight": (8, 8)}, {}, "stored as [in, out] or [out, in]"),
    "not conv1d": ({"a.c_fc.weight": (6, 24), "a.c_fc.bias": (24,)}, {"fan_in_fan_out": False, "biases": "skip"},
                   "looks stored as [in"),
    "not linear": ({"a.fc.weight": (24, 6), "a.fc.bias": (24,)}, {"fan_in_fan_out": True, "biases": "skip"},
                   "looks stored as [out"),
    "axes of experts": ({"a.experts.up_proj": (3, 8, 8)}, {}, "stored as [in, out] or [out, in]"),
    "axes of experts, wrong": ({"a.experts.gate_up_proj": (3, 12, 8), "a.experts.down_proj": (3, 8, 6)},
                               {"experts": "in_out"}, "do not look stored as experts: in_out says"),
    "embedding not": ({"a.wte.weight": (40, 8)}, {"embeddings": "equal", "tied": "none"}, "a.wte.weight is not"),
    "output": ({"a.wte.weight": (40, 8)}, {}, "the model may compute its outputs with it"),
    "too small": ({"asmall.weight": (1, 8)}, {}, "no rank 2 in asmall.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", REMEDIED)
def test_a_refusal_says_what_helps(tmp_path: Path, case: str) -> None:
    shapes, keys, problem = REMEDIED[case]
    pair(tmp_path, ARRAYS | shapes)
    text = refusal(tmp_path, **keys)
    assert problem in text and len(text) < 1200, text
    remedy = hinted(text)
    extract(tmp_path, **{**keys, **remedy, **({"rank": ...} if "max_rank" in remedy else {})})


def lengthen(tuned: Tensors) -> None:
    tuned["b.embed_tokens.weight"] = np.ones((41, 8), np.float32)


SKIPPED: dict[str, tuple[dict[str, Any], Callable[[Tensors], None], str]] = {
    "another shape": ({"b.embed_tokens.weight": (40, 8)}, lengthen, "b.embed_tokens.weight has another shape"),
    "not in the base": ({}, lengthen, "tuned has tensors that base has not"),
    "another dtype": (
        {"b.ids": (4,)},
        lambda tuned: tuned.update({"b.ids": np.arange(4)}),
        "b.ids is not extracted, and cannot be compared",
    ),
}


@pytest.mark.parametrize("case", SKIPPED)
def test_what_cannot_be_compared_can_be_skipped(tmp_path: Path, case: str) -> None:
    shapes, change, problem = SKIPPED[case]
    pair(tmp_path, ARRAYS | shapes, change)
    text = refusal(tmp_path)
    assert problem in text, text
    extract(tmp_path, **({"skip": re.findall(r"skip: \['(.+?)'\]", text)} if "skip: [" in text else hinted(text)))


def test_a_parameter_that_the_fine_tune_lacks_can_be_skipped(tmp_path: Path) -> None:
    pair(tmp_path, ARRAYS | {"b.ids": (4,)}, lambda tuned: tuned.__delitem__("b.ids"))
    assert "b.ids" in refusal(tmp_path)
    extract(tmp_path, skip="b\\.ids")


@pytest.mark.parametrize("ours, theirs", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")])
def test_another_dtype_is_no_change(tmp_path: Path, ours: str, theirs: str) -> None:
    kinds = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    rng = np.random.default_rng(4)
    shapes = {"a.q.weight": (6, 8), "a.k.weight": (6, 8), "norm.weight": (8,), "conv.weight": (4, 2, 3)}
    base = {name: rng.standard_normal(shape).astype(kinds[ours]) for name, shape in shapes.items()}
    tuned = {name: array.astype(kinds[theirs]) for name, array in base.items()}
    tuned["a.q.weight"] = (base["a.q.weight"].astype(np.float32) + 1).astype(kinds[theirs])
    write_checkpoint(tmp_path / "base" / "model.safetensors", base)
    write_checkpoint(tmp_path / "tuned" / "model.safetensors", tuned)
    assert "1 factored, 0 stored whole" in extract(tmp_path)
    tuned["norm.weight"] = (base["norm.weight"].astype(np.float32) * 1.01).astype(kinds[theirs])
    write_checkpoint(tmp_path / "tuned" / "model.safetensors", tuned)
    (tmp_path / "adapter").rename(tmp_path / "first")
    assert "norm.weight is not extracted but was changed" in refusal(tmp_path)


LINEAR, ASKED = "lora_A.weight", "whether modules that changed are embeddings"
NAMES = {
    "shared": "lora_embedding_A", "pos_embed": "lora_embedding_A", "tok_emb": "lora_embedding_A",
    "token_type_embeddings": "lora_embedding_A", "embed_tokens_per_layer": "lora_embedding_A", "query_embed": ASKED,
    "time_embedding": ASKED, "codebook": ASKED, "rel_pos_bias": ASKED, "patch_embedding": LINEAR, "query": LINEAR,
    "embed_out": LINEAR, "embedding_projection": LINEAR, "token_mixer": LINEAR,
}  # fmt: skip


@pytest.mark.parametrize("word", NAMES)
@pytest.mark.parametrize("beside", ["", "bias", "said"])
def test_names_tell_embeddings_unless_something_else_does(tmp_path: Path, word: str, beside: str) -> None:
    pair(tmp_path, {f"a.{word}.weight": (10, 8)} | ({f"a.{word}.bias": (10,)} if beside == "bias" else {}))
    keys: dict[str, Any] = {"tied": "none", "biases": "skip"}
    wanted = {"": NAMES[word], "bias": LINEAR, "said": "lora_embedding_A"}[beside]
    if wanted == ASKED:
        assert ASKED in refusal(tmp_path, **keys)
        return
    extract(tmp_path, **keys, **({"embedding": f"a\\.{word}"} if beside == "said" else {}))
    assert f"base_model.model.a.{word}.{wanted}" in read_checkpoint(tmp_path / "adapter")


class Attending(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = torch.nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        return self.last(self.attention(x, x, x)[0])


@pytest.mark.parametrize("keys", [{"others": "save"}, {"modules_to_save": "attention"}], ids=str)
def test_a_part_of_attention_that_peft_does_not_reach_is_stored(tmp_path: Path, keys: dict[str, Any]) -> None:
    def made() -> Any:
        torch.manual_seed(2)
        return Attending().eval()

    base, tuned = made(), changed(made(), r"attention\.out_proj\.weight|last\.weight")
    store(base, tmp_path / "base", "model")
    store(tuned, tmp_path / "tuned", "model")
    assert "PEFT does not reach" in refusal(tmp_path)
    extract(tmp_path, task="none", **keys)
    model = peft.PeftModel.from_pretrained(made(), tmp_path / "adapter").eval()
    with torch.no_grad():
        x = torch.randn(1, 4, 8)
        np.testing.assert_allclose(model(x).numpy(), tuned(x).numpy(), atol=1e-5)


def test_an_adapter_without_a_task_is_of_no_task(tmp_path: Path) -> None:
    pair(tmp_path, ARRAYS)
    for task, wanted in (("none", None), (None, None), ("TOKEN_CLS", "TOKEN_CLS"), (..., "CAUSAL_LM")):
        extract(tmp_path, task=task)
        assert configuration(tmp_path)["task_type"] == wanted
    (tmp_path / "adapter").rename(tmp_path / "first")
    assert "did you mean SEQ_CLS" in refusal(tmp_path, task="SEQ_CL")


def test_many_parameters_that_changed_are_one_short_message(tmp_path: Path) -> None:
    shapes = {f"a.{n}.norm.weight": (4,) for n in range(300)} | {f"a.{n}.scales": (4, 4) for n in range(300)}
    pair(tmp_path, ARRAYS | shapes)
    text = refusal(tmp_path)
    assert "288 more are not extracted" in text and len(text) < 1500
    extract(tmp_path, norms="skip")


def test_one_tensor_of_many_that_cannot_be_factored_does_not_fill_the_screen(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    base = {f"layers.{n}.experts.up.weight": rng.standard_normal((4, 6)).astype(np.float32) for n in range(300)}
    base["layers.77.experts.up.weight"][1, 1] = np.nan
    write_checkpoint(tmp_path / "base" / "model.safetensors", base)
    steps = [{"concat": {"from": [f"base::{name}" for name in base], "to": "base::all", "dim": 1}},
             {"phlora": {"target": "base::all", "target_a": "base::a", "target_b": "base::b", "rank": 2}}]  # fmt: skip
    plan = {"inputs": [f"base::{tmp_path / 'base'}"], "transforms": steps, "output": str(tmp_path / "out")}
    with pytest.raises(SurgeryError, match="NaN or infinity") as failed:
        run(plan_of(plan), Options(sync=False))
    assert len(str(failed.value)) < 400


# ------------------------------------------------------------------------------------------------------ orientation


@settings(max_examples=25)
@given(
    width=st.integers(2, 5),
    is_conv1d=st.booleans(),
    with_biases=st.booleans(),
    said=st.sampled_from([None, True, False]),
)
def test_what_is_said_of_conv1d_never_overrides_what_shapes_show(
    tmp_path_factory: pytest.TempPathFactory, width: int, is_conv1d: bool, with_biases: bool, said: bool | None
) -> None:
    """All modules of a layer of GPT-2, of which one is square; NumPy says which change the factors must give."""
    tmp_path = tmp_path_factory.mktemp("conv1d")
    n = 4 * width
    sizes = {"attn.c_attn": (3 * n, n), "attn.c_proj": (n, n), "mlp.c_fc": (4 * n, n), "mlp.c_proj": (n, 4 * n)}
    rng = np.random.default_rng(width)
    base: Tensors = {"lm_head.weight": rng.standard_normal((7, n)).astype(np.float32)}
    for name, (out, inner) in sizes.items():
        weight = rng.standard_normal((out, inner)).astype(np.float32)
        base[f"h.0.{name}.weight"] = weight.T.copy() if is_conv1d else weight
        if with_biases:
            base[f"h.0.{name}.bias"] = np.zeros(out, np.float32)
    tuned = {}
    for name, array in base.items():
        change = np.outer(rng.standard_normal(len(array)), rng.standard_normal(array.shape[-1]))
        tuned[name] = array if name.endswith("bias") else (array + change).astype(np.float32)
    write_checkpoint(tmp_path / "base" / "model.safetensors", base)
    write_checkpoint(tmp_path / "tuned" / "model.safetensors", tuned)
    keys = {} if said is None else {"fan_in_fan_out": said}
    if said is not None and said != is_conv1d:
        assert "looks stored as" in refusal(tmp_path, **keys)
        return
    extract(tmp_path, **keys)
    factors = read_checkpoint(tmp_path / "adapter")
    for name in base:
        if name.endswith("bias"):
            continue
        path = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (factors[f"{path}.lora_{side}.weight"].astype(np.float64) for side in "AB")
        change = tuned[name].astype(np.float64) - base[name]
        np.testing.assert_allclose(b @ a, change.T if is_conv1d and ".c_" in name else change, atol=1e-4)
    assert configuration(tmp_path)["fan_in_fan_out"] == is_conv1d


@pytest.mark.parametrize("evidence", ["sibling", "bias", "router", "embedding"])
@pytest.mark.parametrize("is_in_out", [True, False])
def test_square_experts_are_turned_as_what_is_beside_them_shows(tmp_path: Path, is_in_out: bool, evidence: str) -> None:
    """Up: [out 6, in 8]; or where a sibling must tell it: gate and up joined, [out 16, in 8], and a square down."""
    turn = (lambda shape: shape[::-1]) if is_in_out else (lambda shape: shape)
    shapes = {"a.experts.gate_up_proj": (3, *turn((16, 8))), "a.experts.down_proj": (3, 8, 8)}
    wanted = "a.experts.down_proj"
    if evidence != "sibling":
        shapes, wanted = {"a.experts.up_proj": (3, *turn((6, 8)))}, "a.experts.up_proj"
    more = {"bias": {"a.experts.up_proj_bias": (3, 6)}, "router": {"b.x": (2,), "a.gate.weight": (3, 8)},
            "embedding": {"embed_tokens.weight": (40, 8)}, "sibling": {}}[evidence]  # fmt: skip
    rng = np.random.default_rng(4)
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (shapes | more).items()}
    changes = {name: np.einsum("eor,eri->eoi", *(rng.standard_normal((3, *s)) for s in ((shape[1], 2), (2, shape[2]))))
               for name, shape in shapes.items()}  # fmt: skip
    tuned = base | {name: (base[name] + change).astype(np.float32) for name, change in changes.items()}
    write_checkpoint(tmp_path / "base" / "model.safetensors", base)
    write_checkpoint(tmp_path / "tuned" / "model.safetensors", tuned)
    extract(tmp_path)
    factors = read_checkpoint(tmp_path / "adapter")
    a = factors["base_model.model.a.experts.lora_A.weight"].reshape(3, 2, -1)
    b = factors["base_model.model.a.experts.lora_B.weight"].reshape(-1, 2, 3)
    found = np.einsum("ore,eri->eio" if is_in_out else "ore,eri->eoi", b, a)
    np.testing.assert_allclose(found, changes[wanted], atol=1e-4)
