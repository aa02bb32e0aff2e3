"""Which stored tensors are quantised: integers or narrow floats that mean something only with scales beside them.

No format says it, so names do: the scales of a tensor lie in its module, or below its name, and are named after it.
Known are those of bitsandbytes (`SCB`, `absmax`, `quant_map`), GPTQ and AWQ (`scales`, `qzeros`, `g_idx`),
compressed-tensors, FP8 and NVFP4 (`weight_scale`, `_scale_inv`, `_scale_2`, `_global_scale`), MXFP4 (`_blocks` with
`_scales`), HQQ, EXL2, Quanto, torchao and MLX. What scales activations, such as `input_scale`, is none of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from .dtypes import DType

__all__ = ["can_be_quantised", "companions"]

# What scales are called, after the name of their tensor or alone below it; all names without regard to case.
_SCALES = tuple(
    f"{joint}{word}"
    for word in (
        *("scale", "scale_inv", "scale_2", "scales", "scales_inv", "global_scale", "scb", "absmax", "quant_map"),
        *("zero_point", "zero_points", "zeros", "zero"),
    )
    for joint in ("_", "")
)
_BELOW = (*_SCALES, "nested_absmax")
_STORED = re.compile(r"(.*?)_?(?:blocks|packed|qdata|quantized|data)")  # a part of a name, then how it is stored
_WEIGHTS = ("weight", "qweight", "q_weight", "kernel", "w_q", "qvalue", "codes", "w")
_BESIDE = ("scales", "scb", "absmax", "quant_map", "scale", "qzeros", "g_idx", "zeros", "q_scale", "scale_weight")
_PARTS = {"qzeros": ("qweight", "scales"), "g_idx": ("qweight",), "absmax": ("nested_absmax",)}


def can_be_quantised(dtype: DType) -> bool:
    """Whether quantised numbers are stored in this dtype: any integer, and floats of at most eight bits."""
    return dtype.is_integer or dtype.is_small_float


def companions(tensors: Iterable[tuple[str, DType]]) -> dict[str, str]:
    """The quantised ones of all tensors of a checkpoint, each with the name of what it must be taken together with.

    >>> from surgery_jax.core.dtypes import BY_NAME
    >>> companions([("q.weight", BY_NAME["int8"]), ("q.SCB", BY_NAME["float32"]), ("ids", BY_NAME["int64"])])
    {'q.weight': 'q.SCB'}
    """
    known = dict(tensors)
    candidates = [name for name, dtype in known.items() if can_be_quantised(dtype)]
    if not candidates:
        return {}
    modules: dict[str, dict[str, str]] = defaultdict(dict)  # of each the last parts of names, by their small letters
    for name in known:
        module, _, leaf = name.rpartition(".")
        modules[module][leaf.lower()] = name
    found = {}
    for name in candidates:
        module, _, leaf = name.rpartition(".")
        beside, below = modules[module], modules.get(name)
        companion = next((beside[word] for word in _beside(leaf.lower()) if word in beside), None)
        if companion is None and below is not None:
            companion = next((below[word] for word in _BELOW if word in below), None)
        if companion is not None:
            found[name] = companion
    return found


def _beside(leaf: str) -> Iterator[str]:
    """What the scales of a tensor may be called that lie in the same module."""
    for word in _SCALES:
        yield leaf + word
    stored = _STORED.fullmatch(leaf)
    if stored is not None:
        for word in _SCALES:
            yield stored[1] + word
    if leaf in _WEIGHTS:
        yield from _BESIDE
    yield from _PARTS.get(leaf, ())
    if leaf.endswith("_scales"):
        yield leaf.removesuffix("scales") + "blocks"
    if leaf.endswith("_scale"):
        yield f"{leaf}_2"
        yield leaf.removesuffix("scale") + "global_scale"
