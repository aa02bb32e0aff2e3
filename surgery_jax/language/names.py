"""Names of tensors: those that a reference matches, and new ones by a template."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from ..core.errors import PlanError
from ..core.regexes import check_time, compile_regex, literal_prefix, without_warnings
from .references import Reference, literal, parse_reference
from .segments import SegmentPattern, fill_template
from .slices import Slice, Stride, parse_slice, resolve_slice

__all__ = [
    "INDEX",
    "NameIndex",
    "Reference",
    "Selector",
    "Slice",
    "Stride",
    "could_produce",
    "literal",
    "numbered_by",
    "parse_reference",
    "parse_slice",
    "placeholder",
    "resolve_slice",
]

INDEX = "index"  # the group or variable that numbers tensors
_NUMBER = "\U0010ffff"  # stands for the number in names that are made before it is known: no character, so in no name

_GROUP = re.compile(r"\\\\|\\g<[^<>]*>|\\[0-9]{1,2}")
_INDEX_GROUP = re.compile(rf"((?<!\\)(?:\\\\)*)\\g<{INDEX}>")
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")


@dataclass(frozen=True, slots=True)
class Oddity:
    """What a user should look at, and what to write instead."""

    problem: str
    hint: str | None


class NameIndex:
    """An ordered set of tensor names that finds those with a common beginning fast.

    Iteration is in order of arrival; a name that was discarded and added again comes last.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = dict.fromkeys(names)
        self._sorted: list[str] = []
        # Changes since `_sorted` was in order; sorting it again is cheap, because it is nearly sorted.
        self._added = dict.fromkeys(self._names)
        self._removed: set[str] = set()

    def add(self, name: str) -> None:
        """Put the name at the end, unless it is there."""
        if name in self._names:
            return
        self._names[name] = None
        if name in self._removed:
            self._removed.remove(name)
        else:
            self._added[name] = None

    def discard(self, name: str) -> None:
        """Take the name out, if it is there."""
        if name not in self._names:
            return
        del self._names[name]
        if name in self._added:
            del self._added[name]
        else:
            self._removed.add(name)

    def copy(self) -> NameIndex:
        """An independent index of the same names."""
        twin = NameIndex()
        twin._names, twin._added, twin._removed = dict(self._names), dict(self._added), set(self._removed)
        twin._sorted = list(self._sorted)
        return twin

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def sorted(self) -> list[str]:
        """All names by code point."""
        return list(self._in_order())

    def with_prefix(self, prefix: str) -> list[str]:
        """The names that begin with `prefix`, by code point."""
        names = self._in_order()
        begin = bisect_left(names, prefix)
        return names[begin : bisect_left(names, True, begin, key=lambda name: not name.startswith(prefix))]

    def _in_order(self) -> list[str]:
        if self._removed:
            self._sorted = [name for name in self._sorted if name not in self._removed]
            self._removed.clear()
        if self._added:
            self._sorted.extend(self._added)
            self._sorted.sort()
            self._added.clear()
        return self._sorted


class Selector:
    """A compiled source reference.

    Raises:
        PlanError: an invalid regex or token.
    """

    def __init__(self, ref: Reference) -> None:
        self.reference = ref
        self._templates: set[str] = set()
        self._pieces: dict[str, tuple[str, str, int]] = {}  # by template: the first name that was replaced in pieces
        self._segments: SegmentPattern | None = None
        if isinstance(ref.expr, str):
            self._regex = compile_regex(ref.expr, ref.mark)
            self._prefix, self._is_literal = literal_prefix(ref.expr)
        else:
            self._segments = SegmentPattern(ref.expr, ref.mark)

    def match(self, names: NameIndex) -> list[str]:
        """The names that the whole pattern matches, by code point."""
        if self._segments is not None:
            pattern = self._segments
            near = [name for name in names.with_prefix(pattern.prefix) if name.endswith(pattern.suffix)]
            pattern.check_time(near)
            return [name for name in near if pattern.bind(name) is not None]
        if self._is_literal:
            return [self._prefix] if self._prefix in names else []
        near = names.with_prefix(self._prefix)
        check_time(self._regex, near, self.reference.mark, is_whole=True)
        return list(filter(self._regex.fullmatch, near))

    def rewrite(self, name: str, template: Reference) -> str:
        """The destination for a name that this selector matched.

        A string template replaces every match of the regex in the name, as `re.sub` does; a structured one is filled
        with the variables.

        Raises:
            PlanError: templates of the other kind, unknown groups or variables, bad escapes.
        """
        if isinstance(template.expr, str) != (self._segments is None):
            raise PlanError(
                f"{self.reference.text!r} and {template.text!r} must be of the same kind",
                where=template.mark,
                expected="two strings or two lists",
            )
        if isinstance(template.expr, str):
            return self._substitute(name, template.expr, template)
        assert self._segments is not None
        bound = self._segments.bind(name)
        if bound is None:
            raise PlanError(f"{self.reference.text!r} does not match {name!r}", where=self.reference.mark)
        return fill_template(template.expr, bound, template.mark)

    def captured(self, name: str) -> tuple[object, ...]:
        """What the groups or variables stand for in a name that this selector matched, in their order."""
        if self._segments is not None:
            return tuple((self._segments.bind(name) or {}).values())
        found = self._regex.fullmatch(name)
        return found.groups() if found else ()

    def number(self, name: str) -> int:
        """The number that the group or variable `index` stands for in a name that this selector matched.

        Raises:
            PlanError: there is none, or it is no number.
        """
        if self._segments is not None:
            found: object = (self._segments.bind(name) or {}).get(INDEX)
            expected = f"a variable ${INDEX}"
        else:
            matched = self._regex.fullmatch(name) if INDEX in self._regex.groupindex else None
            found = matched[INDEX] if matched is not None else None
            expected = rf"a group of that name: (?P<{INDEX}>\d+)"
        if found is None:
            problem = f"{self.reference.text!r} does not say which part of {name!r} is its {INDEX}"
            raise PlanError(problem, where=self.reference.mark, expected=expected)
        if not isinstance(found, str) or not found.isdecimal() or not found.isascii() or len(found) > 9:
            problem = f"the {INDEX} of {name!r} is no number"
            raise PlanError(problem, where=self.reference.mark, expected="digits", found=f"{found!r}")
        return int(found)

    def _substitute(self, name: str, expr: str, template: Reference) -> str:
        try:
            if expr in self._templates:
                result, count = self._regex.subn(expr, name)
            else:  # only the first use parses the template and may warn; `re` remembers the result
                with without_warnings():
                    result, count = self._regex.subn(expr, name)
        except (re.error, IndexError) as error:
            raise PlanError(
                f"invalid destination {template.text!r}: {error}",
                where=template.mark,
                expected=rf"text with \1 to \{self._regex.groups} or \g<0>" if self._regex.groups else r"text or \g<0>",
                hint="a dot needs no backslash in a destination",
            ) from None
        self._templates.add(expr)
        if count > 1 and expr not in self._pieces and result != self._expanded_once(name, expr):
            self._pieces[expr] = (name, result, count)
        return result

    def _expanded_once(self, name: str, expr: str) -> str | None:
        """What would come of a name if the pattern were replaced once, as a whole."""
        found = self._regex.fullmatch(name)
        return found.expand(expr) if found else None

    def oddity(self, template: Reference) -> Oddity | None:
        """What is odd about the names that a template gave, although it is what the language says."""
        if not isinstance(template.expr, str):
            return None
        pieces = self._pieces.get(template.expr)
        if pieces is not None:
            return self._in_pieces(*pieces, self._expanded_once(pieces[0], template.expr), template.expr)
        if "\\" in _GROUP.sub("", template.expr):
            return Oddity(
                f"{template.text!r} keeps its backslash: a destination is no pattern",
                "write its dots as they are, without backslashes",
            )
        return None

    def _in_pieces(self, name: str, result: str, count: int, once: str | None, template: str) -> Oddity:
        expr = self._regex.pattern
        is_empty = self._regex.match(name, len(name)) is not None
        what = "also the empty text at the end" if is_empty else f"{name} in {count} pieces"
        remedy = next(
            (other for other in (expr.replace(".*", ".+"), f"^(?:{expr})$") if _gives(other, template, name, once)),
            None,
        )
        return Oddity(
            f"{expr!r} matches {what}, and each match is replaced: {name} becomes {result}",
            f"write {remedy!r}, which gives {once}" if remedy else None,
        )


def _gives(expr: str, template: str, name: str, wanted: str | None) -> bool:
    with without_warnings():
        return re.sub(expr, template, name) == wanted


def numbered_by(template: Reference) -> tuple[Reference, Callable[[str, int], str]]:
    """A template whose `index` is not known yet, and what puts it into a name that the template gave.

    Raises:
        PlanError: the template does not use it.
    """
    if isinstance(template.expr, str):
        expr: str | tuple[str, ...] = _INDEX_GROUP.sub(lambda hit: hit[1] + _NUMBER, template.expr)
    else:
        expr = tuple(
            _NUMBER if token in (f"${INDEX}", f"${{{INDEX}}}") else token.replace(f"${{{INDEX}}}", _NUMBER)
            for token in template.expr
        )
    if expr == template.expr:
        raise PlanError(
            f"{template.text!r} does not say where the number goes",
            where=template.mark,
            expected=rf"\g<{INDEX}> in a string, ${INDEX} in a list",
        )
    return replace(template, expr=expr), lambda name, number: name.replace(_NUMBER, str(number))


def placeholder(template: Reference) -> str:
    """The template with 0 for every group or variable: what a name made by it would look like."""
    return _expanded(template, "0")


def could_produce(template: Reference, name: str) -> bool:
    """Whether the template makes `name` for some values of its groups or variables."""
    first, *others = _expanded(template, _NUMBER).split(_NUMBER)
    if not others:
        return name == first
    *inner, last = others
    if not (name.startswith(first) and name.endswith(last) and len(name) >= len(first) + len(last)):
        return False
    at = len(first)
    for text in inner:
        at = name.find(text, at, len(name) - len(last))
        if at < 0:
            return False
        at += len(text)
    return True


def _expanded(template: Reference, wildcard: str) -> str:
    """The template with a wildcard for each group or variable."""
    if isinstance(template.expr, str):
        return _GROUP.sub(lambda found: "\\" if found[0] == "\\\\" else wildcard, template.expr)
    tokens = [
        wildcard if len(token) > 1 and token[0] in "$*" else _VARIABLE.sub(lambda found: wildcard, token)
        for token in template.expr
    ]
    return ".".join(tokens)
