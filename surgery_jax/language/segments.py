"""Structured patterns: tensor names taken apart at their dots, and put together again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from ..core.errors import Mark, PlanError, listing
from ..core.regexes import check_time, compile_regex

__all__ = ["Bindings", "SegmentPattern", "fill_template"]

Bindings: TypeAlias = dict[str, str | tuple[str, ...]]

# The matcher recurses once per token.
_MAX_TOKENS = 200
_MAX_STEPS = 100_000  # of one name: only variables that occur several times can need many

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_WHOLE_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")


@dataclass(frozen=True, slots=True)
class _Literal:
    text: str


@dataclass(frozen=True, slots=True)
class _One:
    name: str


@dataclass(frozen=True, slots=True)
class _Many:
    name: str


@dataclass(frozen=True, slots=True)
class _Regex:
    text: str
    regex: re.Pattern[str]
    names: tuple[str, ...]


_Token: TypeAlias = _Literal | _One | _Many | _Regex


class SegmentPattern:
    """A compiled list of source tokens.

    `prefix` and `suffix` are texts that every matching name begins and ends with.

    Raises:
        PlanError: a token that is none.
    """

    def __init__(self, tokens: tuple[str, ...], mark: Mark) -> None:
        if len(tokens) > _MAX_TOKENS:
            raise PlanError(f"a pattern of {len(tokens)} segments", where=mark, expected=f"at most {_MAX_TOKENS}")
        self._mark = mark
        self._tokens = tuple(_token(token, mark) for token in tokens)
        self.prefix = ".".join(_leading(self._tokens))
        self.suffix = ".".join(_leading(self._tokens[::-1])[::-1])
        self._steps = 0
        names = [name for token in self._tokens for name in _names(token)]
        # A failure at one place is final if no earlier choice can change it, that is, if no name occurs twice.
        self._is_memoizable = len(set(names)) == len(names)

    def check_time(self, names: Iterable[str]) -> None:
        """Refuse regexes that do not end in time on segments of these names.

        Raises:
            PlanError: one does not.
        """
        regexes = [token.regex for token in self._tokens if isinstance(token, _Regex)]
        if regexes:
            segments = {segment for name in names for segment in name.split(".")}
            for regex in regexes:
                check_time(regex, segments, self._mark)

    def bind(self, name: str) -> Bindings | None:
        """The values of the variables if the pattern covers the whole name; the first `*` takes as much as it can.

        Raises:
            PlanError: a bound group of a regex took no part in the match, or there are too many ways to try.
        """
        segments = tuple(name.split("."))
        self._steps = 0
        failed: set[tuple[int, int]] | None = set() if self._is_memoizable else None
        return self._match(0, 0, segments, {}, failed)

    def _match(
        self, at: int, begin: int, segments: tuple[str, ...], bound: Bindings, failed: set[tuple[int, int]] | None
    ) -> Bindings | None:
        if at == len(self._tokens):
            return bound if begin == len(segments) else None
        if failed is not None and (at, begin) in failed:
            return None
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise PlanError(
                "a pattern with too many ways to match",
                where=self._mark,
                found=f"{len(segments)} segments",
                hint="fewer * variables that occur twice",
            )
        token = self._tokens[at]
        # How many segments the token may take, best first.
        lengths = range(len(segments) - begin, -1, -1) if isinstance(token, _Many) else (1,)
        for length in lengths:
            taken = segments[begin : begin + length]
            extended = self._extend(token, taken, bound) if len(taken) == length else None
            if extended is not None:
                result = self._match(at + 1, begin + length, segments, extended, failed)
                if result is not None:
                    return result
        if failed is not None:
            failed.add((at, begin))
        return None

    def _extend(self, token: _Token, taken: tuple[str, ...], bound: Bindings) -> Bindings | None:
        if isinstance(token, _Many):
            return _bound(bound, token.name, taken)
        (segment,) = taken
        if isinstance(token, _Literal):
            return bound if token.text == segment else None
        if isinstance(token, _One):
            return _bound(bound, token.name, segment)
        found = token.regex.fullmatch(segment)
        if found is None:
            return None
        values = found.groups() or (segment,)
        result: Bindings | None = bound
        for name, value in zip(token.names, values, strict=False):
            if value is None:
                raise PlanError(
                    f"the group for {name!r} in {token.text!r} took no part in {segment!r}", where=self._mark
                )
            result = None if result is None else _bound(result, name, value)
        return result


def fill_template(tokens: tuple[str, ...], bound: Bindings, mark: Mark) -> str:
    """The name that the destination tokens make of the variables.

    Raises:
        PlanError: an unknown variable, a list where one segment belongs or the reverse, or a token that is none.
    """
    pieces: list[str] = []
    for token in tokens:
        if len(token) == 1 or token[0] not in "$*~":
            texts = _VARIABLE.split(token)  # text and variable names in turn
            pieces.append("".join(_scalar(t, token, bound, mark) if i % 2 else t for i, t in enumerate(texts)))
        elif token[0] == "*":
            values = bound.get(token[1:])
            if values is None:
                _unknown(token[1:], token, bound, mark)
            if isinstance(values, str):
                raise PlanError(f"{token!r} of a single segment", where=mark, hint=f"write ${token[1:]}")
            pieces.extend(values)
        elif token[0] == "$":
            found = _WHOLE_VARIABLE.fullmatch(token)
            if found is None:
                raise PlanError(
                    f"{token!r} begins with a variable and goes on",
                    where=mark,
                    expected="$name or ${name} alone, or text before it",
                )
            pieces.append(_scalar(found[1] or found[2], token, bound, mark))
        else:
            raise PlanError(f"a regex in a destination: {token!r}", where=mark, expected="text, $name or *name")
    return ".".join(pieces)


def _scalar(name: str, token: str, bound: Bindings, mark: Mark) -> str:
    value = bound.get(name)
    if value is None:
        _unknown(name, token, bound, mark)
    if isinstance(value, tuple):
        raise PlanError(f"{name!r} in {token!r} is a list of segments", where=mark, hint=f"write *{name} alone")
    return value


def _unknown(name: str, token: str, bound: Bindings, mark: Mark) -> NoReturn:
    raise PlanError(
        f"unknown variable {name!r} in {token!r}", where=mark, expected=f"a variable of the source: {listing(bound)}"
    )


def _token(text: str, mark: Mark) -> _Token:
    if len(text) == 1 or text[0] not in "$*~":
        return _Literal(text)
    if text[0] == "$":
        return _One(_checked(text[1:], text, mark))
    if text[0] == "*":
        return _Many(_checked(text[1:], text, mark))
    head, separator, expr = text[1:].partition("::")
    names = tuple(_checked(name, text, mark) for name in head.split(",")) if separator else ()
    if not separator:
        expr = head
    regex = compile_regex(expr, mark, f" in {text!r}")
    if regex.groupindex:
        raise PlanError(f"named groups are not allowed in {text!r}", where=mark, hint="write ~name::(...)")
    if names and regex.groups != len(names) and (len(names), regex.groups) != (1, 0):
        raise PlanError(
            f"{len(names)} names for {regex.groups} groups in {text!r}",
            where=mark,
            expected="one group for each name",
            hint="groups that bind nothing are written (?:...)",
        )
    return _Regex(text, regex, names)


def _checked(name: str, token: str, mark: Mark) -> str:
    if _NAME.fullmatch(name) is None:
        raise PlanError(
            f"invalid variable name {name!r} in {token!r}",
            where=mark,
            expected="a letter or _, then letters and digits",
        )
    return name


def _names(token: _Token) -> tuple[str, ...]:
    if isinstance(token, _Literal):
        return ()
    return token.names if isinstance(token, _Regex) else (token.name,)


def _leading(tokens: tuple[_Token, ...]) -> list[str]:
    texts = []
    for token in tokens:
        if not isinstance(token, _Literal):
            break
        texts.append(token.text)
    return texts


def _bound(bound: Bindings, name: str, value: str | tuple[str, ...]) -> Bindings | None:
    if name in bound:
        return bound if bound[name] == value else None
    return {**bound, name: value}
