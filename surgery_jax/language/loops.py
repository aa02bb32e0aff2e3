"""What the variables of `foreach` are, turn by turn."""

from __future__ import annotations

import re
from typing import Any

from ..core.errors import PlanError, listing
from ..core.regexes import check_time, compile_regex
from .functions import FUNCTIONS
from .interpolate import Path, Resolver
from .names import parse_reference
from .nodes import Mapping, Node, Sequence, plain, shown
from .sources import CONFIG, Sources

__all__ = ["bindings"]

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_TAKEN = (CONFIG, "when", "foreach", "include")


def bindings(resolver: Resolver, sources: Sources, loop: Mapping, key: str, path: Path) -> list[dict[str, Any]]:
    """The variables that `key` names, as they are in each turn of the loop at `path`.

    Raises:
        PlanError: they have no names, or no values.
    """
    node, mark = loop.entries[key], resolver.marked(loop.keys[key])
    names = [word.strip() for word in key.split(",")]
    for name in names:
        if not _NAME.fullmatch(name) or name in FUNCTIONS or name in _TAKEN:
            raise PlanError(
                f"{name!r} cannot be a variable of a loop", where=mark, expected="a name that means nothing yet"
            )
    if isinstance(node, Mapping) and set(node.entries) == {"match"}:
        items = _captured(resolver.resolve(node.entries["match"], (*path, key, "match"), 1), sources)
    else:
        items = _items(resolver.resolve(node, (*path, key), 1), len(names), key)
    if len(names) == 1:
        return [{names[0]: item} for item in items]
    for item in items:
        if not isinstance(item, list) or len(item) != len(names):
            raise PlanError(f"each value for `{key}` is a list of {len(names)}", where=mark, found=f"{item!r:.80}")
    return [dict(zip(names, item, strict=True)) for item in items]


def _captured(node: Node, sources: Sources) -> list[Any]:
    """What the groups of a regular expression match in the names of an input: each once, in order; numbers as
    numbers."""
    ref = parse_reference(node, sources.only)
    if not isinstance(ref.expr, str) or ref.slice is not None:
        raise PlanError("match is a regular expression", where=ref.mark, expected=r"model::layers\.(\d+)\..+")
    regex = compile_regex(ref.expr, ref.mark)
    names = sources.names(ref.alias, ref.mark)
    check_time(regex, names, ref.mark)
    matches = (regex.fullmatch(name) for name in names)
    rows = list(dict.fromkeys((match.groups() or (match[0],)) for match in matches if match))
    if not rows:
        raise PlanError(f"nothing matches {ref.text!r}", where=ref.mark, hint=f"names: {listing(names, 3)}")
    are_numbers = [
        all(word is not None and _NUMBER.fullmatch(word) for word in column) for column in zip(*rows, strict=True)
    ]
    values = [
        [int(word) if is_number else word for word, is_number in zip(row, are_numbers, strict=True)] for row in rows
    ]
    values.sort(key=lambda row: [(word is None, word if word is not None else "") for word in row])
    return [row[0] if len(row) == 1 else row for row in values]


def _items(node: Node, width: int, key: str) -> list[Any]:
    """The values of a loop: of a list its items, of a mapping its entries."""
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    if isinstance(node, Mapping):
        pairs = [(name, plain(value)) for name, value in node.entries.items()]
        return [[*pair] if width == 2 else {"key": pair[0], "value": pair[1]} for pair in pairs]
    is_count = isinstance(node.value, int) and not isinstance(node.value, bool)
    raise PlanError(
        f"the values of `{key}` are a list or a mapping",
        where=node.mark,
        found=shown(node),
        hint=f"'${{range({node.value})}}' counts from 0" if is_count else None,
    )
