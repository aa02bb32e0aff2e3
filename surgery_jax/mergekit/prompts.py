"""Prompts as numbers of tokens, by the library `tokenizers`."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import Mark, PlanError, StorageError
from ..core.tokenizer_json import TOKENIZER
from .models import Model

__all__ = ["token_lists"]


def token_lists(model: Model, prompts: Sequence[Sequence[str]], where: Mark) -> list[list[int]]:
    """For every list of prompts the tokens of all of them, each after the token that begins a text.

    Raises:
        PlanError: the model has no tokenizer, or the library is missing.
        StorageError: the tokenizer cannot be read.
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
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library has no class of its own for what it cannot read
        found = str(error)[:120]
        raise StorageError(f"{TOKENIZER} of {model.name} cannot be read", where=where, found=found) from None
    begin = _begin(model, where)
    return [
        [token for prompt in given for token in tokenizer.encode(begin + prompt, add_special_tokens=False).ids]
        for given in prompts
    ]


def _begin(model: Model, where: Mark) -> str:
    """The token that begins a text, as text; nothing if there is none."""
    told = model.table("tokenizer_config.json", where).get("bos_token")
    return str(told.get("content", "") if isinstance(told, dict) else told or "")
