"""How configurations name models: a path, with a revision after `@` and an adapter after `+`, or a mapping of these."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ..core.errors import Mark, PlanError
from ..language.nodes import Mapping, Node, Scalar, check_keys, shown

__all__ = ["ModelReference", "reference"]


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model, and the adapter that is applied to it; two are equal if they mean the same."""

    path: str
    lora: str | None
    mark: Mark = field(compare=False)

    def __str__(self) -> str:
        return self.path if self.lora is None else f"{self.path}+{self.lora}"


def reference(node: Node, what: str) -> ModelReference:
    """The model that a value names.

    Raises:
        PlanError: it names none.
    """
    if isinstance(node, Mapping):
        return _of_mapping(node, what)
    if not isinstance(node, Scalar) or not isinstance(node.value, str) or not node.value:
        raise PlanError(f"{what} is a model", where=node.mark, expected="a path", found=shown(node))
    text = node.value
    if os.path.lexists(text):  # whatever signs its name has
        return ModelReference(text, None, node.mark)
    base, plus, lora = text.partition("+")
    if plus and not (base and lora):
        raise PlanError(f"{what} is a model", where=node.mark, expected="model+adapter", found=repr(text))
    return ModelReference(_without_revision(base), _without_revision(lora) if plus else None, node.mark)


def _without_revision(path: str) -> str:
    """The path; a revision is of no importance to what lies in a directory."""
    return path if os.path.lexists(path) else path.partition("@")[0]


def _of_mapping(node: Mapping, what: str) -> ModelReference:
    check_keys(node, ("model", "lora", "override_architecture"), what)
    if "model" not in node.entries:
        raise PlanError(f"{what} names no model", where=node.mark, expected="model: { path: … }", found=shown(node))
    model, lora = (_path(node.entries.get(key), f"{what}.{key}") for key in ("model", "lora"))
    assert model is not None
    return ModelReference(model, lora, node.mark)


def _path(node: Node | None, what: str) -> str | None:
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return None
    if isinstance(node, Mapping):
        check_keys(node, ("path", "revision"), what)
        node = node.entries.get("path", node)
    if not isinstance(node, Scalar) or not isinstance(node.value, str) or not node.value:
        raise PlanError(f"{what} is a path", where=node.mark, found=shown(node))
    return _without_revision(node.value)
