"""How a merge method is declared: its parameters, what it needs, and what it makes of the tensors of one name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..core.discover import named, own_named
from ..core.errors import PlanError, nearest
from ..kit.fields import REQUIRED, Field, fields_of, wrong

if TYPE_CHECKING:
    from ..core.errors import Mark
    from ..kit.state import Value, Versions
    from ..language.nodes import Node

__all__ = ["Method", "each", "find_method", "methods", "parameters", "told"]

PACKAGE = "surgery_jax.merging.methods"


def each(declared: Any) -> Any:
    """The attribute of a parameter that every model may have for itself; it holds one value per model, in their order.
    What a model does not say is what the step says, or the default."""
    spec: Field = declared.metadata["field"]
    metadata = {"field": spec, "each": True}
    return dataclasses.field(default=() if spec.required else (spec.default,), metadata=metadata)


@dataclass(frozen=True)
class Method:
    """One way to merge. Subclasses are frozen dataclasses whose fields are its parameters.

    base: whether one tensor is the base, which the others are seen from. fewest, most: how many tensors there are
    beside it.
    """

    name: ClassVar[str]
    base: ClassVar[Literal["needed", "possible", "none"]] = "needed"
    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = None

    def merge(self, versions: Versions, keys: Sequence[str], base: Value | None, models: Sequence[Value]) -> Value:
        """The version that becomes of tensors of one shape and one float dtype, in that dtype; `keys` are what random
        numbers for each of the models depend on, beside a seed."""
        raise NotImplementedError

    def copies(self) -> bool:
        """Whether the only model is taken as it is."""
        return False

    @classmethod
    def of(cls, common: Mapping[str, Any], own: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Method:
        """The method with values by attribute: those of the step, and those that each model has for itself.

        Raises:
            PlanError: a value is missing or is none that it takes.
        """
        values: dict[str, Any] = {}
        for key, (attribute, field) in fields_of(cls).items():
            if not _is_each(cls, attribute):
                values |= {attribute: common[attribute]} if attribute in common else {}
                continue
            found = [model.get(attribute, common.get(attribute, field.default)) for model in own]
            if REQUIRED in found:
                raise PlanError(
                    f"{cls.name} needs {key} of {labels[found.index(REQUIRED)]}",
                    expected=f"{field.kind}: {field.doc}",
                    hint=f"give it with the model, or to all of them with the step: {key}: …",
                )
            values[attribute] = tuple(found)
        return cls(**values)


def _is_each(cls: type[Method], attribute: str) -> bool:
    return any(entry.name == attribute and "each" in entry.metadata for entry in dataclasses.fields(cls))


def parameters(cls: type[Method], *, of_model: bool = False) -> dict[str, tuple[str, Field]]:
    """YAML key to (attribute, field) of what a step takes for a method, or of what a model may have for itself."""
    found = {}
    for key, (attribute, field) in fields_of(cls).items():
        is_each = _is_each(cls, attribute)
        if is_each or not of_model:
            default = None if is_each and field.required else field.default
            found[key] = (attribute, dataclasses.replace(field, default=default, parse=_finite(field.parse)))
    return found


def _finite(parse: Callable[[Node], Any]) -> Callable[[Node], Any]:
    """Numbers as they are parsed, but no NaN and no infinity: of one, a whole model would be made without a word."""

    def parsed(node: Node) -> Any:
        found = parse(node)
        if isinstance(found, float) and not math.isfinite(found):
            raise wrong(node, "a finite number")
        return found

    return parsed


def told(cls: type[Method]) -> dict[str, tuple[str, Field]]:
    """YAML key to (attribute, field) of the parameters of a method, for people."""
    return {
        key: (
            name,
            dataclasses.replace(field, doc=f"{field.doc}; also of each model") if _is_each(cls, name) else field,
        )
        for key, (name, field) in fields_of(cls).items()
    }


@cache
def methods() -> Mapping[str, type[Method]]:
    """Every method by name, sorted; found by importing the files of `surgery_jax.merging.methods`, and what entry
    points name.

    Raises:
        PlanError: two of one name, or what an entry point names fails.
    """
    return named(Method, PACKAGE, "merge methods")


def find_method(name: str, where: Mark | None = None) -> type[Method]:
    """The method of a name.

    Raises:
        PlanError: there is none.
    """
    found = own_named(Method, PACKAGE, name) or methods().get(name)
    if found is None:
        near = nearest(name, methods(), 1)
        raise PlanError(
            f"unknown merge method {name!r}",
            where=where,
            expected="one of " + ", ".join(methods()),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return found
