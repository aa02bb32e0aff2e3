"""What `config.json` says of the shapes of a model's tensors: tables, and nothing else.

They know names of tensors and keys of configs, and no architecture: a model whose names and keys are among them is
checked, whatever it is called, and whoever meets another spelling adds it here. `session/config_check.py` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "COUNTED", "LAYERS", "NUMBERED", "ON_LOAD", "OTHERS", "PER_LAYER", "PLACES", "QUANTISATION", "RULES", "SIZES",
    "TEXT", "TIED", "VARIED", "Rule",
]  # fmt: skip

# Where the part of the config stands that tells of the language model, and what the tensors of other parts are called.
TEXT = ("text_config", "llm_config", "language_config")
OTHERS = (
    r".*(?:^|[._])(?:vision|visual|image|img|audio|speech|video|tower|projector|connector|resampler|perceiver|mtp|vit"
    r"|vq\w*|text_encoder|codec|depth_decoder|multi_modal\w*|embed_vision|embed_audio|aligner|shared_transf\w*)"
    r"(?:[._\d]|$).*"
)

# Where the config gives some layers other sizes.
VARIED = ("per_layer_config", "block_configs")

# Sizes by name: the first expression counts whose words are all known, keys of the config or other sizes.
SIZES: Mapping[str, tuple[str, ...]] = {
    "vocabulary": (
        "padded_vocab_size", "(vocab_size+pad_vocab_size_multiple-1)//pad_vocab_size_multiple*pad_vocab_size_multiple",
        "vocab_size", "n_words",
    ),
    "hidden": ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim", "dim"),
    "embedding": ("word_embed_proj_dim", "input_embedding_size", "embedding_size", "hidden"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "groups": ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num"),
    "head": ("head_dim", "d_kv", "attention_head_dim", "kv_channels", "hidden//heads"),
    "width": (
        "intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size", "inner_dim", "expansion_ratio*hidden",
    ),
    "inner": ("n_inner", "4*n_embd", "width"),
    "encoder_width": ("encoder_ffn_dim", "width"),
    "decoder_width": ("decoder_ffn_dim", "width"),
    "expert": ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size"),
    "shared": (
        "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size",
        "n_shared_experts*moe_intermediate_size", "num_shared_experts*moe_intermediate_size",
        "num_shared_expert*moe_intermediate_size", "moe_num_shared_experts*moe_intermediate_size",
    ),
    "experts": (
        "num_local_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts", "num_experts",
    ),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "encoders": ("encoder_layers", "num_encoder_layers", "layers"),
    "decoders": ("decoder_layers", "num_decoder_layers", "layers"),
}  # fmt: skip


class Rule(NamedTuple):
    """Names of tensors, a regular expression for their last parts in which `#` is a number, and what their shape may
    be: an expression for every axis, `_` for any length. An expression counts where the config has all keys that it
    names; a size that is not known may be any. The rule is not for configs that have one of the keys `unless`."""

    names: str
    shapes: tuple[str, ...]
    unless: tuple[str, ...] = ()


_ATTENTION = r"(?:self_attn|attn|self_attention|attention|SelfAttention|EncDecAttention)"
_BLOCK = r"(?:mlp|feed_forward|ffn|block_sparse_moe)"
_HIDDEN = r"(?:input_layernorm|post_attention_layernorm|(?:pre|post)_feedforward_layernorm|ln_[12f]|final_layer_?norm)"
# What gives queries, keys or values widths of their own: low ranks, other heads in some layers.
_SLIDING = ("swa_head_dim", "swa_num_key_value_heads", "linear_attn_config", "linear_head_dim")
_LATENT = ("kv_lora_rank", "v_head_dim", *_SLIDING)
_GATED = ("attn_output_gate", "linear_key_head_dim")  # queries have a second half
_ROUNDED = ("block_auto_adjust_ff_dim",)  # the width is made of others
_EXTENDED = ("cross_attention_layers", "audio_vocab_size", "num_codebooks")  # embeddings have a few more rows

# The first rule whose names match a tensor is its rule.
RULES = (
    Rule(r"(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight", ("vocabulary embedding",), _EXTENDED),
    Rule(r"(?:lm_head|embed_out)\.weight", ("vocabulary hidden", "vocabulary embedding")),
    Rule(rf"(?:{_HIDDEN}|model\.norm)\.(?:weight|bias)", ("hidden",)),
    Rule(r"(?:wpe|position_embeddings|token_type_embeddings)\.weight", ("_ hidden", "_ embedding")),
    # Attention: queries, keys, values and output apart, then in one.
    Rule(rf"{_ATTENTION}\.q_proj\.weight", ("heads*head hidden",), _LATENT + _GATED),
    Rule(rf"{_ATTENTION}\.q_proj\.bias", ("heads*head",), _LATENT + _GATED),
    Rule(rf"{_ATTENTION}\.[kv]_proj\.weight", ("groups*head hidden",), _LATENT),
    Rule(rf"{_ATTENTION}\.[kv]_proj\.bias", ("groups*head",), _LATENT),
    Rule(
        rf"{_ATTENTION}\.o_proj\.weight",
        ("hidden heads*head", "hidden heads*v_head_dim", "hidden hidden"),
        _SLIDING,
    ),
    Rule(rf"{_ATTENTION}\.q_a_proj\.weight", ("q_lora_rank hidden",)),
    Rule(
        rf"{_ATTENTION}\.q_b_proj\.weight",
        ("heads*(qk_nope_head_dim+qk_rope_head_dim) q_lora_rank",),
        ("gated_norm_rank",),
    ),
    Rule(rf"{_ATTENTION}\.kv_a_proj_with_mqa\.weight", ("kv_lora_rank+qk_rope_head_dim hidden",)),
    Rule(rf"{_ATTENTION}\.kv_b_proj\.weight", ("heads*(qk_nope_head_dim+v_head_dim) kv_lora_rank",)),
    Rule(rf"{_ATTENTION}\.o_proj\.bias", ("hidden",)),
    Rule(rf"{_ATTENTION}\.qkv_proj\.weight", ("(heads+2*groups)*head hidden", "3*heads*head hidden")),
    Rule(rf"{_ATTENTION}\.qkv_proj\.bias", ("(heads+2*groups)*head", "3*heads*head")),
    Rule(
        rf"{_ATTENTION}\.query_key_value\.weight",
        ("3*heads*head hidden", "(heads+2*groups)*head hidden", "(heads+2)*head hidden"),
    ),
    Rule(rf"{_ATTENTION}\.query_key_value\.bias", ("3*heads*head", "(heads+2*groups)*head", "(heads+2)*head")),
    Rule(rf"{_ATTENTION}\.c_attn\.weight", ("hidden 3*hidden", "3*hidden hidden", "hidden+2*head hidden")),
    Rule(rf"{_ATTENTION}\.c_attn\.bias", ("3*hidden", "hidden+2*head")),
    Rule(rf"{_ATTENTION}\.c_proj\.weight", ("hidden hidden",)),
    Rule(r"(?:SelfAttention|EncDecAttention)\.[qkv]\.weight", ("heads*head hidden",)),
    Rule(r"(?:SelfAttention|EncDecAttention)\.o\.weight", ("hidden heads*head",)),
    Rule(r"(?:self_attn|encoder_attn|attn|attention)\.out_proj\.weight", ("hidden heads*head", "hidden hidden")),
    Rule(r"encoder_attn\.[qkv]_proj\.weight", ("hidden hidden",)),
    Rule(r"(?:attention|self_attention)\.dense\.weight", ("hidden heads*head", "hidden hidden"), _LATENT),
    Rule(r"(?:attention|crossattention)\.self\.(?:query|key|value)\.weight", ("heads*head hidden",)),
    Rule(r"(?:attention|crossattention)\.output\.dense\.weight", ("hidden heads*head",)),
    # Experts, one by one and all in one, their router, and the one that every token goes to.
    Rule(r"experts\.#\.(?:gate_proj|up_proj|w1|w3)\.weight", ("expert hidden",)),
    Rule(r"experts\.#\.(?:down_proj|w2)\.weight", ("hidden expert",)),
    Rule(
        r"experts\.gate_up_proj(?:\.weight)?",
        ("experts 2*expert hidden", "experts hidden 2*expert", "experts+zero_expert_num 2*expert hidden"),
    ),
    Rule(
        r"experts\.down_proj(?:\.weight)?",
        ("experts hidden expert", "experts expert hidden", "experts+zero_expert_num hidden expert"),
    ),
    Rule(rf"{_BLOCK}\.(?:gate|router)\.weight", ("experts hidden", "experts+n_shared_experts hidden")),
    Rule(r"shared_experts?\.(?:gate_proj|up_proj)\.weight", ("shared hidden",)),
    Rule(r"shared_expert_gate\.weight", ("1 hidden",)),
    Rule(r"shared_experts?\.down_proj\.weight", ("hidden shared",)),
    # The dense feed-forward block.
    Rule(rf"{_BLOCK}\.gate_up_proj\.weight", ("2*width hidden",)),
    Rule(rf"{_BLOCK}\.(?:gate_proj|up_proj|w1|w3)\.weight", ("width hidden", "intermediate_size_mlp hidden"), _ROUNDED),
    Rule(rf"{_BLOCK}\.(?:down_proj|w2)\.weight", ("hidden width", "hidden intermediate_size_mlp"), _ROUNDED),
    Rule(rf"{_BLOCK}\.c_fc\.weight", ("hidden inner", "inner hidden")),
    Rule(rf"{_BLOCK}\.c_proj\.weight", ("inner hidden", "hidden inner")),
    Rule(rf"{_BLOCK}\.dense_h_to_4h\.weight", ("width hidden", "4*hidden hidden")),
    Rule(rf"{_BLOCK}\.dense_4h_to_h\.weight", ("hidden width", "hidden 4*hidden")),
    Rule(r"intermediate\.dense\.weight", ("width hidden",)),
    Rule(r"output\.dense\.weight", ("hidden width",)),
    Rule(r"encoder\.layers\.#\.fc1\.weight", ("encoder_width hidden",)),
    Rule(r"encoder\.layers\.#\.fc2\.weight", ("hidden encoder_width",)),
    Rule(r"layers\.#\.fc1\.weight", ("decoder_width hidden",)),
    Rule(r"layers\.#\.fc2\.weight", ("hidden decoder_width",)),
    Rule(rf"{_BLOCK}\.fc1\.weight", ("width hidden",), _EXTENDED),
    Rule(rf"{_BLOCK}\.fc2\.weight", ("hidden width",), _EXTENDED),
    Rule(r"DenseReluDense\.(?:wi|wi_0|wi_1)\.weight", ("width hidden",)),
    Rule(r"DenseReluDense\.wo\.weight", ("hidden width",)),
)

# What is numbered, and how many there are: the parts of a name before the number; the first that matches counts.
LAYERS = (
    (r"(?:.*\.)?encoder\.(?:layers?|blocks?)", ("encoders",)),
    (r"(?:.*\.)?decoder\.(?:layers?|blocks?)", ("decoders",)),
    (r"(?:(?:model|language_model|transformer|backbone|gpt_neox)\.)*(?:layers|h|blocks)",
     ("layers", "layers+num_nextn_predict_layers")),
)  # fmt: skip
NUMBERED = (r".*\.experts", ("experts", "experts+zero_expert_num"))

# Keys with a value for every layer, with numbers of layers, and with a number up to which layers are counted.
PER_LAYER = (
    "layer_types", "no_rope_layers", "mlp_layer_types", "layers_block_type", "attention_layers", "block_configs",
    "ffn_multipliers", "num_query_heads", "num_kv_heads", "num_key_value_heads_per_layer", "layer_rope_theta",
    "activation_sparsity_pattern",
)  # fmt: skip
PLACES = ("mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "moe_layers", "cross_attention_layers")
COUNTED = {"max_window_layers": "use_sliding_window"}  # which counts only if the other key is true

# The output layer that is the embedding, and the embedding.
TIED = (r"(?:.*\.)?(?:lm_head|embed_out)\.weight", r"(?:.*\.)?(?:embed_tokens|wte|embed_in)\.weight")

# Where a config or another document says how tensors are quantised, and the methods that quantise while loading.
QUANTISATION = ("quantization_config", "compression_config", "quantization")
ON_LOAD = ("bitsandbytes", "torchao", "quanto", "hqq", "eetq", "higgs", "fp_quant")
