"""Parameters of merges as configurations write them: one value, a gradient over layers, or values by parts of names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ..core.errors import PlanError
from ..language.nodes import Mapping, Node, Scalar, Sequence, check_keys, shown
from ..language.scalars import parse_plain

__all__ = ["Settings", "check_settings", "read_as", "resolve", "value_at", "whole_of"]

Settings: TypeAlias = Mapping | None  # by the name of the parameter

EVERYWHERE = "*"


def check_settings(node: Node | None, what: str) -> Settings:
    """A `parameters` section: a mapping of names to values of one of the forms.

    Raises:
        PlanError: it is none, or a value has no such form.
    """
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return None
    if not isinstance(node, Mapping):
        raise PlanError(f"{what} is a mapping", where=node.mark, expected="names and values", found=shown(node))
    for name, value in node.entries.items():
        _check(value, name)
    return node


def _check(node: Node, name: str) -> None:
    if isinstance(node, Scalar):
        if node.value is None:
            raise PlanError(f"{name} has no value", where=node.mark, hint="leave it out")
        return
    if isinstance(node, Mapping):
        _check_condition(node, name)
        return
    kinds = {type(item) for item in node.items}
    if kinds <= {Scalar}:
        for item in node.items:
            _check(item, name)
    elif kinds == {Mapping}:
        for item in node.items:
            assert isinstance(item, Mapping)
            _check_condition(item, name)
    else:
        raise PlanError(
            f"{name} is no value of a parameter",
            where=node.mark,
            expected="a value, a list of values (a gradient), or a list of { filter, value }",
            found=shown(node),
        )


def _check_condition(node: Mapping, name: str) -> None:
    check_keys(node, ("filter", "value"), name)
    if "value" not in node.entries:
        raise PlanError(f"{name}: a filter has no value", where=node.mark, expected="{ filter, value }")
    filter = node.entries.get("filter")
    if filter is not None and not (isinstance(filter, Scalar) and isinstance(filter.value, str | None)):
        raise PlanError(f"{name}.filter is a part of a name", where=filter.mark, found=shown(filter))
    value = node.entries["value"]
    if isinstance(value, Mapping) or (isinstance(value, Sequence) and not all(_is_scalar(i) for i in value.items)):
        raise PlanError(f"{name}: the value of a filter is a value or a gradient", where=value.mark, found=shown(value))
    _check(value, name)


def _is_scalar(node: Node) -> bool:
    return isinstance(node, Scalar)


def resolve(name: str, kind: str, scopes: Iterable[Settings], tensor: str, position: float) -> Scalar | None:
    """What a parameter is for a tensor: that of the first scope which says something about it. `kind` is that of its
    field, `position` in a gradient is from 0 to 1."""
    for scope in scopes:
        if scope is not None and name in scope.entries:
            found = value_at(scope.entries[name], kind, tensor, position)
            if found is not None:
                return found
    return None


def value_at(node: Node, kind: str, tensor: str, position: float) -> Scalar | None:
    """The value for a tensor; None if no filter is part of its name."""
    if isinstance(node, Scalar):
        return read_as(node, kind)
    if isinstance(node, Mapping):
        return _of_conditions((node,), kind, tensor, position)
    if all(isinstance(item, Scalar) for item in node.items):
        return _along([read_as(item, kind) for item in node.items if isinstance(item, Scalar)], node, position)
    return _of_conditions([item for item in node.items if isinstance(item, Mapping)], kind, tensor, position)


def _of_conditions(conditions: Iterable[Mapping], kind: str, tensor: str, position: float) -> Scalar | None:
    for condition in conditions:
        filter = condition.entries.get("filter")
        part = filter.value if isinstance(filter, Scalar) else None
        if part is None or part == EVERYWHERE or str(part) in tensor:
            return value_at(condition.entries["value"], kind, tensor, position)
    return None


def _along(values: list[Scalar], node: Node, position: float) -> Scalar | None:
    """The value at a position of a gradient: between numbers piecewise linear, of other values the one before."""
    if not values:
        return None
    scaled = position * (len(values) - 1)
    first = int(scaled)
    if not all(_is_number(value.value) for value in values):
        return values[first]
    left, right = values[first].value, values[min(first + 1, len(values) - 1)].value
    if left == right or scaled == first:
        return values[first]
    assert isinstance(left, int | float) and isinstance(right, int | float)
    return Scalar((1 - (scaled - first)) * left + (scaled - first) * right, node.mark)


def _is_number(value: object) -> bool:
    """Whether a value is a number and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_as(node: Scalar, kind: str) -> Scalar:
    """A value as the kind of its parameter has it: mergekit itself writes booleans and whole numbers as `1.0`, and
    people write numbers as text. What is nothing of the kind stays for the step to refuse."""
    value = node.value
    if isinstance(value, str):
        found = parse_plain(value.strip())
        if _is_number(found) or (kind == "boolean" and isinstance(found, bool)):
            value = found
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    elif kind == "boolean" and _is_number(value) and value in (0, 1):
        value = bool(value)
    return node if value is node.value else Scalar(value, node.mark)


def whole_of(node: Node | None) -> int | None:
    """The whole number that a value is, also one that is written as text or as `1.0`; None if it is none."""
    value = read_as(node, "integer").value if isinstance(node, Scalar) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
