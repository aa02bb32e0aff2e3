"""How others spell the names of an adapter's tensors, and how PEFT spells them.

PEFT writes `base_model.model.p.lora_A.weight`. A state dict that was saved as it is has the name of the adapter in it,
`….lora_A.default.weight`, and what wraps a model puts its own words into paths: `_orig_mod` (torch.compile),
`_fsdp_wrapped_module`, `_checkpoint_wrapped_module`, and in front `module` (distributed data parallel).
Source: PEFT 0.21, `peft/utils/save_and_load.py`, https://github.com/huggingface/peft.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .adapters import PREFIX
from .errors import StorageError, listing

__all__ = ["spelled"]

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_NAMED = re.compile(r"(.*\.lora_(?:embedding_)?[AB])\.([^.]+)((?:\.(?:weight|bias))?)")
_PLAIN = ("weight", "bias")  # what follows lora_A where no adapter is named


def spelled(names: Iterable[str]) -> dict[str, str]:
    """Every name of an adapter as PEFT spells it.

    Raises:
        StorageError: there are several adapters, or two names are the same.
    """
    paths = {name: _unwrapped(name) for name in names}
    if not any(path.startswith(PREFIX) for path in paths.values()):  # saved from the model that PEFT changed
        paths = {name: PREFIX + path for name, path in paths.items()}
    held = {match[2] for path in paths.values() if (match := _named(path))}
    if len(held) > 1:
        raise StorageError(
            "the file holds several adapters",
            expected="the tensors of one",
            found=f"adapters named {listing(sorted(held))}",
            hint="save them apart with PEFT: save_pretrained(..., selected_adapters=[...])",
        )
    (adapter,) = held or {"default"}
    found = {name: _without(path, adapter) for name, path in paths.items()}
    by_path: dict[str, str] = {}
    for name, path in found.items():
        if path in by_path:
            raise StorageError("two names of one tensor", expected=path, found=f"{by_path[path]} and {name}")
        by_path[path] = name
    return found


def _unwrapped(name: str) -> str:
    path = ".".join(word for word in name.split(".") if word not in _WRAPPERS)
    inner = path.removeprefix("module.")
    return inner if inner.startswith(PREFIX) else path


def _named(path: str) -> re.Match[str] | None:
    match = _NAMED.fullmatch(path)
    return match if match and (match[3] or match[2] not in _PLAIN) else None


def _without(path: str, adapter: str) -> str:
    match = _named(path)
    if match:
        return match[1] + match[3]
    return path.replace(f".modules_to_save.{adapter}.", ".modules_to_save.")
