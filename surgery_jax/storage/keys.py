"""Trees of named leaves, as JAX code stores them, and the names of their leaves here.

A name is the path of keys joined by dots. A dot within a key is escaped as `\\.` and a backslash as `\\\\`, so that
every path has one name and every name one path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.errors import StorageError
from ..core.strict_json import at, read_json
from .files import parse_json

__all__ = [
    "MAX_DEPTH",
    "Plain",
    "branches",
    "describe_leaves",
    "join_keys",
    "leaves_below",
    "nest",
    "split_name",
    "told_leaves",
]

LEAVES = "flax_leaves"  # the metadata of leaves that are no tensors

MAX_DEPTH = 128  # levels of a tree; no model nests so deep, and readers of such files have bounds of their own
_SPECIAL = re.compile(r"[\\.]")
_TOKEN = re.compile(r"\\[\\.]|[^\\]")


def join_keys(keys: Sequence[str]) -> str:
    """The name of the leaf at a path of at least one key.

    >>> join_keys(["params", "v1.5", "kernel"])
    'params.v1\\\\.5.kernel'
    """
    return ".".join(_SPECIAL.sub(r"\\\g<0>", key) if "." in key or "\\" in key else key for key in keys)


def split_name(name: str) -> tuple[str, ...]:
    """The path of keys that a name stands for: the opposite of `join_keys`.

    Raises:
        StorageError: a backslash in the name escapes nothing.

    >>> split_name('params.v1\\\\.5.kernel')
    ('params', 'v1.5', 'kernel')
    """
    if "\\" not in name:
        return tuple(name.split("."))
    keys, at = [""], 0
    while at < len(name):
        token = _TOKEN.match(name, at)
        if token is None:
            raise StorageError(
                f"{name!r} names no path of keys: a backslash in it escapes nothing",
                expected=r"\. for a dot within a key, \\ for a backslash",
                found=repr(name[at : at + 2]),
                hint="rename the tensor with the step move",
            )
        if token[0] == ".":
            keys.append("")
        else:
            keys[-1] += token[0][-1]
        at = token.end()
    return tuple(keys)


def nest(leaves: Iterable[tuple[str, object]], where: str) -> dict[str, object]:
    """Nested dictionaries of the leaves of these names; a leaf is anything but a dictionary.

    Raises:
        StorageError: a name that is no path, nests too deep, or is also the beginning of another.
    """
    top: dict[str, object] = {}
    for name, leaf in leaves:
        try:
            *parents, last = split_name(name)
        except StorageError as error:
            raise error.located(where) from None
        if len(parents) >= MAX_DEPTH:
            raise StorageError(
                "a name nests too deep", where=where, expected=f"at most {MAX_DEPTH} keys", found=f"{name[:80]!r}…"
            )
        node, depth = top, 0
        for key in parents:
            child, depth = node.setdefault(key, {}), depth + 1
            if not isinstance(child, dict):
                raise _collision(join_keys(parents[:depth]), name, where)
            node = child
        if last in node:
            raise _collision(name, _first_below(name, node[last]), where)
        node[last] = leaf
    return top


def branches(names: Iterable[str]) -> set[str]:
    """The names of all branches above some leaves; the top is the empty text."""
    found = {""}
    for name in names:
        keys = split_name(name)
        found.update(join_keys(keys[:depth]) for depth in range(1, len(keys)))
    return found


# ------------------------------------------------------------------------------------- leaves that are no tensors


class Plain(NamedTuple):
    """A leaf that is no tensor: None, a text, an empty map or a complex number."""

    value: object


def describe_leaves(names: Iterable[str], scalars: Sequence[str], others: Mapping[str, object]) -> dict[str, str]:
    """The metadata of a tree with tensors of these names, of which `scalars` are no arrays, and with other leaves.

    Of every other leaf it tells the value, and the nearest branch above it that has tensors, without which it is of no
    use. Nothing is told of a tree of arrays.
    """
    if not scalars and not others:
        return {}
    known = branches(names)
    rows = []
    for name, value in others.items():
        keys = split_name(name)
        above = (join_keys(keys[:depth]) for depth in range(len(keys) - 1, 0, -1))
        told = [value.real, value.imag] if isinstance(value, complex) else value
        rows.append([name, next((branch for branch in above if branch in known), ""), told])
    return {LEAVES: json.dumps({"scalars": list(scalars), "others": rows}, separators=(",", ":"))}


def told_leaves(metadata: Mapping[str, str], names: Sequence[str], where: str) -> tuple[set[str], dict[str, Plain]]:
    """What the metadata of a tree with tensors of these names says: which are scalars, and the other leaves whose
    branch is still there and whose place no tensor has taken.

    Raises:
        StorageError: it does not say that.
    """
    if LEAVES not in metadata:
        return set(), {}
    table = parse_json(metadata[LEAVES].encode(), Path(where), f"the metadata {LEAVES!r}")
    try:
        names_of_scalars, told = _rows(table)
        scalars = set(names_of_scalars)
        rows = [(name, above, _value(value)) for name, above, value in told]
        paths = [(split_name(name), split_name(above)) for name, above, _ in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"the metadata {LEAVES!r} does not say which leaves are no tensors", where=where, found=repr(error)
        ) from None
    known, leaves = branches(names), set(names)
    found = {}
    for (name, above, value), (keys, _) in zip(rows, paths, strict=True):
        is_below = any(join_keys(keys[:depth]) in leaves for depth in range(1, len(keys)))
        if above in known and name not in known and name not in leaves and not is_below:
            found[name] = Plain(value)
    return scalars, found


def leaves_below(metadata: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The metadata of the part of a tree whose names begin with `prefix` and a dot; such as `describe_leaves` made."""
    if LEAVES not in metadata:
        return dict(metadata)
    start = f"{prefix}."
    try:
        all_scalars, all_others = _rows(read_json(metadata[LEAVES]))
    except (ValueError, KeyError, TypeError):  # whoever wants the leaves refuses it with its place
        return dict(metadata)
    scalars = [name.removeprefix(start) for name in all_scalars if name.startswith(start)]
    others = [
        [name.removeprefix(start), above.removeprefix(start) if above.startswith(start) else "", told]
        for name, above, told in all_others
        if name.startswith(start)
    ]
    rest = {key: text for key, text in metadata.items() if key != LEAVES}
    return rest | ({LEAVES: json.dumps({"scalars": scalars, "others": others})} if scalars or others else {})


def _rows(table: object) -> tuple[list[str], list[tuple[str, str, object]]]:
    """Names of scalars, and (name, branch above, what is told of it) of the other leaves.

    Raises:
        KeyError, TypeError, ValueError: the table does not say that.
    """
    scalars, others = at(table, "scalars"), at(table, "others")
    if not isinstance(scalars, list) or not isinstance(others, list):
        raise TypeError("no lists of leaves")
    rows = [(name, above, told) for name, above, told in others]
    if not all(isinstance(name, str) for name in (*scalars, *(name for row in rows for name in row[:2]))):
        raise TypeError("a name that is no text")
    return scalars, rows


def _value(told: object) -> object:
    if isinstance(told, list):
        real, imaginary = told
        return complex(real, imaginary)
    if told is None or isinstance(told, str) or told == {}:
        return told
    raise TypeError(f"a leaf {told!r}"[:120])


def _first_below(name: str, node: object) -> str:
    while isinstance(node, dict):
        key, node = next(iter(node.items()))
        name = f"{name}.{join_keys([key])}"
    return name


def _collision(short: str, long: str, where: str) -> StorageError:
    return StorageError(
        "a tree cannot hold a leaf and a branch at one place" if short != long else f"the name {short!r} comes twice",
        where=where,
        found=f"{short!r} and {long!r}",
        hint="rename one of them with the step move",
    )
