"""Changing a JSON object as a text: all that is not changed keeps its order, its spelling and its blanks."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from .strict_json import read_json

__all__ = ["parsed", "put", "removed", "renamed"]

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_LEVELS = 100  # that objects and lists may be nested; far from where the parser or a walk over them would give up
_INDENT = re.compile(r'\{[ \t]*\r?\n([ \t]+)"')


class _Member(NamedTuple):
    """A key of an object and its value: where they begin and end in the text."""

    key: str
    begin: int
    key_end: int
    value: int
    end: int


def parsed(text: str) -> dict[str, Any]:
    """The object.

    Raises:
        ValueError: it is no object, has a key twice, or is nested deeper than 100 levels.
    """
    value = read_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} instead of an object")
    level: list[Any] = [value]
    for _ in range(_LEVELS + 1):
        if not level:
            return value
        level = [
            child
            for parent in level
            if isinstance(parent, (dict, list))
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    raise ValueError("nested too deeply")


def put(text: str, path: list[str], value: Any) -> str:
    """With a value at a path of keys: in the place of the old one, or as the last of its object."""
    return _put(text, _start(text), path, value, _indent(text), 1)


def _put(text: str, start: int, path: list[str], value: Any, indent: str | None, depth: int) -> str:
    members = _members(text, start)
    found = next((member for member in members if member.key == path[0]), None)
    if found is not None and path[1:] and text[found.value] == "{":
        return _put(text, found.value, path[1:], value, indent, depth + 1)
    for key in reversed(path[1:]):
        value = {key: value}
    written = _written(value, indent, depth)
    if found is not None:
        return text[: found.value] + written + text[found.end :]
    key = json.dumps(path[0], ensure_ascii=False)
    if members:
        first = "," + text[start + 1 : members[0].begin]
        between = text[members[-2].end : members[-1].begin] if len(members) > 1 else first
        colon = text[members[-1].key_end : members[-1].value]
        return text[: members[-1].end] + between + key + colon + written + text[members[-1].end :]
    inner = "" if indent is None else "\n" + indent * depth
    outer = "" if indent is None else "\n" + indent * (depth - 1)
    end = text.index("}", start)
    return text[: start + 1] + inner + key + ": " + written + outer + text[end:]


def removed(text: str, path: list[str]) -> str:
    """Without the value at a path of keys.

    Raises:
        KeyError: there is none.
    """
    members, number = _found(text, path)
    member = members[number]
    if number:
        return text[: members[number - 1].end] + text[member.end :]
    if len(members) > 1:
        return text[: member.begin] + text[members[1].begin :]
    begin = text.rindex("{", 0, member.begin) + 1
    return text[:begin] + text[text.index("}", member.end) :]


def renamed(text: str, path: list[str], new: str) -> str:
    """With another name for the last of a path of keys.

    Raises:
        KeyError: there is no such value.
        ValueError: the new name is taken.
    """
    members, number = _found(text, path)
    if any(member.key == new for member in members):
        raise ValueError(new)
    member = members[number]
    return text[: member.begin] + json.dumps(new, ensure_ascii=False) + text[member.key_end :]


def _found(text: str, path: list[str]) -> tuple[list[_Member], int]:
    """The members of the object that holds the value at a path, and which of them it is."""
    start, *rest = _start(text), *path
    while True:
        members = _members(text, start) if text[start] == "{" else []
        number = next((number for number, member in enumerate(members) if member.key == rest[0]), None)
        if number is None:
            raise KeyError(path[-1])
        if len(rest) == 1:
            return members, number
        start, rest = members[number].value, rest[1:]


def _start(text: str) -> int:
    return _skip(text, 0)


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    assert found is not None
    return found.end()


def _members(text: str, start: int) -> list[_Member]:
    """The members of the object that begins at `start`, which is known to be sound."""
    members: list[_Member] = []
    at = _skip(text, start + 1)
    while text[at] != "}":
        key, key_end = _DECODER.raw_decode(text, at)
        value = _skip(text, _skip(text, key_end) + 1)
        _, end = _DECODER.raw_decode(text, value)
        members.append(_Member(key, at, key_end, value, end))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members


def _indent(text: str) -> str | None:
    """What a level is indented by; None if the text is one line."""
    found = _INDENT.search(text)
    return found[1] if found else None


def _written(value: Any, indent: str | None, depth: int) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text if indent is None else text.replace("\n", "\n" + indent * depth)
