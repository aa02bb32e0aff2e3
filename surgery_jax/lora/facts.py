r"""What PEFT decides by the class of a module, so that neither an adapter's shapes nor its configuration tell it.

A weight of transformers' class Conv1D is stored as [in, out], one of a Linear as [out, in]; `fan_in_fan_out` of a
configuration is what the last module that PEFT wrapped had, so it says nothing of the others. Which axis of experts in
one tensor the factor A takes for the inputs depends on the version: the second until 0.18; the third from 0.19.1 on,
unless the class of the experts has `is_transposed`, then the second; and in 0.19.0 the opposite of that. Configurations
have `peft_version` from 0.18 on.
Sources: PEFT 0.17 to 0.21, `peft/tuners/lora/layer.py`; transformers 5, `Conv1D` and `use_experts_implementation`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.strict_json import read_json

__all__ = ["CONV1D_LEAVES", "ModelFacts", "axis_of_inputs", "describe", "is_in_declared_order", "ties_factors"]

CONV1D_LEAVES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})  # modules that are Conv1D wherever any are
_CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder"})
_TRANSPOSED_TYPES = frozenset({"gpt_oss", "openai_privacy_filter", "aria", "aria_text"})


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What `config.json` tells of a model: its types, with those of its parts; whether outputs share the embedding."""

    types: frozenset[str] = frozenset()
    tied: bool | None = None

    @property
    def has_conv1d(self) -> bool | None:
        """Whether its modules named as in `CONV1D_LEAVES` are Conv1D; None if nothing tells."""
        return bool(self.types & _CONV1D_TYPES) if self.types else None

    @property
    def is_transposed(self) -> bool | None:
        """Whether the class of its experts has `is_transposed`; None if nothing tells."""
        return bool(self.types & _TRANSPOSED_TYPES) if self.types else None


def describe(text: str | None) -> ModelFacts:
    """What a `config.json` tells; nothing where there is none, or the classes are code of the model's own."""
    try:
        config = read_json(text or "{}")
    except ValueError:
        return ModelFacts()
    parts = [config, *config.values()] if isinstance(config, dict) else []
    tables = [part for part in parts if isinstance(part, dict)]
    tied = next((part[key] for part in tables if isinstance(part.get(key := "tie_word_embeddings"), bool)), None)
    if any("auto_map" in part for part in tables):
        return ModelFacts(tied=tied)
    return ModelFacts(frozenset(kind for part in tables if isinstance(kind := part.get("model_type"), str)), tied)


def axis_of_inputs(config: Mapping[str, Any], is_transposed: bool | None) -> int | None:
    """The axis of experts in one tensor that A takes for the inputs, 1 or 2; None if nothing tells. `is_transposed` is
    that of the experts' class."""
    number = _version(config)
    if number is None:
        return None
    if number < (0, 19, 0):
        return 1
    if is_transposed is None:
        return None
    return 1 if is_transposed == (number > (0, 19, 0)) else 2


def ties_factors(config: Mapping[str, Any]) -> bool:
    """Whether factors of an embedding are those of the output layer that shares it too: since 0.19, if asked for."""
    number = _version(config)
    return bool(config.get("ensure_weight_tying")) and (number is None or number >= (0, 19, 0))


def _version(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The release of PEFT that made an adapter; None if none is told, or a build between two, which may be either."""
    found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", str(config.get("peft_version")))
    return tuple(int(part) for part in found.groups()) if found else None


def is_in_declared_order(leaves: Iterable[str]) -> bool:
    """Whether parameters of experts are in the order in which all known models declare them: down after all others."""
    downs = ["down" in leaf for leaf in leaves]
    return downs == sorted(downs)
