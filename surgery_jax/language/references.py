"""References to tensors, `alias::regex::[slice]` and structured patterns, as plans write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import Mark, PlanError
from .nodes import Node, Scalar, Sequence
from .slices import Slice, parse_slice

__all__ = ["Reference", "literal", "parse_reference"]

_SLICE_TEXT = re.compile(r"\[(?:[0-9:,+\-_\s]|\[[0-9,+\-_\s]*\])*\]")
_SLICE_END = re.compile(rf"::({_SLICE_TEXT.pattern})\Z")


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference of a plan: a regex, template or literal name (string), or a structured pattern (tuple).

    `text` is what the user wrote, for messages.
    """

    alias: str
    expr: str | tuple[str, ...]
    slice: Slice | None
    mark: Mark
    text: str


def parse_reference(node: Node, default_alias: str | None) -> Reference:
    """The reference that a node spells. `default_alias` is used where it names no alias.

    Raises:
        PlanError: not a reference, an alias is missing, or an invalid slice.
    """
    if isinstance(node, Sequence):
        return _structured(node, default_alias)
    if isinstance(node, Scalar):
        text = node.value if isinstance(node.value, str) else node.text
        if text is not None:
            return _string(text, default_alias, node.mark)
    raise PlanError(
        "a reference must be a string or a list of strings",
        where=node.mark,
        found=_found(node),
        hint="put quotes around a name that YAML reads as something else",
    )


def _structured(node: Sequence, default_alias: str | None) -> Reference:
    tokens = []
    for item in node.items:
        if not isinstance(item, Scalar) or not isinstance(item.value, str) or not item.value:
            raise PlanError(
                "the segments of a reference must be non-empty strings",
                where=item.mark,
                found=_found(item),
                hint="quote numbers: '0'",
            )
        tokens.append(item.value)
    if not tokens:
        raise PlanError("a reference must not be empty", where=node.mark)
    text = f"[{', '.join(tokens)}]"
    alias = _default(default_alias, text, node.mark, "a string reference: alias::regex")
    return Reference(alias, tuple(tokens), None, node.mark, text)


def _string(text: str, default_alias: str | None, mark: Mark) -> Reference:
    alias, expr, slice_text = _parts(text, default_alias, mark)
    try:
        parts = None if slice_text is None else parse_slice(slice_text)
    except PlanError as error:
        error.hint = error.hint or _slice_hint(slice_text or "", expr, alias)
        raise error.located(mark) from None
    if not expr:
        raise PlanError(f"the reference {text!r} names no tensor: it must not be empty", where=mark)
    alias = _default(alias or default_alias, text, mark, f"alias::{text.removeprefix('::')}")
    return Reference(alias, expr, parts, mark, text)


def _slice_hint(text: str, expr: str, alias: str) -> str | None:
    """What may have been meant by a text in brackets that is no slice."""
    if _SLICE_TEXT.fullmatch(text) or text[:1] != "[":
        return None
    if "..." in text or "None" in text:
        return "write a : for every axis that stays whole, and use reshape for axes that are added"
    if any(mark in text[1:-1] for mark in "[:,"):
        return None
    return f"a character class after :: is written {expr or alias}::(?:{text})"


def _parts(text: str, default_alias: str | None, mark: Mark) -> tuple[str, str, str | None]:
    """Alias (may be empty), expression and slice text. `::` inside a final slice does not separate."""
    found = _SLICE_END.search(text)
    if found is not None and "::" in found[1]:
        words = [*text[: found.start()].split("::"), found[1]]
        if len(words) == 2:
            return "", words[0], words[1]
    else:
        words = text.split("::")
    if len(words) == 1:
        return "", words[0], None
    if len(words) == 2:
        head, tail = words
        if default_alias is not None and tail[:1] == "[" and tail[-1:] == "]":
            return "", head, tail
        return head, tail, None
    if len(words) == 3:
        return words[0], words[1], words[2]
    raise PlanError(
        f"too many parts in the reference {text!r}",
        where=mark,
        expected="at most alias::name::[slice]",
        hint=":: separates",
    )


def _default(alias: str | None, text: str, mark: Mark, hint: str) -> str:
    if not alias:
        raise PlanError(
            f"the reference {text!r} has no alias, and there is no default alias",
            where=mark,
            expected="an alias, unless the plan has exactly one input",
            hint=hint,
        )
    return alias


def _found(node: Node) -> str:
    if isinstance(node, Scalar):
        if node.value is None:
            return "null"
        word = str(node.value).lower() if isinstance(node.value, bool) else repr(node.value)
        return f"{word} ({type(node.value).__name__})"
    return "a list" if isinstance(node, Sequence) else "a mapping"


def literal(ref: Reference) -> str:
    """The name that a reference spells as it stands, for destinations that are no templates.

    Raises:
        PlanError: a structured pattern.
    """
    if isinstance(ref.expr, str):
        return ref.expr
    raise PlanError(f"expected a single name, not the pattern {ref.text}", where=ref.mark, hint="write it with dots")
