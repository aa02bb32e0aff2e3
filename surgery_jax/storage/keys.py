"""Trees of named leaves, as JAX code stores them, and the names of their leaves here.

A name is the path of keys joined by dots. A dot within a key is escaped as `\\.` and a backslash as `\\\\`, so that
every path has one name and every name one path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..core.errors import StorageError

__all__ = ["MAX_DEPTH", "join_keys", "nest", "split_name"]

MAX_DEPTH = 256  # levels of a tree; no model nests so deep, and readers of such files have bounds of their own
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


def nest(leaves: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    """Nested dictionaries of the leaves of these names; a leaf is anything but a dictionary.

    Raises:
        StorageError: a name that is no path, nests too deep, or is also the beginning of another.
    """
    top: dict[str, Any] = {}
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
            node, depth = node.setdefault(key, {}), depth + 1
            if not isinstance(node, dict):
                raise _collision(join_keys(parents[:depth]), name, where)
        if last in node:
            raise _collision(name, _first_below(name, node[last]), where)
        node[last] = leaf
    return top


def _first_below(name: str, node: Any) -> str:
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
