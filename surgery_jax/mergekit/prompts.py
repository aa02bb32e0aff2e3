"""Prompts as numbers of tokens, by the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import Mark, PlanError
from ..core.strict_json import read_json
from ..core.tokenizer_json import TOKENIZER
from .models import Model

__all__ = ["token_lists"]


def token_lists(model: Model, prompts: Sequence[Sequence[str]], where: Mark) -> list[list[int]]:
    """For every list of prompts the tokens of all of them, each after the token that begins a text.

    Raises:
        PlanError: the model has no tokenizer, or the library is missing.
    """
    if not any(prompts):
        return [[] for _ in prompts]
    try:
        from tokenizers import Tokenizer
    except ImportError:
        hint = "pip install 'surgery_jax[tokenizers]'"
        raise PlanError("prompts need the library tokenizers", where=where, hint=hint) from None
    text = model.text(TOKENIZER)
    if text is None:
        raise PlanError(f"{model.name} has no {TOKENIZER}", where=where, found=", ".join(model.documents))
    tokenizer = Tokenizer.from_str(text)
    begin = _begin(model)
    return [
        [token for prompt in given for token in tokenizer.encode(begin + prompt, add_special_tokens=False).ids]
        for given in prompts
    ]


def _begin(model: Model) -> str:
    """The token that begins a text, as text; nothing if there is none."""
    config = read_json(model.text("tokenizer_config.json") or "{}")
    told = config.get("bos_token") if isinstance(config, dict) else None
    return str(told.get("content", "") if isinstance(told, dict) else told or "")
