"""What `config.json` says of a model: the dtype of its tensors, and what its architecture takes for granted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import json_text
from .specs import Spec

__all__ = ["CONFIG", "DEFAULTS", "defaults_of", "majority_dtype", "told_dtype", "told_dtypes"]

CONFIG = "config.json"
_DTYPES = ("dtype", "torch_dtype")  # the keys of newer and older releases

_COMMON = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}
# What the classes of transformers take where a config says nothing, as far as it changes what a model computes.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _COMMON | {"max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
    "mistral": _COMMON | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": _COMMON
    | {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "olmo2": _COMMON | {"max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "attention_bias": False},
    "phi3": _COMMON
    | {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "sliding_window": None,
    },
    "qwen2": _COMMON | {"max_position_embeddings": 32768, "num_key_value_heads": 32, "use_sliding_window": False},
    "qwen3": _COMMON
    | {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "attention_bias": False,
        "use_sliding_window": False,
    },
}
_AS_MANY_HEADS = ("llama", "olmo2", "phi3")  # whose keys and values have as many heads as queries where nothing is said


def defaults_of(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model of a type in `DEFAULTS` takes for granted and its config does not say."""
    known = dict(DEFAULTS[kind])
    if kind in _AS_MANY_HEADS and "num_attention_heads" in config:
        known["num_key_value_heads"] = config["num_attention_heads"]
    if isinstance(config.get("rope_parameters"), Mapping):  # the newer spelling of rope_theta
        known.pop("rope_theta")
    return {key: value for key, value in known.items() if key not in config}


def told_dtypes(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys that name the dtype of the tensors, and what they say: of the model and of its nested parts."""
    for place, part in (("", config), *((f"{key}.", part) for key, part in config.items())):
        if isinstance(part, Mapping) and (not place or place.endswith("_config.")):
            yield from ((place + key, part[key]) for key in _DTYPES if isinstance(part.get(key), str))


def majority_dtype(specs: Iterable[Spec]) -> str | None:
    """The dtype of most bytes of tensors that are floats of at least 16 bits; None if there are none."""
    sizes: Counter[str] = Counter()
    for spec in specs:
        if spec.dtype.is_float and spec.dtype.bits >= 16:
            sizes[spec.dtype.name] += spec.nbytes
    return sizes.most_common(1)[0][0] if sizes else None


def told_dtype(text: str, specs: Iterable[Spec]) -> str:
    """A config in which the dtype, if it names one, is that of most bytes of floating tensors, and so in its nested
    parts if these named the same; text that is no JSON object, and tensors without such, leave it as it is."""
    found = majority_dtype(specs)
    try:
        config = json_text.parsed(text)
    except ValueError:
        return text
    before = {value for key, value in told_dtypes(config) if "." not in key}
    for key, value in told_dtypes(config):
        if found is not None and value != found and ("." not in key or value in before):
            text = json_text.put(text, key.split("."), found)
    return text
