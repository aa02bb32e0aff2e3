"""Plans of the library give models that transformers loads, and that compute what they must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import assert_same_bits, read_checkpoint, write_checkpoint

from surgery_jax import Options, Problems, diff, load_plan, run
from surgery_jax.core.errors import AssertionFailed, PlanError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PLANS = Path(__file__).parent.parent.parent / "plans"
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, biases and wide heads": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "olmo2": {},
    "phi3": {},
    "mixtral": {"num_experts_per_tok": 2, "num_local_experts": 4},
    "qwen2_moe": MOE | {"num_experts": 4, "mlp_only_layers": [1]},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "hidden_activation": "gelu_pytorch_tanh"},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 3, "vocab_size": 96, "n_positions": 64, "hidden_size": None},
}
BOTH = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def model(kind: str, place: Path, dtype: str = "float32", shard: str = "1GB", **more: Any) -> tuple[Path, Any]:
    """A tiny model with weights that are no accident, biases too, and where it was saved."""
    torch.manual_seed(len(kind))
    values = SIZES | (KINDS | KIN)[kind] | more
    known = {key: value for key, value in values.items() if value is not None}
    if kind == "gpt2":
        known = {
            key: value for key, value in known.items() if key.startswith(("n_", "vocab", "initial")) or "token" in key
        }
    config = transformers.AutoConfig.for_model(kind.partition(",")[0], **known)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(place / "m", max_shard_size=shard)
    return place / "m", made


def go(name: str, source: Path, place: Path, *given: str) -> Path:
    run(load_plan(PLANS / f"{name}.yaml", f"source={source}", f"output={place}", *given), Options(sync=False))
    return place


def loaded(place: Path) -> Any:
    found, told = transformers.AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    assert not any(told.values()), told
    return found.eval()


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model.float()(torch.arange(3, 23)[None]).logits[0])


def assert_computes(place: Path, made: Any) -> Any:
    found = loaded(place)
    expected, got = logits(made), logits(found)
    np.testing.assert_allclose(got[:, : expected.shape[1]], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return found


def config(place: Path) -> dict[str, Any]:
    return json.loads((place / "config.json").read_text())


# -- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_deeper_models_with_repeated_layers_that_add_nothing_compute_the_same(kind: str, tmp_path: Path) -> None:
    source, made = model(kind, tmp_path, shard="20KB")
    place = go("depth_upscale", source, tmp_path / "o", "keep_first=3", "keep_last=2", "identity=true")
    found = assert_computes(place, made)
    assert found.config.num_hidden_layers == 5


@BOTH
def test_the_layers_of_a_deeper_model_are_the_first_and_then_the_last(dtype: str, tmp_path: Path) -> None:
    source, _ = model("llama, biases and wide heads", tmp_path, dtype)
    before, after = (
        read_checkpoint(source),
        read_checkpoint(go("depth_upscale", source, tmp_path / "o", "keep_first=2", "keep_last=2")),
    )
    for name, array in after.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str([0, 1, 1, 2][int(parts[2])])
        assert_same_bits(array, before[".".join(parts)], name)
    assert len(after) - len(before) == sum(".layers.1." in name for name in before)
    assert loaded(tmp_path / "o").config.num_hidden_layers == 4


def test_fewer_layers_than_all_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = model("llama", tmp_path)
    report = run(
        load_plan(
            PLANS / "depth_upscale.yaml", f"source={source}", f"output={tmp_path / 'o'}", "keep_first=1", "keep_last=1"
        ),
        Options(sync=False),
    )
    assert "2 layers are fewer than the 3 of the source: 1 in the middle are left out" in str(report.warnings[0])
    assert loaded(tmp_path / "o").config.num_hidden_layers == 2


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen2_moe", "gpt2"])
def test_a_model_without_a_layer_is_that_model_of_transformers(kind: str, tmp_path: Path) -> None:
    source, made = model(kind, tmp_path)
    place = go("prune_layers", source, tmp_path / "o", "drop=[1]")
    layers = made.transformer.h if kind == "gpt2" else made.model.layers
    del layers[1]
    for number, layer in enumerate(layers):
        (layer.attn if kind == "gpt2" else layer.self_attn).layer_idx = number
    made.config.num_hidden_layers = 2
    if getattr(made.config, "layer_types", None):
        del made.config.layer_types[1]
    assert_computes(place, made)


def test_lists_and_numbers_of_layers_follow(tmp_path: Path) -> None:
    source, _ = model("qwen2_moe", tmp_path)
    path = source / "config.json"
    told = config(source) | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    told |= {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "no_rope_layers": [1, 0, 1]}
    path.write_text(json.dumps(told))
    found = config(go("depth_upscale", source, tmp_path / "o", "keep_first=2", "keep_last=2"))
    assert found["layer_types"] == [told["layer_types"][n] for n in (0, 1, 1, 2)]
    assert (found["no_rope_layers"], found["mlp_only_layers"]) == ([1, 0, 0, 1], [1, 2])
    assert (found["num_hidden_layers"], found["max_window_layers"]) == (4, 3)
    del told["layer_types"]
    path.write_text(json.dumps(told | {"decoder_sparse_step": 2, "mlp_only_layers": [], "use_sliding_window": False}))
    # layers 0 and 2 have no experts then, which these tensors have; only the config is looked at
    plan = load_plan(PLANS / "prune_layers.yaml", f"source={source}", f"output={tmp_path / 'p'}", "drop=[0]")
    run(plan, Options(sync=False, config_check=False))
    found = config(tmp_path / "p")
    assert (found["decoder_sparse_step"], found["mlp_only_layers"]) == (1, [1])


# Models whose layers are of several kinds, without the list that says which; the last have other lists.
COUNTED: dict[str, dict[str, Any]] = {
    "cohere2": {}, "gemma2": {}, "gemma3_text": {}, "gpt_oss": {}, "olmo3": {}, "vaultgemma": {},
    "qwen3_next": {}, "qwen3_5_text": {}, "qwen3_5_moe_text": {}, "smollm3": {}, "llama4_text": {},
    "gemma3_text, in three": {"sliding_window_pattern": 3},
    "qwen3_next, in two": {"full_attention_interval": 2},
    "smollm3, in two": {"no_rope_layer_interval": 2},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 5},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "llama4_text, half of experts": {"interleave_moe_layer_step": 2, "moe_layers": [1, 3, 5, 7]},
    "lfm2_moe": {"num_dense_layers": 2, "layer_types": ["conv", "full_attention"] * 4},
    "gpt_neo": {"num_layers": 8, "attention_types": [[["global", "local"], 2], [["local"], 4]]},
}  # fmt: skip


@pytest.mark.parametrize("kind", COUNTED)
def test_layers_of_several_kinds_keep_theirs_where_no_list_says_which(kind: str, tmp_path: Path) -> None:
    """The config alone, as transformers reads it, before and after."""
    more = {"num_hidden_layers": 8} | COUNTED[kind]
    source, tensors = tmp_path / "m", {f"model.layers.{n}.x.weight": np.full((2, 2), n, "f4") for n in range(8)}
    write_checkpoint(source / "model.safetensors", tensors)
    known = {"architectures": ["X"], "model_type": kind.partition(",")[0]}
    (source / "config.json").write_text(json.dumps(known | more))
    after = transformers.AutoConfig.from_pretrained(go("prune_layers", source, tmp_path / "o", "drop=[0, 1, 4]"))
    before = transformers.AutoConfig.from_pretrained(source)
    kept = [2, 3, 5, 6, 7]
    for key in ("layer_types", "no_rope_layers", "attention_layers"):
        if getattr(before, key, None):
            assert getattr(after, key) == [getattr(before, key)[n] for n in kept]
    if kind.endswith("experts"):
        assert after.moe_layers == [1, 2, 4]
    assert getattr(after, "num_dense_layers", 0) == 0


def test_a_gemma_without_a_list_of_its_layers_computes_as_one_without_a_layer(tmp_path: Path) -> None:
    source, made = model("gemma2", tmp_path)
    told = {key: value for key, value in config(source).items() if key != "layer_types"}
    (source / "config.json").write_text(json.dumps(told))
    place = go("prune_layers", source, tmp_path / "o", "drop=[1]")
    made.model.layers.pop(1)
    made.config.num_hidden_layers = 2
    made.config.layer_types.pop(1)
    made.model.layers[1].self_attn.layer_idx = 1
    assert_computes(place, made)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"model_type": "qwen2_moe", "use_sliding_window": True, "sliding_window": 8}, "look back over the window"),
        ({"model_type": "exaone4", "sliding_window": 8}, "look back over the window"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"model_type": "gemma3n_text", "layer_types": ["a"] * 3, "num_kv_shared_layers": 1}, "depends on its number"),
        ({"model_type": "ernie4_5_moe", "moe_layer_interval": 2}, "moe_layer_interval 2"),
        ({"model_type": "lfm2_moe", "num_dense_layers": 1}, "a dense layer would come after one with experts"),
        ({"model_type": "other"}, r"count: .*mlp\.gate\.weight"),
    ],
)
def test_layers_of_which_nothing_tells_their_kind_are_refused(told: Any, words: str, tmp_path: Path) -> None:
    source = tmp_path / "m"
    tensors = {f"model.layers.{n}.mlp.up.weight": np.zeros((2, 2), "f4") for n in range(3)}
    write_checkpoint(source / "model.safetensors", tensors | {"model.layers.1.mlp.gate.weight": np.zeros(2, "f4")})
    (source / "config.json").write_text(json.dumps({"num_hidden_layers": 3} | told))
    with pytest.raises((PlanError, Problems, AssertionFailed), match=words):
        go("depth_upscale", source, tmp_path / "o", "keep_first=2", "keep_last=3")


def test_layers_that_predict_further_tokens_are_left_out_and_this_is_told(tmp_path: Path) -> None:
    source = tmp_path / "m"
    tensors = {f"model.layers.{n}.mlp.up.weight": np.zeros((2, 2), "f4") for n in range(4)}
    write_checkpoint(source / "model.safetensors", tensors)
    told = {"model_type": "deepseek_v3", "num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    (source / "config.json").write_text(json.dumps(told))
    plan = load_plan(PLANS / "prune_layers.yaml", f"source={source}", f"output={tmp_path / 'o'}", "drop=[0]")
    report = run(plan, Options(sync=False))
    assert "num_nextn_predict_layers in config.json, are left out" in str(report.warnings[0])
    assert config(tmp_path / "o")["num_nextn_predict_layers"] == 0
    assert len(read_checkpoint(tmp_path / "o")) == 2


def test_a_number_that_counts_layers_without_a_list_is_refused(tmp_path: Path) -> None:
    source, _ = model("llama", tmp_path)
    (source / "config.json").write_text(json.dumps(config(source) | {"attn_layer_period": 2}))
    with pytest.raises((PlanError, Problems), match=r"(?s)said by their numbers.*attn_layer_period 2"):
        go("prune_layers", source, tmp_path / "o", "drop=[0]")


# -- vocabulary ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "init", "dtype"),
    [
        ("llama", "mean", "float32"),
        ("llama, tied", "mean", "bfloat16"),
        ("gpt2", "zeros", "float32"),
        ("llama", "normal", "float32"),
    ],
)
def test_old_tokens_of_a_larger_vocabulary_have_their_logits(kind: str, init: str, dtype: str, tmp_path: Path) -> None:
    source, made = model(kind, tmp_path, dtype)
    place = go("extend_vocab", source, tmp_path / "o", "multiple_of=64", f"init={init}")
    found = assert_computes(place, made)
    assert found.config.vocab_size == 128 and config(place)["vocab_size"] == 128
    before, after = read_checkpoint(source), read_checkpoint(place)
    assert after.keys() == before.keys()
    for name in (name for name in before if before[name].shape[0] == 96 and "mlp" not in name):
        old, new = before[name], after[name][96:].astype(np.float32)
        assert_same_bits(after[name][:96], old, name)
        if init == "mean":
            mean = old.astype(np.float64).mean(axis=0).astype(old.dtype).astype(np.float32)
            np.testing.assert_allclose(
                new, np.broadcast_to(mean, new.shape), rtol=1e-2 if dtype == "bfloat16" else 1e-6
            )
        elif init == "zeros":
            assert not new.any()
        else:
            assert 0.1 < new.std() < 0.3 or kind == "gpt2"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "(?s)how large is the vocabulary to be.*found: neither"),
        (["size=128", "multiple_of=8"], "(?s)how large.*found: both"),
        (["size=95"], "(?s)out of bounds.*at least 96"),
        (["multiple_of=0"], "(?s)out of bounds"),
    ],
)
def test_a_vocabulary_of_no_clear_size_is_refused(given: list[str], words: str, tmp_path: Path) -> None:
    source, _ = model("llama", tmp_path)
    with pytest.raises((PlanError, Problems), match=words):
        go("extend_vocab", source, tmp_path / "o", *given)


# -- dtypes, embeddings -------------------------------------------------------------------------------------------


def test_floats_are_cast_and_nothing_else(tmp_path: Path) -> None:
    tensors = {
        "w": np.array([1.00390625, 3e-3], np.float32),
        "rotary_emb.inv_freq": np.array([0.1], np.float32),
        "embeddings.position_ids": np.arange(4),
        "h.0.attn.bias": np.ones((1, 1, 2, 2), np.uint8),
    }
    source = write_checkpoint(tmp_path / "mixed.safetensors", tensors)
    after = read_checkpoint(go("cast", source, tmp_path / "o.safetensors"))
    narrow = after.pop("w")
    assert narrow.dtype.name == "bfloat16"
    assert_same_bits(narrow, tensors.pop("w").astype(narrow.dtype))
    for name, array in after.items():
        assert_same_bits(array, tensors[name], name)
    write_checkpoint(tmp_path / "large.safetensors", {"w": np.array([1e6], np.float32)})
    with pytest.raises((Problems, AssertionFailed), match="finite"):
        go("cast", tmp_path / "large.safetensors", tmp_path / "p.safetensors", "dtype=float16")


def test_a_cast_model_is_that_of_transformers(tmp_path: Path) -> None:
    source, made = model("qwen2", tmp_path)
    found = loaded(go("cast", source, tmp_path / "o", "dtype=float16"))
    assert found.dtype == torch.float16
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), made.half().parameters(), strict=True))


@BOTH
@pytest.mark.parametrize("kind", ["llama, tied", "gpt2"])
def test_embeddings_are_untied_and_tied_again(kind: str, dtype: str, tmp_path: Path) -> None:
    source, made = model(kind, tmp_path, dtype, shard="20KB")
    apart = go("untie", source, tmp_path / "o")
    found = assert_computes(apart, made)
    assert found.lm_head.weight.data_ptr() != found.get_input_embeddings().weight.data_ptr()
    back = go("tie", apart, tmp_path / "back")
    assert_computes(back, made)
    assert diff(source, back).is_empty


def test_embeddings_that_differ_are_not_tied_and_untied_ones_not_untied(tmp_path: Path) -> None:
    source, _ = model("llama", tmp_path)
    with pytest.raises((Problems, AssertionFailed), match="same_bits"):
        go("tie", source, tmp_path / "o")
    with pytest.raises((PlanError, Problems), match=r"(?s)are not tied.*tie_word_embeddings false"):
        go("untie", source, tmp_path / "o")
    (source / "config.json").write_text(json.dumps({**config(source), "tie_word_embeddings": True}))
    with pytest.raises(Problems, match=r"not: exists: 1 tensors match"):
        go("untie", source, tmp_path / "o")


# -- layouts ------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", ["llama", "llama, tied", "mistral"])
def test_queries_keys_and_values_in_one_tensor_make_a_phi3_that_computes_the_same(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    more = {"head_dim": 24} if kind == "llama" else {}
    source, made = model(kind, tmp_path, dtype, shard="20KB", **more)
    fused = go("fuse_qkv", source, tmp_path / "o")
    assert type(assert_computes(fused, made)).__name__ == "Phi3ForCausalLM"
    back = go("split_qkv", fused, tmp_path / "back")
    assert type(assert_computes(back, made)).__name__ == type(made).__name__
    assert diff(source, back).is_empty


def test_a_phi3_becomes_a_llama_and_a_phi3_again(tmp_path: Path) -> None:
    source, made = model("phi3", tmp_path)
    apart = go("split_qkv", source, tmp_path / "o")
    assert type(assert_computes(apart, made)).__name__ == "LlamaForCausalLM"
    assert diff(source, go("fuse_qkv", apart, tmp_path / "back")).is_empty


@pytest.mark.parametrize(
    ("name", "kind", "more", "words"),
    [
        ("fuse_qkv", "qwen2", {}, "model_type qwen2"),
        ("fuse_qkv", "llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
        ("fuse_qkv", "llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type linear"),
        ("fuse_qkv", "llama, biases and wide heads", {}, "not: exists: 21 tensors match"),
        ("split_qkv", "llama", {}, "model_type llama"),
        ("split_qkv", "phi3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("fuse_experts", "llama", {}, "nothing matches"),
        ("split_experts", "mixtral", {}, "nothing matches"),
    ],
)
def test_a_source_that_is_another_one_is_refused(
    name: str, kind: str, more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    source, _ = model(kind, tmp_path, **more)
    with pytest.raises((PlanError, Problems), match=words):
        go(name, source, tmp_path / "o")
    assert not (tmp_path / "o").exists()


# Mixtures with other names: where their experts are, and what they are called apart.
KIN = {
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "minimax": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "lfm2_moe": MOE | {"num_experts": 4, "num_dense_layers": 0, "layer_types": ["full_attention"] * 3},
}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, dtype) for kind in ("mixtral", "qwen2_moe") for dtype in ("float32", "bfloat16")]
    + [(kind, "float32") for kind in KIN],
)
def test_experts_in_one_tensor_and_apart_are_the_same_model(kind: str, dtype: str, tmp_path: Path) -> None:
    source, made = model(kind, tmp_path, dtype, shard="20KB")
    assert any(".experts.0." in name for name in read_checkpoint(source))  # as transformers saves them
    fused = go("fuse_experts", source, tmp_path / "o")
    assert_computes(fused, made)
    names, expected = (
        {name for name in known if "layers.0" in name and not name.endswith(("gate.weight", "router.weight"))}
        for known in (read_checkpoint(fused), made.state_dict())
    )
    assert names == expected  # but for routers, which some models rename
    back = go("split_experts", fused, tmp_path / "back")
    assert_computes(back, made)
    assert diff(source, back).is_empty
