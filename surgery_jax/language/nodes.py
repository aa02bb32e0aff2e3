"""The values of a plan, each with the place where it was written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from ..core.errors import Mark, PlanError, nearest

__all__ = ["Mapping", "Node", "Scalar", "Sequence", "check_keys", "node_of", "plain", "words_of"]


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `text` is exactly what was typed, for a value that came from the command line; None otherwise."""

    value: bool | int | float | str | None
    mark: Mark
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list of nodes."""

    items: tuple[Node, ...]
    mark: Mark


@dataclass(frozen=True, slots=True)
class Mapping:
    """Nodes by key, in the order of the plan; `keys` says where each key was written."""

    entries: dict[str, Node]
    keys: dict[str, Mark]
    mark: Mark


Node: TypeAlias = Scalar | Sequence | Mapping


def plain(node: Node) -> object:
    """The node as ordinary Python values: None, bool, int, float, str, list, dict."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key: plain(value) for key, value in node.entries.items()}


def node_of(value: object, mark: Mark) -> Node:
    """Ordinary Python values as nodes that all lie at `mark`; keys become their text.

    Raises:
        TypeError: a value that YAML has no plain form for.
    """
    if isinstance(value, dict):
        entries = {str(key): node_of(item, mark) for key, item in value.items()}
        return Mapping(entries, dict.fromkeys(entries, mark), mark)
    if isinstance(value, list | tuple):
        return Sequence(tuple(node_of(item, mark) for item in value), mark)
    if value is None or isinstance(value, bool | int | float | str):
        return Scalar(value, mark)
    raise TypeError(f"no plan value: {type(value).__name__}")


def words_of(node: Node, what: str) -> dict[str, str]:
    """A mapping of single values as they would be typed; null entries are left out.

    Raises:
        PlanError: it is none.
    """
    if not isinstance(node, Mapping):
        raise PlanError(f"{what} is a mapping", where=node.mark, found=f"{plain(node)!r}")
    found: dict[str, str] = {}
    for key, value in node.entries.items():
        if not isinstance(value, Scalar):
            raise PlanError(f"{what}.{key} is a single value", where=value.mark, found=f"{plain(value)!r}")
        if value.value is not None:
            found[key] = str(value.value) if value.text is None else value.text
    return found


def check_keys(node: Mapping, allowed: Iterable[str], what: str) -> None:
    """That a mapping has no other keys.

    Raises:
        PlanError: it has; of several the first.
    """
    known = tuple(allowed)
    for key in node.entries:
        if key not in known:
            near = nearest(key, known, 1)
            raise PlanError(
                f"{what} has an unknown key {key!r}",
                where=node.keys[key],
                expected=", ".join(known),
                hint=f"did you mean {near[0]}?" if near else None,
            )
