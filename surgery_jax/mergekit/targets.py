"""Architectures of mixtures of experts that dense models are merged into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TARGETS", "MixtureTarget"]


@dataclass(frozen=True)
class MixtureTarget:
    """One architecture. `block` has the router and the experts, `parts` gives the names of an expert's three matrices.
    `shared` is from how many to how many shared experts there may be. `sets` are values of `config.json`, `experts` and
    `widths` the keys that count the experts and that hold the width of one."""

    name: str
    model_type: str
    architecture: str
    sources: tuple[str, ...]  # types of models that it can be made of
    block: str = "mlp"
    parts: Mapping[str, str] = field(default_factory=lambda: {p: p for p in ("gate_proj", "up_proj", "down_proj")})
    shared: tuple[int, int] = (0, 0)
    shared_block: str = ""
    shared_gate: str = ""
    zero_biases: bool = False  # whether queries, keys and values need biases
    experts: str = "num_experts"
    widths: tuple[str, ...] = ()
    sets: Mapping[str, Any] = field(default_factory=dict)


_DEEPSEEK = "deepseek-ai/deepseek-moe-16b-base--"

# In the order in which they are tried where a configuration names none.
TARGETS = (
    MixtureTarget(
        "Mixtral",
        "mixtral",
        "MixtralForCausalLM",
        ("llama", "mistral"),
        block="block_sparse_moe",
        parts={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        experts="num_local_experts",
        sets={"router_aux_loss_coef": 0.001, "output_router_logits": False},
    ),
    MixtureTarget(
        "DeepSeek MoE",
        "deepseek",
        "DeepseekForCausalLM",
        ("llama", "mistral"),
        shared=(0, 1),
        shared_block="mlp.shared_experts",
        experts="n_routed_experts",
        widths=("moe_intermediate_size",),
        sets={
            "first_k_dense_replace": 0,
            "moe_layer_freq": 1,
            "scoring_func": "softmax",
            "norm_topk_prob": True,
            "auto_map": {
                "AutoConfig": f"{_DEEPSEEK}configuration_deepseek.DeepseekConfig",
                "AutoModel": f"{_DEEPSEEK}modeling_deepseek.DeepseekModel",
                "AutoModelForCausalLM": f"{_DEEPSEEK}modeling_deepseek.DeepseekForCausalLM",
            },
        },
    ),
    MixtureTarget(
        "Qwen MoE",
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        ("llama", "mistral", "qwen2"),
        shared=(1, 1),
        shared_block="mlp.shared_expert",
        shared_gate="mlp.shared_expert_gate",
        zero_biases=True,
        widths=("moe_intermediate_size", "shared_expert_intermediate_size"),
        sets={"decoder_sparse_step": 1, "norm_topk_prob": True, "mlp_only_layers": []},
    ),
    MixtureTarget(
        "Qwen3 MoE",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        ("qwen3",),
        widths=("moe_intermediate_size",),
        sets={"decoder_sparse_step": 1, "norm_topk_prob": True, "mlp_only_layers": []},
    ),
)
