from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import LETTERS, LLAMA, Tensors, llama, tokenizer, write_model

TOKENS = tokenizer([*LETTERS, *(f"a{letter}" for letter in LETTERS[:12])])
AROUND = {
    "tokenizer.json": TOKENS,
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    "generation_config.json": {"temperature": 0.7},
    "README.md": "# Base",
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensors]:
    """The working directory has a Llama model and two fine-tunes of it."""
    monkeypatch.chdir(tmp_path)
    base = llama()
    made = {"base": base, "one": llama(seed=1, near=base), "two": llama(seed=2, near=base)}
    for name, tensors in made.items():
        write_model(Path(name), tensors, LLAMA, AROUND)
    return made
