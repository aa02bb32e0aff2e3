"""What `config.json` says of a model agrees with its tensors, or nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgery_jax import Options, Problems, batch, convert, plan_of, run
from surgery_jax.api import compile_plan
from surgery_jax.core.errors import PlanError
from surgery_jax.core.notes import Note
from surgery_jax.storage.formats import open_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "intermediate_size": 112, "ffn_dim": 112, "n_inner": 112,
    "d_ff": 112, "encoder_ffn_dim": 112, "decoder_ffn_dim": 112, "ffn_hidden_size": 112, "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56, "num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "num_layers": 3,
    "encoder_layers": 3, "decoder_layers": 3, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2,
    "vocab_size": 160, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "max_position_embeddings": 64, "n_positions": 64,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "word_embed_proj_dim": 32, "head_dim": 24,
    "rotary_dim": 8, "first_k_dense_replace": 1, "expand": 2, "state_size": 8, "max_window_layers": 28,
}  # fmt: skip
KINDS = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text",
    "gpt2", "gpt_neox", "gpt_bigcode", "gptj", "bloom", "falcon", "opt", "phi", "phi3", "mpt", "olmo", "olmo2", "olmoe",
    "flex_olmo", "cohere", "stablelm", "starcoder2", "deepseek_v3", "gpt_oss", "granitemoe", "mamba", "t5", "bert",
    "bart", "llama4_text", "smollm3", "glm4_moe", "ernie4_5_moe", "qwen3_next",
)  # fmt: skip


def tiny(kind: str, place: Path, **more: Any) -> Path:
    """A tiny model of transformers, as it saves it."""
    cls = type(transformers.AutoConfig.for_model(kind))
    known = cls()
    sizes = {key: value for key, value in SIZES.items() if hasattr(known, key)}
    if kind == "falcon":
        del sizes["head_dim"]  # which it computes
    config = cls(**sizes | more)
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny("llama", tmp_path_factory.mktemp("models") / "m", tie_word_embeddings=False)


def check(model: Path, steps: Any = (), output: Any = "never", **options: Any) -> Any:
    place = {"path": str(model.parent / output)} if isinstance(output, str) else output
    plan = plan_of({"inputs": [f"m::{model}"], "transforms": list(steps), "output": place})
    return compile_plan(plan, Options(**{"sync": False} | options))


def edited(model: Path, place: Path, **values: Any) -> Path:
    """A model whose config says something else, written without the check."""
    run(
        plan_of({"inputs": [f"m::{model}"], "transforms": [{"config": {"set": values}}], "output": str(place)}),
        Options(sync=False, config_check=False),
    )
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_transformers_are_written_unchanged(kind: str, tmp_path: Path) -> None:
    check(tiny(kind, tmp_path / "m"))


def put(**values: Any) -> dict[str, Any]:
    return {"config": {"set": values}}


ROWS = {"resize_": {"target": r"(model\.embed_tokens|lm_head)\.weight", "size": 200}}
DELETED = {"delete": {"target": r"model\.layers\.2\..+"}}
GAP = {"delete": {"target": r"model\.layers\.1\..+"}}
HEAD = {"delete": {"target": r"lm_head\.weight"}}
EXPERTS = [{"copy": {"from": r"(.+\.mlp)\.(.+_proj)\.weight", "to": rf"\1.experts.{e}.\2.weight"}} for e in range(2)]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([put(vocab_size=200)], "lm_head.weight has 160 along axis 0, but vocab_size is 200"),
        ([ROWS], "has 200 along axis 0, but vocab_size"),
        ([put(hidden_size=32)], "hidden_size"),
        ([put(intermediate_size=100)], "112 along axis 1, but intermediate_size"),
        ([put(num_attention_heads=8)], r"num_attention_heads \(8\) \* head_dim \(24\) is 192"),
        ([put(num_key_value_heads=4)], r"num_key_value_heads \(4\) \* head_dim \(24\) is 96"),
        ([put(head_dim=16)], "head_dim"),
        ([put(num_hidden_layers=4)], "model.layers is numbered up to 2, but num_hidden_layers is 4"),
        ([DELETED], "model.layers is numbered up to 1, but num_hidden_layers is 3"),
        ([GAP], "model.layers has a gap: there is no number 1 before 2"),
        ([put(layer_types=["full_attention"] * 2)], "layer_types has 2 values, but num_hidden_layers is 3"),
        ([put(no_rope_layers=[1] * 5)], "no_rope_layers has 5 values"),
        ([put(mlp_only_layers=[0, 3])], "mlp_only_layers names layer 3"),
        ([put(use_sliding_window=True, max_window_layers=4)], "max_window_layers is 4"),
        ([HEAD], "tie_word_embeddings is false, but beside model.embed_tokens.weight there is no lm_head.weight"),
        ([put(tie_word_embeddings=True)], "tie_word_embeddings is true, but lm_head.weight is there"),
        ([put(quantization_config={"quant_method": "fp8"})], "there is quantization_config, but no tensor is"),
        (
            [
                {"copy": {"from": r"model\.layers\.0\.mlp\.up_proj\.weight", "to": "e4"}},
                {"cast_": {"target": "e4", "to": "float8_e4m3fn"}},
                {"move": {"from": "e4", "to": "x.weight"}},
                {"ones": {"target": "x.weight_scale", "shape": [1]}},
            ],
            "x.weight is quantised, by x.weight_scale, but there is no quantization_config",
        ),
        ([*EXPERTS, put(num_local_experts=4)], "mlp.experts is numbered up to 1, but num_local_experts is 4"),
        ([*EXPERTS, put(num_experts=2, moe_intermediate_size=99)], "moe_intermediate_size"),
    ],
)  # fmt: skip
def test_a_contradiction_is_an_error_before_anything_is_written(steps: Any, words: str, llama: Path) -> None:
    with pytest.raises(Problems, match=words) as caught:
        check(llama, steps)
    assert caught.value.exit_code == 2
    assert "--no-config-check" in str(caught.value)
    assert "already" not in str(caught.value)
    check(llama, steps, config_check=False)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("gpt2", {"n_embd": 32}, "n_embd"),
        ("gpt2", {"n_inner": 100}, r"mlp.c_fc.weight \(3 tensors\) has 112 along axis 1, but n_inner"),
        ("gpt_neox", {"intermediate_size": 100}, "dense_h_to_4h"),
        ("gpt_neox", {"num_hidden_layers": 2}, "gpt_neox.layers is numbered up to 2"),
        ("t5", {"d_kv": 4}, r"num_heads \(4\) \* d_kv \(4\) is 16"),
        ("t5", {"d_ff": 100}, "d_ff"),
        ("t5", {"num_decoder_layers": 2}, "decoder.block is numbered up to 2, but num_decoder_layers is 2"),
        ("bart", {"decoder_ffn_dim": 100}, "decoder_ffn_dim"),
        ("opt", {"ffn_dim": 100}, "ffn_dim"),
        ("phi3", {"num_key_value_heads": 4}, "qkv_proj.weight"),
        ("phi3", {"intermediate_size": 100}, r"2 \* intermediate_size \(100\) is 200"),
        ("mixtral", {"num_local_experts": 8}, "num_local_experts"),
        ("qwen2_moe", {"moe_intermediate_size": 48}, "moe_intermediate_size"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 48}, "shared_expert_intermediate_size"),
        ("gpt_oss", {"num_local_experts": 8}, r"experts.gate_up_proj.*num_local_experts|mlp.router.*num_local_experts"),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "layer_types has 1 values"),
    ],
)  # fmt: skip
def test_other_spellings_and_layouts_are_known(kind: str, values: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(Problems, match=words):
        check(tiny(kind, tmp_path / "m"), [put(**values)])


def nested(model: Path, place: Path, **values: Any) -> Path:
    """A model whose config has that of the language model inside, as models with images have it."""
    config = json.loads((model / "config.json").read_text())
    outer = {"model_type": "seer", "vision_config": {"hidden_size": 8}, "text_config": config | values}
    text = json.dumps(outer)
    steps = [
        {"move": {"from": r"model\.(.+)", "to": r"model.language_model.\1"}},
        {"zeroes": {"target": "model.vision_tower.layers.0.self_attn.q_proj.weight", "shape": [8, 8]}},
        {"document": {"write": "config.json", "text": text}},
    ]
    run(
        plan_of({"inputs": [f"m::{model}"], "transforms": steps, "output": str(place)}),
        Options(sync=False, config_check=False),
    )
    return place


def test_the_config_of_a_language_model_may_be_nested(llama: Path, tmp_path: Path) -> None:
    seer = nested(llama, tmp_path / "m")
    check(seer)
    with pytest.raises(Problems, match="vocab_size"):
        check(seer, [put(**{"text_config.vocab_size": 99})])


def test_rows_of_padding_that_the_config_tells_of_are_no_contradiction(llama: Path) -> None:
    check(llama, [ROWS, put(vocab_size=197, pad_vocab_size_multiple=8)])
    with pytest.raises(Problems, match="pad_vocab_size_multiple"):
        check(llama, [ROWS, put(vocab_size=197, pad_vocab_size_multiple=64)])


def test_experts_in_one_tensor_are_compared_in_both_orders_of_axes(llama: Path) -> None:
    steps = [
        {"zeroes": {"target": "model.layers.0.mlp.experts.gate_up_proj", "shape": [4, 80, 64]}},
        {"zeroes": {"target": "model.layers.1.mlp.experts.gate_up_proj", "shape": [4, 64, 80]}},
        put(num_experts=4, moe_intermediate_size=40),
    ]
    check(llama, steps)
    with pytest.raises(Problems, match="moe_intermediate_size"):
        check(llama, [*steps, put(moe_intermediate_size=80)])


def test_what_no_rule_knows_is_told(llama: Path, tmp_path: Path) -> None:
    assert check(llama).symbolic.warnings == []
    steps = [{"move": {"from": r"(.+)\.o_proj\.weight", "to": r"\1.strange.weight"}}, put(model_type="stranger")]
    (told,) = check(llama, steps).symbolic.warnings
    assert "as far as the rules reach: they know nothing of 1 of 9 kinds of matrices" in str(told)
    assert "model.layers.#.self_attn.strange.weight" in str(told)


def test_a_contradiction_of_the_source_is_told_as_such(llama: Path, tmp_path: Path) -> None:
    wrong = edited(llama, tmp_path / "wrong", vocab_size=99)
    with pytest.raises(Problems, match=f"it is so in {wrong} already"):
        check(wrong)
    with pytest.raises(PlanError, match=f"it is so in {wrong} already"):
        convert(str(wrong), str(tmp_path / "again"), Options(sync=False))
    with pytest.raises(Problems, match="let the step config follow"):
        check(wrong, [put(hidden_size=32)])
    check(wrong, [put(vocab_size=160)])


def test_a_source_with_both_embeddings_that_calls_them_tied_is_told_and_written(llama: Path, tmp_path: Path) -> None:
    both = edited(llama, tmp_path / "both", tie_word_embeddings=True)
    (told,) = check(both).symbolic.warnings
    assert (
        f"tie_word_embeddings is true, but lm_head.weight is there beside model.embed_tokens.weight, as in {both}"
        in (str(told))
    )


def test_layers_that_run_several_times_are_no_contradiction_of_a_source(llama: Path, tmp_path: Path) -> None:
    looped = edited(llama, tmp_path / "looped", num_hidden_layers=6)
    assert "num_hidden_layers is 6" in str(check(looped).symbolic.warnings[0])
    with pytest.raises(Problems, match="num_hidden_layers is 6"):
        check(llama, [put(num_hidden_layers=6)])


def test_a_save_in_the_middle_is_checked_with_the_config_of_its_place(llama: Path, tmp_path: Path) -> None:
    save = {"save": {"path": str(tmp_path / "mid"), "shard": "1GB"}}
    check(llama, [ROWS, put(vocab_size=200), save])
    with pytest.raises(Problems, match="vocab_size"):
        check(llama, [ROWS, save, put(vocab_size=200)])


def test_jobs_of_a_batch_are_checked(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = f"{{ inputs: ['m::{llama}'], transforms: [{{ config: {{ set: {{ vocab_size: 7 }} }} }}] }}"
    Path("jobs.yaml").write_text(f"plan: {plan}\nset: {{ output: 'out/${{job}}' }}\njobs: [{{ name: a }}]\n")
    (job,) = batch("jobs.yaml", Options(sync=False)).jobs
    assert job.status == "failed" and "vocab_size" in str(job.error)
    (job,) = batch("jobs.yaml", Options(sync=False, config_check=False)).jobs
    assert job.status == "done"


def test_a_stale_config_where_the_output_appears_is_compared_too(llama: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    run(plan_of({"inputs": [f"m::{llama}"], "output": str(place)}), Options(sync=False))
    bare = {"path": str(place), "documents": "none"}
    check(llama, output=bare, overwrite=True)
    for output in (bare, str(place / "model.safetensors")):
        with pytest.raises(Problems, match=r"out/config.json, which is there and stays, contradicts .* vocab_size"):
            check(llama, [ROWS], output=output, overwrite=True)
    check(llama, [ROWS], output=str(place / "part.safetensors"))


def test_documents_beside_a_replaced_file_that_stay_are_told(llama: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    run(plan_of({"inputs": [f"m::{llama}"], "output": {"path": str(place), "shard": "none"}}), Options(sync=False))
    plan = plan_of({"inputs": [f"m::{llama}"], "output": str(place / "model.safetensors")})
    with pytest.warns(Note, match=r"kept, although the model there is replaced: .*config\.json"):
        run(plan, Options(sync=False, overwrite=True))
    for path in place.glob("*.safetensors*"):
        path.unlink()
    plan = plan_of({"inputs": [f"m::{llama}"], "output": {"path": str(place), "documents": "none"}})
    with pytest.warns(Note, match=r"kept, although the model there is replaced: .*config\.json"):
        run(plan, Options(sync=False, overwrite=True))


def test_the_dtype_of_nested_configs_follows_where_it_was_the_same(llama: Path, tmp_path: Path) -> None:
    config = {"dtype": "float32", "text_config": {"dtype": "float32"}, "audio_config": {"dtype": "float16"}}
    steps = [
        {"cast_": {"target": ".+", "to": "bfloat16"}},
        {"document": {"write": "config.json", "text": json.dumps(config)}},
    ]
    plan = plan_of({"inputs": [f"m::{llama}"], "transforms": steps, "output": str(tmp_path / "out")})
    run(plan, Options(sync=False))
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == {
        "dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "audio_config": {"dtype": "float16"},
    }  # fmt: skip


def test_a_hundred_thousand_tensors_are_compared_in_little_time(llama: Path) -> None:
    import time

    from surgery_jax.session.config_check import compare

    specs = {name: entry.spec for name, entry in open_checkpoint(str(llama)).entries.items()}
    up = specs["model.layers.0.mlp.up_proj.weight"]
    names = [
        f"model.layers.{n}.mlp.experts.{e}.{p}_proj.weight"
        for n in range(60)
        for e in range(256)
        for p in ("gate", "up")
    ]
    config = json.loads((llama / "config.json").read_text()) | {"num_hidden_layers": 60, "num_experts": 256}
    start = time.process_time()
    found = compare(config, [(name, up) for name in names])
    assert found.contradictions == []
    assert time.process_time() - start < 5
