"""Arrays in memory merged by a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import Mark, PlanError
from ..execute.options import Options
from ..language.nodes import Mapping, node_of
from ..language.plan import Plan
from ..merging.method import find_method, parameters
from ..storage.flax.trees import from_flax, to_flax
from .memory import apply

__all__ = ["merge_tensors"]

_RESULT, _BASE = "merged", "base"
_KEY = "tensor"


def merge_tensors(
    method: str, models: Sequence[Any], *, base: Any = None, options: Options | None = None, **parameters_: Any
) -> Any:
    """Arrays of one shape merged by a method of the step `merge`, as a NumPy array; or trees of arrays, nested mappings
    with the same keys, name by name, as nested dictionaries.

    `parameters_` are those of the method, and `dtype` and `out_dtype` of the step. One that every model may have for
    itself is a value for all of them or a list with one for each. `lambda` is spelled `lambda_`.

    Raises:
        SurgeryError: what is wrong, or NaN in a model.
    """
    given = {name.rstrip("_"): value for name, value in parameters_.items()}
    own: list[dict[str, Any]] = [{} for _ in models]
    for key in parameters(find_method(method), of_model=True):
        if isinstance(given.get(key), list | tuple):
            values = given.pop(key)
            if len(values) != len(own):
                raise PlanError(f"{method}: one {key} for each model", expected=str(len(own)), found=str(len(values)))
            for model, value in zip(own, values, strict=True):
                model[key] = float(value)
    aliases = [f"model{number}" for number in range(1, len(models) + 1)]
    sides = dict(zip(aliases, models, strict=True)) | ({} if base is None else {_BASE: base})
    is_tree = all(hasattr(side, "keys") for side in sides.values())
    inputs = {alias: from_flax(side if is_tree else {_KEY: side}) for alias, side in sides.items()}
    lead = {"base": f"{_BASE}::(.+)"} if base is not None else {}
    if not lead and own:
        own[0]["from"] = f"{aliases[0]}::(.+)"
    step = {"method": method, "models": dict(zip(aliases, own, strict=True)), "to": rf"{_RESULT}::\1", **lead, **given}
    content = {"transforms": [{"prefixes": {"mode": "add", "alias": _RESULT}}, {"merge": step}]}
    root = node_of(content, Mark("merge_tensors", 0, 0))
    assert isinstance(root, Mapping)
    found = to_flax(apply(Plan.of(root), inputs, options))
    return found if is_tree else found[_KEY]
