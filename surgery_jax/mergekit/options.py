"""What the command line of a merge may say beside the configuration."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MergeOptions"]


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """Flags that change the plan.

    copy_tokenizer: whether the tokenizer of the donor is copied. model_card: whether README.md and the configuration
    are written. allow_crimes: whether models may have different architectures. truncate: whether vocabularies are cut
    to the smallest. tensors: which tensors of files are merged: `all`, an error where one lacks some, `intersection` or
    `union`. allow_same: whether all experts of a mixture may be alike. gates: a file with the prompts' vectors. shard:
    the largest shard, as plans spell it. seed: of random masks and routers. lora_dtype: what models are cast to before
    adapters are applied to them. format: of the files of tensors, safetensors if it is None.
    """

    copy_tokenizer: bool = True
    model_card: bool = True
    allow_crimes: bool = False
    truncate: bool = False
    tensors: str = "all"
    allow_same: bool = False
    gates: str | None = None
    shard: str | None = None
    seed: int | None = None
    lora_dtype: str | None = None
    format: str | None = None
