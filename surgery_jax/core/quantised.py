"""Which stored tensors are quantised: integers or narrow floats that mean something only with scales beside them.

No format says it, so names do: the scales of a tensor lie in its module, or below its name, and are named after it.
Known are those of bitsandbytes (`SCB`, `absmax`, `quant_map`), GPTQ and AWQ (`scales`, `qzeros`, `g_idx`),
compressed-tensors, FP8 and NVFP4 (`weight_scale`, `_scale_inv`, `_scale_2`, `_global_scale`), MXFP4 (`_blocks` with
`_scales`), HQQ, EXL2, Quanto, torchao and MLX. What scales activations, such as `input_scale`, is none of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from .dtypes import DType

__all__ = ["can_be_quantised", "companions"]

_SCALE = r"(?:global_)?(?:scales?(?:_inv|_2)?|zero_points?|zeros?|absmax|scb|quant_map)"
_STORED = re.compile(r"(.*?)_?(?:blocks|packed|qdata|quantized|data)")  # a part of a name, then how it is stored
_WEIGHTS = frozenset(("weight", "qweight", "q_weight", "kernel", "w_q", "qvalue", "codes", "w"))
_BESIDE = frozenset(
    ("scb", "absmax", "quant_map", "qzeros", "g_idx", "scales", "scale", "zeros", "q_scale", "scale_weight")
)
_BELOW = re.compile(rf"_?{_SCALE}|nested_absmax")
_PARTS = {"qzeros": ("qweight", "scales"), "g_idx": ("qweight",), "absmax": ("nested_absmax",)}


def can_be_quantised(dtype: DType) -> bool:
    """Whether quantised numbers are stored in this dtype: any integer, and floats of at most eight bits."""
    return dtype.is_integer or dtype.is_small_float


def companions(tensors: Iterable[tuple[str, DType]]) -> dict[str, str]:
    """The quantised ones of all tensors of a checkpoint, each with the name of what it must be taken together with.

    >>> companions([("q.weight", BY_NAME["int8"]), ("q.SCB", BY_NAME["float32"]), ("ids", BY_NAME["int64"])])
    {'q.weight': 'q.SCB'}
    """
    modules: dict[str, list[str]] = defaultdict(list)
    candidates = []
    for name, dtype in tensors:
        module, _, leaf = name.rpartition(".")
        modules[module].append(leaf)
        if can_be_quantised(dtype):
            candidates.append((name, module, leaf))
    found = {}
    for name, module, leaf in candidates:
        beside = next((other for other in modules[module] if other != leaf and _belongs(leaf, other)), None)
        below = next((other for other in modules.get(name, ()) if _BELOW.fullmatch(other.lower())), None)
        if beside is not None or below is not None:
            found[name] = f"{name}.{below}" if beside is None else f"{module}.{beside}" if module else beside
    return found


def _belongs(leaf: str, other: str) -> bool:
    """Whether a tensor of the same module says what the numbers of another mean."""
    leaf, other = leaf.lower(), other.lower()
    if leaf in _WEIGHTS and other in _BESIDE:
        return True
    if other in _PARTS.get(leaf, ()) or (leaf.endswith("_scales") and other == leaf.removesuffix("scales") + "blocks"):
        return True
    if leaf.endswith("_scale") and other in (f"{leaf}_2", leaf.removesuffix("scale") + "global_scale"):
        return True
    stored = _STORED.fullmatch(leaf)
    stems = {leaf} if stored is None else {leaf, stored[1]}
    return any(other.startswith(stem) and re.fullmatch(rf"_?{_SCALE}", other[len(stem) :]) for stem in stems)
