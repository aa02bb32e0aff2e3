"""The values of a plan, each with the place where it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import TypeAlias

from ..core.errors import Mark, PlanError, nearest
from .scalars import MAX_BITS

__all__ = [
    "MAX_DEPTH",
    "Mapping",
    "Node",
    "Scalar",
    "Sequence",
    "Unresolved",
    "check_keys",
    "check_text",
    "node_of",
    "plain",
    "shown",
    "texts_of",
    "words_of",
]

MAX_DEPTH = 100  # of values: far from Python's limit in every later recursion
_SURROGATE = re.compile("[\ud800-\udfff]")


class Unresolved(str):
    """The text of a value with references to `config`, resolved when their step is run, and with no others."""

    __slots__ = ()


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
    """Nodes by key, in the order of the plan; `keys` says where each key was written.

    `fault` is what is wrong with a step that speaks of an unknown variable: it is told only when the step is known, for
    a step that does not exist has no variables either.

    `expand` gives the steps that a `foreach`, `when` or `include` stands for, from this mapping as it is after files
    and overrides are merged; its references are not resolved before.
    """

    entries: dict[str, Node]
    keys: dict[str, Mark]
    mark: Mark
    fault: PlanError | None = None
    expand: Callable[[Mapping], list[Node]] | None = field(default=None, compare=False, repr=False)


Node: TypeAlias = Scalar | Sequence | Mapping


def plain(node: Node) -> object:
    """The node as ordinary Python values: None, bool, int, float, str, list, dict."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key: plain(value) for key, value in node.entries.items()}


def shown(node: Node, length: int = 120) -> str:
    """The node as messages show it: a long one is cut."""
    text = repr(plain(node))
    return text if len(text) <= length else f"{text[:length]}..."


def node_of(value: object, mark: Mark, depth: int = 0) -> Node:
    """Ordinary Python values as nodes at `mark` or, if that is a path, below it.

    Keys become their text, paths too. Numbers and arrays of NumPy, JAX and PyTorch become plain numbers and lists.

    Raises:
        PlanError: a value that YAML has no plain form for, or nested without end.
    """
    if depth > MAX_DEPTH:
        raise PlanError(f"nested more than {MAX_DEPTH} levels deep", where=mark)
    if isinstance(value, AnyMapping):
        entries = {str(key): node_of(item, mark.within(str(key)), depth + 1) for key, item in value.items()}
        return Mapping(entries, {key: mark.within(key) for key in entries}, mark)
    if isinstance(value, list | tuple):
        items = (node_of(item, mark.within(number), depth + 1) for number, item in enumerate(value))
        return Sequence(tuple(items), mark)
    if value is None or isinstance(value, bool):
        return Scalar(value, mark)
    if isinstance(value, PathLike):
        value = fspath(value)
    # what derives from them, such as members of enumerations, becomes plain
    if isinstance(value, str):
        return Scalar(check_text(str.__str__(value), mark), mark)
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise PlanError("a number of too many digits", where=mark, expected=f"at most {MAX_BITS} bits")
    if isinstance(value, int | float):
        return Scalar(int.__int__(value) if isinstance(value, int) else float.__float__(value), mark)
    if hasattr(value, "dtype") and hasattr(value, "tolist") and not isinstance(value, type):
        return node_of(value.tolist(), mark, depth + 1)
    raise PlanError(
        "not a value of a plan",
        where=mark,
        expected="None, bool, int, float, str, a path, a list or a dict",
        found=f"{type(value).__name__}: {value!r:.80}",
        hint="write it as text, such as 'bfloat16' for a dtype",
    )


def check_text(text: str, mark: Mark | str) -> str:
    """The text, which has no half of a character: nothing could print or write it.

    Raises:
        PlanError: it has.
    """
    if _SURROGATE.search(text):
        raise PlanError("half a character: a surrogate without its partner", where=mark, found=ascii(text)[:80])
    return text


def texts_of(node: Node) -> Iterator[str]:
    """All strings among the values of a document; its keys are none."""
    if isinstance(node, Scalar):
        if isinstance(node.value, str):
            yield node.value
        return
    for item in node.items if isinstance(node, Sequence) else node.entries.values():
        yield from texts_of(item)


def words_of(node: Node, what: str) -> dict[str, str]:
    """A mapping of values as they would be typed, those that are none alone as JSON; null entries are left out.

    Raises:
        PlanError: it is none.
    """
    if not isinstance(node, Mapping):
        raise PlanError(f"{what} is a mapping", where=node.mark, found=shown(node))
    found: dict[str, str] = {}
    for key, value in node.entries.items():
        if not isinstance(value, Scalar):
            found[key] = json.dumps(plain(value))
        elif value.value is not None:
            word = value.value if isinstance(value.value, str) else json.dumps(value.value)
            found[key] = word if value.text is None else value.text
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
