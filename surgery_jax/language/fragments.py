"""Fragments: files of steps that plans include, with arguments."""

from __future__ import annotations

from ..core.errors import PlanError
from .document import parse_plan_file
from .interpolate import escape
from .nodes import Mapping, Node, Sequence, shown
from .parameters import OUTPUT, PARAMS, declarations, unknown

__all__ = ["read_fragment", "with_arguments"]


def read_fragment(file: str) -> Mapping:
    """The steps of a fragment under `transforms`, with its parameters and variables.

    Raises:
        PlanError: it cannot be read, or is no fragment.
    """
    found = parse_plan_file(file, interpolate=False)
    if isinstance(found, Sequence):
        found = Mapping({"transforms": found}, {"transforms": found.mark}, found.mark)
    if not isinstance(found, Mapping) or "transforms" not in found.entries:
        raise PlanError(
            "a fragment is a list of steps, or a mapping with `transforms`", where=found.mark, found=shown(found)
        )
    for key in ("inputs", OUTPUT):
        if key in found.entries:
            raise PlanError(f"a fragment has no {key}", where=found.keys[key], hint="execute runs whole plans")
    return found


def with_arguments(root: Mapping, given: Mapping) -> tuple[Mapping, dict[str, Node]]:
    """A fragment with the arguments that give its variables other values, and those that are its parameters.

    Raises:
        PlanError: an argument that it does not take. One that is a list of steps takes any.
    """
    values = {name: escape(value) for name, value in given.entries.items()}
    parameters = declarations(root)
    others = {name: value for name, value in values.items() if name not in parameters}
    known = set(root.entries) - {"transforms", PARAMS}
    if set(root.entries) != {"transforms"}:
        for name in others:
            if name not in known:
                raise unknown(name, given.keys[name], parameters, known)
    keys = root.keys | {name: given.keys[name] for name in others}
    own = {name: value for name, value in values.items() if name in parameters}
    return Mapping(root.entries | others, keys, root.mark), own
