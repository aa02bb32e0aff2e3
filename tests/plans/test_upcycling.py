"""The plans of upcycling: transformers loads what they write, and it computes what it should."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_headers import make_dense_headers
from running import assert_same_bits, read_checkpoint

from surgery_jax import Options, check, load_plan, run
from surgery_jax.api import compile_plan
from surgery_jax.core.errors import SurgeryError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PLANS = Path(__file__).parent.parent.parent / "plans"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
TOKENS = torch.arange(1, 61).reshape(3, 20)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OLD_ROPE = {"rope_theta": 5e4, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8}}


def make(place: Path, kind: str, dtype: str = "float32", shard: str = "1GB", seed: int = 0, **more: Any) -> Path:
    """A tiny model of a type, with drawn weights that make its logits large."""
    old = {key: more.pop(key) for key in list(more) if key in ("rope_theta", "rope_scaling")}
    absent = more.pop("absent", [])
    sizes = SIZES | ({"head_dim": 8} if kind == "qwen3" else {}) | more
    config = transformers.AutoConfig.for_model(kind, **sizes)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(place, max_shard_size=shard)
    told = json.loads((place / "config.json").read_text())
    if old:
        told = {key: value for key, value in told.items() if key != "rope_parameters"} | old
    told = {key: value for key, value in told.items() if key not in absent}
    (place / "config.json").write_text(json.dumps(told, indent=2))
    return place


def go(plan: str, output: Path, **values: Any) -> Path:
    words = [f"{key}={json.dumps(value) if isinstance(value, list) else value}" for key, value in values.items()]
    run(load_plan(str(PLANS / f"{plan}.yaml"), f"output={output}", *words), Options(sync=False))
    return output


def loaded(place: Path, wide: bool = True) -> Any:
    """The model of a directory, in float32; every name is there, and no other."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        place, output_loading_info=True, **({"dtype": torch.float32} if wide else {})
    )
    assert not any(told.values()), told
    return model.eval()


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(TOKENS).logits


def distance(source: Path, output: Path) -> float:
    before, after = logits(loaded(source)), logits(loaded(output))
    return float((after - before).abs().max() / before.abs().max())


CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("upcycle_mixtral", "llama", {"tie_word_embeddings": True, "head_dim": 16}, {"experts": 4}),
    ("upcycle_mixtral", "llama", OLD_ROPE | {"shard": "20KB"}, {"experts": 3, "top_k": 1, "layout": "fused"}),
    (
        "upcycle_mixtral",
        "llama",
        {"absent": ["rope_parameters", "rms_norm_eps", "num_key_value_heads"], "num_key_value_heads": 4},
        {"router": "zeros"},
    ),
    ("upcycle_mixtral", "mistral", {"sliding_window": 6, "dtype": "bfloat16"}, {"experts": 4, "layout": "fused"}),
    ("upcycle_qwen2_moe", "qwen2", {"tie_word_embeddings": True}, {"experts": 8, "top_k": 4, "granularity": 2}),
    (
        "upcycle_qwen2_moe",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "absent": ["layer_types"]},
        {"shared": 48},
    ),
    ("upcycle_qwen2_moe", "llama", {"dtype": "bfloat16", "shard": "20KB"}, {"shared": 16, "router": "zeros"}),
    (
        "upcycle_qwen2_moe",
        "llama",
        OLD_ROPE | {"head_dim": 16},
        {"experts": 12, "top_k": 6, "granularity": 3, "shared": 48},
    ),
    ("upcycle_qwen3_moe", "qwen3", {"head_dim": 16}, {"experts": 8, "top_k": 4, "granularity": 4}),
    (
        "upcycle_qwen3_moe",
        "qwen3",
        {"dtype": "bfloat16", "attention_bias": True, "tie_word_embeddings": True, "shard": "20KB"},
        {"experts": 4},
    ),
    (
        "upcycle_qwen3_moe",
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
        {"experts": 2, "top_k": 1},
    ),
    ("upcycle_flex_olmo", "olmo2", {"shard": "20KB"}, {"experts": 4, "top_k": 2, "granularity": 2}),
    ("upcycle_flex_olmo", "olmo2", {"dtype": "bfloat16", "tie_word_embeddings": True}, {"experts": 3, "seed": 5}),
]


@pytest.mark.parametrize(("plan", "kind", "model", "values"), CASES)
def test_an_upcycled_model_computes_what_the_dense_one_did(
    plan: str, kind: str, model: dict[str, Any], values: dict[str, Any], tmp_path: Path
) -> None:
    source = make(tmp_path / "dense", kind, **model)
    output = go(plan, tmp_path / "moe", source=source, **values)
    assert distance(source, output) <= 1e-5


@pytest.mark.parametrize("layout", ["v4", "fused"])
def test_experts_are_the_bits_of_the_dense_model_and_routers_differ(layout: str, tmp_path: Path) -> None:
    source = make(tmp_path / "dense", "llama", "bfloat16")
    output = go("upcycle_mixtral", tmp_path / "moe", source=source, experts=3, layout=layout)
    before, after = read_checkpoint(source), read_checkpoint(output)
    routers = []
    for layer in range(2):
        at = f"model.layers.{layer}"
        gate, up, down = (before[f"{at}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        if layout == "v4":
            for expert in range(3):
                for name, part in (("w1", gate), ("w3", up), ("w2", down)):
                    assert_same_bits(after.pop(f"{at}.block_sparse_moe.experts.{expert}.{name}.weight"), part)
            routers.append(after.pop(f"{at}.block_sparse_moe.gate.weight"))
        else:
            assert_same_bits(after.pop(f"{at}.mlp.experts.gate_up_proj"), np.stack([np.concatenate([gate, up])] * 3))
            assert_same_bits(after.pop(f"{at}.mlp.experts.down_proj"), np.stack([down] * 3))
            routers.append(after.pop(f"{at}.mlp.gate.weight"))
    assert after.keys() == {name for name in before if ".mlp." not in name}
    for name, array in after.items():
        assert_same_bits(array, before[name], name)
    rows = np.concatenate(routers).astype(np.float64)
    assert routers[0].dtype.name == "bfloat16" and 0.015 < rows.std() < 0.025
    assert len(np.unique(rows, axis=0)) == 6


def test_the_rows_of_a_router_are_equal_for_the_shards_of_a_copy_only(tmp_path: Path) -> None:
    source = make(tmp_path / "dense", "qwen3")
    after = read_checkpoint(
        go("upcycle_qwen3_moe", tmp_path / "moe", source=source, experts=6, top_k=2, granularity=2, seed=3)
    )
    first, second = (after[f"model.layers.{layer}.mlp.gate.weight"] for layer in range(2))
    for rows in (first, second):
        assert_same_bits(rows[0::2], rows[1::2])
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 6


def test_the_config_says_what_the_target_needs_and_keeps_the_rest(tmp_path: Path) -> None:
    source = make(tmp_path / "dense", "mistral", sliding_window=7, absent=["rms_norm_eps"], **OLD_ROPE)
    output = go("upcycle_mixtral", tmp_path / "moe", source=source, experts=4, top_k=3)
    before, after = (json.loads((place / "config.json").read_text()) for place in (source, output))
    assert after == before | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 3,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "rms_norm_eps": 1e-6,
    }
    assert after["rope_scaling"] == OLD_ROPE["rope_scaling"] and after["sliding_window"] == 7
    assert (output / "generation_config.json").read_text() == (source / "generation_config.json").read_text()


def test_a_llama_looks_back_over_no_window_whatever_its_config_says(tmp_path: Path) -> None:
    source = make(tmp_path / "dense", "llama", sliding_window=3)
    output = go("upcycle_mixtral", tmp_path / "moe", source=source, experts=2)
    assert json.loads((output / "config.json").read_text())["sliding_window"] is None


@pytest.mark.parametrize("shared", [0, 16, 48])
def test_the_shared_expert_is_half_of_the_model_or_adds_nothing(shared: int, tmp_path: Path) -> None:
    source = make(tmp_path / "dense", "qwen2", "bfloat16")
    values = {"source": source, "experts": 4, "top_k": 2, "granularity": 2, "shared": shared}
    before, after = read_checkpoint(source), read_checkpoint(go("upcycle_qwen2_moe", tmp_path / "moe", **values))
    gate, down = (before[f"model.layers.1.mlp.{part}_proj.weight"] for part in ("gate", "down"))
    at = "model.layers.1.mlp"
    assert not after[f"{at}.shared_expert_gate.weight"].any()
    assert after[f"{at}.shared_expert_gate.weight"].shape == (1, 32)
    assert_same_bits(after[f"{at}.shared_expert.gate_proj.weight"], gate[:shared])
    expected = down[:, :shared] if shared == 48 else np.zeros((32, shared), gate.dtype)
    assert_same_bits(after[f"{at}.shared_expert.down_proj.weight"], expected)
    for expert in range(4):
        shard = slice(24 * (expert % 2), 24 * (expert % 2 + 1))
        factor = gate.dtype.type(1 if shared == 48 else 2)
        assert_same_bits(after[f"{at}.experts.{expert}.gate_proj.weight"], gate[shard])
        assert_same_bits(after[f"{at}.experts.{expert}.down_proj.weight"], down[:, shard] * factor)


def test_a_router_of_zeros_does_not_keep_shards_together_and_this_is_said(tmp_path: Path) -> None:
    source = make(tmp_path / "dense", "qwen3")
    values = {"source": str(source), "experts": "4", "granularity": "2", "router": "zeros"}
    plan = load_plan(
        str(PLANS / "upcycle_qwen3_moe.yaml"), f"output={tmp_path / 'moe'}", *map("=".join, values.items())
    )
    (told,) = check(plan).symbolic.warnings
    assert "left to how a framework breaks ties" in str(told)


@pytest.mark.parametrize(
    ("target", "kind", "ratio", "dtype"),
    [("mixtral", "llama", 0.5, "bfloat16"), ("qwen3_moe", "qwen3", 0.26, "float32")],
)
def test_experts_of_drop_upcycling_forget_sets_of_their_own(
    target: str, kind: str, ratio: float, dtype: str, tmp_path: Path
) -> None:
    source = make(tmp_path / "dense", kind, dtype)
    output = go("upcycle_drop", tmp_path / "moe", source=source, target=target, experts=3, ratio=ratio)
    loaded(output)
    before, after = read_checkpoint(source), read_checkpoint(output)
    block, names = ("block_sparse_moe", "132") if target == "mixtral" else ("mlp", ())
    seen, drawn = set(), {part: [] for part in ("gate", "up", "down")}
    for layer in range(2):
        for expert in range(3):
            lost = []
            for place, part in enumerate(("gate", "up", "down")):
                name = f"w{names[place]}" if names else f"{part}_proj"
                old = before[f"model.layers.{layer}.mlp.{part}_proj.weight"].astype(np.float64)
                new = after[f"model.layers.{layer}.{block}.experts.{expert}.{name}.weight"].astype(np.float64)
                old, new = (old.T, new.T) if part == "down" else (old, new)
                changed = (old != new).any(axis=1)
                lost.append(tuple(changed))
                drawn[part].append((new[changed] - old.mean()) / old.std())
            assert lost[0] == lost[1] == lost[2] and sum(lost[0]) == round(ratio * 48)
            seen.add(lost[0])
    assert len(seen) == 6
    for values in drawn.values():  # thousands of numbers, of mean 0 and deviation 1
        found = np.concatenate(values)
        assert abs(found.mean()) < 4 / found.size**0.5 and abs(found.std() - 1) < 4 / found.size**0.5


def test_branch_train_mix_takes_experts_in_order_and_the_mean_of_the_rest(tmp_path: Path) -> None:
    base, *tuned = (make(tmp_path / f"m{seed}", "llama", "bfloat16", seed=seed) for seed in range(4))
    (base / "tokenizer.json").write_text("{}")
    (tuned[0] / "config.json").write_text((base / "config.json").read_text().replace('"use_cache": true', '"a": 1'))
    output = go("branch_train_mix", tmp_path / "moe", base=base, experts=[str(place) for place in tuned])
    loaded(output)
    assert json.loads((output / "config.json").read_text())["num_local_experts"] == 3
    assert '"a": 1' not in (output / "config.json").read_text() and (output / "tokenizer.json").exists()
    models, after = [read_checkpoint(place) for place in tuned], read_checkpoint(output)
    for name, first in models[0].items():
        rest = [model[name] for model in models]
        if ".mlp." not in name:
            mean = sum(x.astype(np.float32) for x in rest[1:]) * 0  # zeros of its shape
            for x in rest:
                mean = mean + x.astype(np.float32)
            assert_same_bits(after.pop(name), (mean / np.float32(3)).astype(first.dtype), name)
            continue
        at, part = name.split(".mlp.")
        for expert, array in enumerate(rest):
            word = {"gate": "w1", "up": "w3", "down": "w2"}[part.removesuffix("_proj.weight")]
            assert_same_bits(after.pop(f"{at}.block_sparse_moe.experts.{expert}.{word}.weight"), array)
    assert sorted(after) == [f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in range(2)]


def test_an_olmo_becomes_two_experts(tmp_path: Path) -> None:
    source = make(tmp_path / "dense", "olmo")
    output = go("two_experts", tmp_path / "moe", source=source)
    before, after = read_checkpoint(source), read_checkpoint(output)
    for name, array in before.items():
        if ".mlp." not in name:
            assert_same_bits(after.pop(name), array)
            continue
        for expert in range(2):
            assert_same_bits(after.pop(name.replace(".mlp.", f".mlp.experts.{expert}.")), array)
    assert {name: array.shape for name, array in after.items()} == {
        f"model.layers.{layer}.mlp.gate.weight": (2, 32) for layer in range(2)
    }
    assert not (output / "config.json").exists()


def test_experts_become_the_first_one_and_low_rank_changes(tmp_path: Path) -> None:
    dense = make(tmp_path / "dense", "llama")
    moe = go("upcycle_drop", tmp_path / "moe", source=dense, experts=3)
    experts = go("low_rank_expert", tmp_path / "experts", source=moe, rank=5, keep=0.2)
    factors = go("low_rank_factors", tmp_path / "factors", source=moe, rank=5, keep=0.2)
    loaded(experts)
    before, rebuilt, parts = read_checkpoint(moe), read_checkpoint(experts), read_checkpoint(factors)
    for name, array in before.items():
        if ".experts." not in name or ".experts.0." in name:
            assert_same_bits(rebuilt[name], array)
            assert_same_bits(parts.pop(name), array)
            continue
        first = before[name.replace(".experts.1.", ".experts.0.").replace(".experts.2.", ".experts.0.")]
        u, s, vt = np.linalg.svd(array.astype(np.float64) - first)
        expected = (u[:, :5] * s[:5]) @ vt[:5] + first
        stem = name.removesuffix(".weight")
        a, b = (parts.pop(f"{stem}.lora_{side}.weight") for side in "AB")
        np.testing.assert_allclose(rebuilt[name], expected, atol=1e-5)
        np.testing.assert_allclose(b @ a + first, expected, atol=1e-5)
    assert not parts
    with pytest.raises(SurgeryError, match=r"of the squared norm is kept, expected at least 0\.9"):
        go("low_rank_factors", tmp_path / "no", source=moe, rank=1, keep=0.9)


REFUSED: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
    ("upcycle_mixtral", "qwen2", {}, {}, "model_type qwen2"),
    ("upcycle_mixtral", "llama", {"attention_bias": True}, {}, r"q_proj\.bias"),
    ("upcycle_mixtral", "llama", {"hidden_act": "gelu"}, {}, "hidden_act gelu"),
    ("upcycle_mixtral", "llama", {"absent": ["hidden_size"]}, {}, "unknown key 'hidden_size' of .*config.json"),
    ("upcycle_mixtral", "llama", {}, {"top_k": 9}, "parameter top_k is out of bounds"),
    ("upcycle_qwen2_moe", "qwen3", {}, {}, "model_type qwen3"),
    ("upcycle_qwen2_moe", "qwen2", {}, {"granularity": 3}, "granularity 3 does not divide experts"),
    ("upcycle_qwen2_moe", "qwen2", {}, {"granularity": 4}, "granularity 4 does not divide top_k"),
    ("upcycle_qwen2_moe", "qwen2", {}, {"shared": 49}, "parameter shared is out of bounds"),
    ("upcycle_qwen3_moe", "qwen3", {}, {"experts": 10, "top_k": 5, "granularity": 5}, "the intermediate size"),
    ("upcycle_qwen3_moe", "qwen3", {}, {"experts": 2, "top_k": 4}, "more experts than there are"),
    (
        "upcycle_qwen3_moe",
        "qwen3",
        {"use_sliding_window": True, "max_window_layers": 1},
        {},
        "1 of 2 layers with a window",
    ),
    ("upcycle_flex_olmo", "olmo", {}, {}, "model_type olmo$"),
    ("upcycle_drop", "qwen3", {}, {}, "model_type qwen3"),
    ("upcycle_drop", "llama", {}, {"ratio": 1.5}, "parameter ratio is out of bounds"),
]


@pytest.mark.parametrize(("plan", "kind", "model", "values", "words"), REFUSED)
def test_what_cannot_be_upcycled_is_refused_with_the_reason(
    plan: str, kind: str, model: dict[str, Any], values: dict[str, Any], words: str, tmp_path: Path
) -> None:
    source = make(tmp_path / "dense", kind, **model)
    with pytest.raises(SurgeryError, match=f"(?m){words}") as raised:
        go(plan, tmp_path / "moe", source=source, **values)
    assert len(str(raised.value).splitlines()) <= 5, raised.value
    assert [place.name for place in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "expected: model_type llama"),
        ({"num_attention_heads": 8}, "num_attention_heads 8"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta': 500000"),
    ],
)
def test_what_is_no_fine_tune_of_the_base_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    base, tuned = (make(tmp_path / name, "llama") for name in ("base", "tuned"))
    config = json.loads((base / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(SurgeryError, match=words):
        go("branch_train_mix", tmp_path / "moe", base=base, experts=[str(base), str(tuned)])


def test_a_fine_tune_with_a_tensor_that_is_left_out_is_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base", "llama", tie_word_embeddings=True)
    tuned = make(tmp_path / "tuned", "llama")
    with pytest.raises(SurgeryError, match=r"all_consumed.*lm_head\.weight"):
        go("branch_train_mix", tmp_path / "moe", base=base, experts=[str(tuned)], top_k=1)


@pytest.mark.parametrize("plan", ["upcycle_mixtral", "upcycle_qwen2_moe", "upcycle_drop"])
def test_64_experts_of_32_layers_are_planned_in_seconds(plan: str, tmp_path: Path) -> None:
    make_dense_headers(tmp_path / "dense", layers=32)
    values = (f"source={tmp_path / 'dense'}", f"output={tmp_path / 'moe'}", "experts=64")
    began = time.process_time()
    compiled = compile_plan(load_plan(str(PLANS / f"{plan}.yaml"), *values))
    assert time.process_time() - began < 6  # about 1 on an idle machine
    ((_, layout),) = compiled.outputs
    assert len(layout.places) >= 32 * 64 * 3
