"""Adapters as people have them are merged as PEFT computes them, or refused with what to write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import PREFIX, adapted, assert_close, merge, refused, stored
from running import read_checkpoint, write_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore")


# ------------------------------------------------------------------------------------------ axes of square weights


def gpt2() -> Any:
    torch.manual_seed(3)
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=40, n_positions=32)
    config.tie_word_embeddings = False
    return transformers.GPT2LMHeadModel(config)


GPT2 = {"model_type": "gpt2"}
NO_BIAS = r".*\.bias"
SQUARES: dict[str, tuple[list[str], dict[str, Any] | None, str]] = {
    "a weight of the same block": (["c_attn", "attn.c_proj", "lm_head"], None, NO_BIAS),
    "biases in the base": (["attn.c_proj", "lm_head"], None, ""),
    "the type of the model": (["attn.c_proj", "lm_head"], GPT2, NO_BIAS),
    "the only kind of module": (["attn.c_proj"], None, NO_BIAS),
}


@pytest.mark.parametrize("evidence", SQUARES)
def test_square_weights_are_stored_as(tmp_path: Path, evidence: str) -> None:
    targets, config, drop = SQUARES[evidence]
    base = stored(gpt2(), tmp_path / "base", config, drop)
    wanted = adapted(gpt2(), tmp_path / "one", target_modules=targets)
    told = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["fan_in_fan_out"]
    assert told == ("lm_head" not in targets)  # what PEFT wrote is of the last module
    assert_close(merge(tmp_path), wanted, base)


def test_a_square_weight_of_which_nothing_tells_is_asked_about(tmp_path: Path) -> None:
    base = stored(gpt2(), tmp_path / "base", drop=NO_BIAS)
    wanted = adapted(gpt2(), tmp_path / "one", target_modules=["attn.c_proj", "lm_head"])
    message = refused(tmp_path)
    assert "attn.c_proj.weight is stored as [out, in] or as [in, out]" in message
    assert "fan_in_fan_out: true" in message
    assert_close(merge(tmp_path, fan_in_fan_out=True), wanted, base)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "gpt_bigcode"}))
    turned = merge(tmp_path)["transformer.h.0.attn.c_proj.weight"]  # a Linear, by the type of the model
    name = "transformer.h.0.attn.c_proj.weight"
    np.testing.assert_allclose(turned - base[name], (wanted[name] - base[name]).T, rtol=1e-4, atol=1e-5)


class Mixed(torch.nn.Module):  # type: ignore[misc]
    """Linear modules first, then Conv1D, so that PEFT writes fan_in_fan_out: true."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        conv1d = transformers.pytorch_utils.Conv1D
        self.encoder = torch.nn.ModuleList(torch.nn.ModuleDict({"query": torch.nn.Linear(8, 8, False)}) for _ in "ab")
        self.decoder = torch.nn.ModuleList(torch.nn.ModuleDict({"c_attn": conv1d(24, 8)}) for _ in "ab")


def test_a_linear_beside_conv1d_modules_is_no_conv1d(tmp_path: Path) -> None:
    base = stored(Mixed(), tmp_path / "base")
    wanted = adapted(Mixed(), tmp_path / "one", target_modules=["query", "c_attn"])
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["fan_in_fan_out"]
    assert_close(merge(tmp_path), wanted, base)
    assert_close(merge(tmp_path, fan_in_fan_out=True), wanted, base)  # the key is for what nothing tells


# ---------------------------------------------------------------------------------------------- experts in one tensor


class Experts(torch.nn.Module):  # type: ignore[misc]
    """Parameters of experts in the order of the class."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], is_transposed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.experts = torch.nn.Module()
        if is_transposed:
            self.experts.is_transposed = True
        for name, shape in shapes.items():
            self.experts.register_parameter(name, torch.nn.Parameter(torch.randn(shape)))


def products(path: Path, key: str, many: int, equation: str) -> np.ndarray:
    factors = read_checkpoint(path)
    a, b = (factors[f"{PREFIX}{key}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return 1.5 * np.einsum(equation, b.reshape(len(b), -1, many), a.reshape(many, -1, a.shape[1]))


SQUARE = {"gate_up_proj": (3, 8, 16), "down_proj": (3, 8, 8)}  # as gpt-oss: [experts, in, out]


@pytest.mark.parametrize("version", ["0.18.1", "0.19.0", "0.19.1", "0.21.2"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_the_version_of_peft_tells_the_axes_of_square_experts(
    tmp_path: Path, version: str, is_transposed: bool
) -> None:
    """Until 0.18 the second axis was that of the inputs; in 0.19.0 unless the class has is_transposed; then only if."""
    in_out = {"0.18.1": True, "0.19.0": not is_transposed}.get(version, is_transposed)
    config = {"model_type": "gpt_oss" if is_transposed else "mixtral"}
    base = stored(Experts({"down_proj": (3, 8, 8)}), tmp_path / "base", config)
    adapted(Experts({"down_proj": (3, 8, 8)}), tmp_path / "one", target_parameters=["experts.down_proj"])
    path = tmp_path / "one" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_version": version}))
    change = products(tmp_path / "one", "experts", 3, "ore,eri->eio" if in_out else "ore,eri->eoi")
    found = merge(tmp_path)["experts.down_proj"]
    np.testing.assert_allclose(found, base["experts.down_proj"] + change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("evidence", ["sibling", "type", "bias", "none"])
def test_square_experts_are_merged_as_peft_merges_them(tmp_path: Path, is_transposed: bool, evidence: str) -> None:
    shapes = dict(SQUARE) if is_transposed else {"gate_up_proj": (3, 16, 8), "down_proj": (3, 8, 8)}
    if evidence == "none":
        del shapes["gate_up_proj"]
    if evidence == "bias":
        shapes |= {"gate_up_proj_bias": (3, 16), "down_proj_bias": (3, 8)}
    types = {"model_type": "gpt_oss" if is_transposed else "qwen3_moe"} if evidence == "type" else None
    base = stored(Experts(shapes, is_transposed), tmp_path / "base", types)
    leaves = ["gate_up_proj", "down_proj"] if evidence == "sibling" else ["down_proj"]
    targets = [f"experts.{leaf}" for leaf in leaves]
    wanted = adapted(Experts(shapes, is_transposed), tmp_path / "one", target_parameters=targets)
    if evidence == "none":
        message = refused(tmp_path)
        assert "which axis of experts.down_proj" in message and "experts: in_out" in message
        assert_close(merge(tmp_path, experts="in_out" if is_transposed else "out_in"), wanted, base)
    else:
        assert_close(merge(tmp_path), wanted, base)


def test_adapters_of_different_versions_are_added_to_one_parameter(tmp_path: Path) -> None:
    shapes = {"gate_up_proj": (3, 16, 8), "down_proj": (3, 8, 8)}
    base = stored(Experts(shapes), tmp_path / "base")
    for alias, seed, version in (("one", 5, "0.21.2"), ("two", 6, "0.18.0")):
        adapted(Experts(shapes), tmp_path / alias, seed, target_parameters=["experts.down_proj"])
        path = tmp_path / alias / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_version": version}))
    change = products(tmp_path / "one", "experts", 3, "ore,eri->eoi") - 0.5 * products(
        tmp_path / "two", "experts", 3, "ore,eri->eio"
    )
    found = merge(tmp_path, {"one": 1.0, "two": -0.5})["experts.down_proj"]
    np.testing.assert_allclose(found, base["experts.down_proj"] + change, rtol=1e-5, atol=1e-5)


APART = {"gate_proj": (3, 6, 8), "up_proj": (3, 6, 8), "down_proj": (3, 8, 6)}


@pytest.mark.parametrize("declared", [("gate_proj", "up_proj"), ("up_proj", "gate_proj")])
def test_parameters_that_only_the_class_tells_apart_are_asked_for(tmp_path: Path, declared: tuple[str, ...]) -> None:
    shapes = {leaf: APART[leaf] for leaf in (*declared, "down_proj")}
    base = stored(Experts(shapes), tmp_path / "base")
    targets = ["experts.up_proj", "experts.gate_proj", "experts.down_proj"]
    wanted = adapted(Experts(shapes), tmp_path / "one", target_parameters=targets)
    message = refused(tmp_path)
    assert "order: [gate_proj, up_proj, down_proj]" in message
    assert_close(merge(tmp_path, order=[*declared, "down_proj"]), wanted, base)


def test_parameters_that_ranks_tell_apart_are_not_asked_for(tmp_path: Path) -> None:
    shapes = {"up_proj": (3, 6, 8), "gate_proj": (3, 6, 8)}
    base = stored(Experts(shapes), tmp_path / "base")
    targets = [f"experts.{leaf}" for leaf in shapes]
    wanted = adapted(Experts(shapes), tmp_path / "one", target_parameters=targets, rank_pattern={"gate_proj": 3})
    assert_close(merge(tmp_path), wanted, base)


@pytest.mark.parametrize("first", ["up_proj", "down_proj"])
def test_parameters_that_the_axes_tell_apart_need_the_type_of_the_model(tmp_path: Path, first: str) -> None:
    """Factors of [6, 8] as [out, in] are as long as those of [8, 6] as [in, out]."""
    shapes = dict(sorted({"down_proj": (3, 8, 6), "up_proj": (3, 6, 8)}.items(), key=lambda item: item[0] != first))
    base = stored(Experts(shapes), tmp_path / "base")
    wanted = adapted(Experts(shapes), tmp_path / "one", target_parameters=["experts.up_proj", "experts.down_proj"])
    if first == "up_proj":  # as all known classes have it
        assert_close(merge(tmp_path), wanted, base)
    else:
        assert "order: [up_proj, down_proj]" in refused(tmp_path)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "nemotron_h"}))
    assert_close(merge(tmp_path), wanted, base)


def mixture() -> Any:
    torch.manual_seed(3)
    config = transformers.Qwen3MoeConfig(
        hidden_size=16, intermediate_size=24, moe_intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, vocab_size=40, num_experts=3, num_experts_per_tok=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Qwen3MoeForCausalLM(config)


def test_parameters_named_without_their_module_are_found_as_peft_finds_them(tmp_path: Path) -> None:
    base = stored(mixture(), tmp_path / "base")
    wanted = adapted(
        mixture(), tmp_path / "one", target_parameters=["gate_up_proj", "down_proj"], target_modules=["q_proj"]
    )
    assert_close(merge(tmp_path), wanted, base)


@pytest.mark.parametrize("version", ["0.18.1", "0.21.2"])
def test_experts_one_by_one_get_their_parts_of_fused_factors(tmp_path: Path, version: str) -> None:
    """transformers stores experts as the checkpoints of the model type have them, and fuses them when it loads them."""
    mixture().save_pretrained(tmp_path / "base")
    base = read_checkpoint(tmp_path / "base")
    assert "model.layers.0.mlp.experts.2.up_proj.weight" in base
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapted(mixture(), tmp_path / "one", target_parameters=targets)
    merged = mixture()
    if version == "0.21.2":
        merged = peft.PeftModel.from_pretrained(merged, tmp_path / "one").merge_and_unload()
    else:  # the second axis, of the outputs, was taken for the inputs
        path = tmp_path / "one" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_version": version}))
        rng = np.random.default_rng(5)
        lengths = {"": (16, 12), ".base_layer": (24, 16)}  # of the second axis, and the third
        write_checkpoint(
            tmp_path / "one" / "adapter_model.safetensors",
            {
                f"{PREFIX}model.layers.0.mlp.experts{key}.lora_{side}.weight": rng.standard_normal(
                    (6, second) if side == "A" else (third, 6)
                ).astype(np.float32)
                for key, (second, third) in lengths.items()
                for side in "AB"
            },
        )
        with torch.no_grad():
            for key, leaf in ((".base_layer", "gate_up_proj"), ("", "down_proj")):
                parameter = merged.get_parameter(f"model.layers.0.mlp.experts.{leaf}")
                change = products(tmp_path / "one", f"model.layers.0.mlp.experts{key}", 3, "ore,eri->eio")
                parameter += torch.tensor(change.astype(np.float32))
    merged.save_pretrained(tmp_path / "wanted")
    assert_close(merge(tmp_path), read_checkpoint(tmp_path / "wanted"), base)


def mixtral() -> Any:
    torch.manual_seed(3)
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=40, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def test_a_list_of_projections_reaches_experts_that_are_stored_under_other_names(tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path / "base")
    base = read_checkpoint(tmp_path / "base")
    config = peft.LoraConfig(
        r=2, lora_alpha=3, init_lora_weights=False, target_modules=["w1", "w2", "w3", "gate", "q_proj"]
    )
    model = peft.get_peft_model(mixtral(), config)
    model.save_pretrained(tmp_path / "one")
    told = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert sorted(told["target_parameters"]) == ["down_proj", "gate.weight", "gate_up_proj"]
    model.merge_and_unload().save_pretrained(tmp_path / "wanted")
    assert re.search(r"there is no base::\S+mlp\.experts\.\w+_proj", refused(tmp_path))
    renamed = {"move": {"from": r"base::(.+)\.block_sparse_moe\.(.+)", "to": r"base::\1.mlp.\2"}}
    found = merge(tmp_path, "one", renamed)
    found = {name.replace(".mlp.", ".block_sparse_moe."): value for name, value in found.items()}
    assert_close(found, read_checkpoint(tmp_path / "wanted"), base)


def test_experts_one_by_one_of_which_one_is_missing_are_refused(tmp_path: Path) -> None:
    shapes = {"gate_up_proj": (2, 12, 8), "down_proj": (2, 8, 6)}
    adapted(Experts(shapes), tmp_path / "one", target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    sides = {"gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)}
    parts = {f"experts.0.{leaf}.weight": np.ones(side, np.float32) for leaf, side in sides.items()}
    write_checkpoint(tmp_path / "base" / "model.safetensors", parts)
    assert "do not fit its parameters gate_up_proj, down_proj" in refused(tmp_path)
    parts = {name.replace("_proj", "_layer"): value for name, value in parts.items()}
    write_checkpoint(tmp_path / "base" / "model.safetensors", parts)
    assert "the base holds the experts one by one: stack them first" in refused(tmp_path)


# ------------------------------------------------------------------------------------------------------ convolutions


class Convolutions(torch.nn.Module):  # type: ignore[misc]
    """Convolutions along one, two and three axes."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        torch.manual_seed(3)
        nn = torch.nn
        self.line = nn.Conv1d(8, 12, 4, groups=groups)
        self.point = nn.Conv2d(8, 6, 1)
        self.plane = nn.Conv2d(8, 6, (3, 2), stride=2, padding=1)
        self.room = nn.Conv3d(4, 6, (2, 3, 1))


@pytest.mark.parametrize("with_bias", [False, True])
def test_convolutions_are_merged_as_peft_merges_them(tmp_path: Path, with_bias: bool) -> None:
    base = stored(Convolutions(), tmp_path / "base")
    names = ["line", "point", "plane", "room"]
    wanted = adapted(Convolutions(), tmp_path / "one", target_modules=names, lora_bias=with_bias)
    found = merge(tmp_path)
    assert_close(found, wanted, base)
    assert all(not np.array_equal(found[f"{name}.weight"], base[f"{name}.weight"]) for name in names)
    assert with_bias == (not np.array_equal(found["line.bias"], base["line.bias"]))


def test_a_convolution_in_groups_is_refused_as_peft_refuses_it(tmp_path: Path) -> None:
    stored(Convolutions(2), tmp_path / "base")
    model = peft.get_peft_model(Convolutions(2), peft.LoraConfig(r=2, target_modules=["line"]))
    model.save_pretrained(tmp_path / "one")
    with pytest.raises(NotImplementedError):
        model.merge_and_unload()
    message = refused(tmp_path)
    assert "convolution line" in message and "groups" in message and "rank 0" not in message


def test_the_factors_of_an_attention_module_are_of_its_projections(tmp_path: Path) -> None:
    def model() -> Any:
        torch.manual_seed(3)
        return torch.nn.ModuleDict({"attn": torch.nn.MultiheadAttention(8, 2)})

    base = stored(model(), tmp_path / "base")
    wanted = adapted(model(), tmp_path / "one", target_modules=["attn"])
    assert_close(merge(tmp_path), wanted, base)
