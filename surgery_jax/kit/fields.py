"""The keys of a step: what each takes, in words and as a parser, and how the attributes of a dataclass declare them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.dtypes import DType, parse_dtype
from ..core.errors import PlanError, nearest
from ..core.regexes import compile_regex
from ..language import document
from ..language.document import Node, Scalar
from ..language.nodes import shown

__all__ = [
    "REQUIRED",
    "Field",
    "Values",
    "boolean",
    "choice",
    "declare",
    "dtype_name",
    "epsilon",
    "expressions",
    "fields_of",
    "fraction",
    "integer",
    "integers",
    "node",
    "number",
    "numbers_of",
    "parse_bool",
    "parse_epsilon",
    "parse_fields",
    "parse_int",
    "parse_number",
    "parse_text",
    "pattern",
    "rank",
    "reference",
    "text",
    "texts",
    "values",
    "word",
    "wrong",
]

REQUIRED: Any = object()

Values = float | tuple["Values", ...]  # a number, or nested tuples of numbers, all rows of a level equally long


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a step: what it takes, in words and as a parser from a YAML node."""

    kind: str
    doc: str
    parse: Callable[[Node], Any]
    default: Any = REQUIRED
    key: str = ""
    traced: bool = False
    null_is_absent: bool = False

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


def wrong(value: Node, expected: str) -> PlanError:
    """The error for a value that is not what is expected."""
    return PlanError(f"not {expected}", where=value.mark, expected=expected, found=shown(value))


def parse_number(value: Node) -> float:
    """Anything `float()` takes."""
    raw = value.value if isinstance(value, Scalar) else None
    if raw is None:
        raise wrong(value, "a number")
    try:
        return float(raw)
    except (ValueError, OverflowError):  # an integer beyond all floats
        raise wrong(value, "a number") from None


def parse_int(value: Node) -> int:
    """An integer of 64 bits, signed or not."""
    if not isinstance(value, Scalar) or not isinstance(value.value, int) or isinstance(value.value, bool):
        raise wrong(value, "an integer")
    if not -(2**63) <= value.value < 2**64:
        raise wrong(value, "an integer of 64 bits")
    return value.value


def _parse_ints(value: Node) -> tuple[int, ...]:
    if not isinstance(value, document.Sequence):
        raise wrong(value, "a list of integers")
    return tuple(parse_int(item) for item in value.items)


def parse_bool(value: Node) -> bool:
    """A real boolean."""
    if not isinstance(value, Scalar) or not isinstance(value.value, bool):
        raise wrong(value, "true or false")
    return value.value


def parse_text(value: Node) -> str:
    """A string, also one that YAML takes for a number."""
    if not isinstance(value, Scalar):
        raise wrong(value, "a string")
    raw = value.text if value.text is not None and value.value is not None else value.value
    if not isinstance(raw, str) or not raw:
        raise wrong(value, "a string that is not empty")
    if "\0" in raw:
        raise wrong(value, "a string without NUL")
    return raw


def _parse_dtype(value: Node) -> DType:
    try:
        return parse_dtype(parse_text(value))
    except PlanError as error:
        raise error.located(value.mark) from None


def parse_epsilon(value: Node) -> float:
    """A number that is not negative."""
    raw = value.value if isinstance(value, Scalar) else None
    if not isinstance(raw, int | float) or isinstance(raw, bool) or raw < 0:
        raise wrong(value, "a number that is not negative")
    return parse_number(value)


def _parse_rank(value: Node) -> int:
    found = parse_number(value)
    if not math.isfinite(found) or found < 1 or found != int(found):
        raise wrong(value, "a whole number of at least 1")
    return int(found)


def _parse_fraction(value: Node) -> float:
    found = parse_number(value)
    if not 0 < found <= 1:
        raise wrong(value, "a number above 0 and at most 1")
    return found


def _parse_expressions(value: Node) -> tuple[Any, ...]:
    items = value.items if isinstance(value, document.Sequence) else (value,)
    return tuple(compile_regex(parse_text(item), item.mark) for item in items)


def _parse_values(value: Node) -> Values:
    """A number, or nested tuples of numbers, all rows of a level equally long."""
    if isinstance(value, document.Sequence):
        items = tuple(_parse_values(item) for item in value.items)
        if len({_nested_shape(item) for item in items}) > 1:
            raise wrong(value, "a rectangular list of numbers")
        return items
    raw = value.value if isinstance(value, Scalar) else None
    if not isinstance(raw, int | float) or (isinstance(raw, int) and abs(raw) >= 2**64):
        raise wrong(value, "a number of at most 64 bits, or a nested list of them")
    return raw


def _nested_shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, tuple):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def number(doc: str, default: Any = REQUIRED, *, traced: bool = False) -> Any:
    """Anything `float()` takes; with `traced` a run-time argument of the compiled function, so a new value costs
    nothing."""
    return declare(Field("number", doc, parse_number, default, traced=traced))


def integer(doc: str, default: Any = REQUIRED) -> Any:
    """A YAML integer."""
    return declare(Field("integer", doc, parse_int, default))


def integers(doc: str, default: Any = REQUIRED) -> Any:
    """A list of YAML integers."""
    return declare(Field("list of integers", doc, _parse_ints, default))


def boolean(doc: str, default: Any = REQUIRED) -> Any:
    """A real boolean."""
    return declare(Field("boolean", doc, parse_bool, default))


def text(doc: str, default: Any = REQUIRED) -> Any:
    """A string that is not empty."""
    return declare(Field("string", doc, parse_text, default))


def word() -> Any:
    """Not a key but a number that the operation finds for itself: a word of a random key, say. Traced."""
    return dataclasses.field(default=0.0, metadata={"traced": True})


def numbers_of() -> Any:
    """Not a key but numbers that the operation is given, of which there may be any number. Traced."""
    return dataclasses.field(default=(), metadata={"traced": True})


def texts(doc: str, default: Any = REQUIRED) -> Any:
    """A string that is not empty, or a list of such."""

    def parse(value: Node) -> tuple[str, ...]:
        items = value.items if isinstance(value, document.Sequence) else (value,)
        return tuple(parse_text(item) for item in items)

    return declare(Field("string or list of strings", doc, parse, default))


def dtype_name(doc: str, default: Any = REQUIRED, *, key: str = "") -> Any:
    """The name of a dtype."""
    return declare(Field("dtype", doc, _parse_dtype, default, key=key))


def epsilon(doc: str) -> Any:
    """An absolute tolerance; null means none."""
    return declare(Field("number", doc, parse_epsilon, None, traced=True, null_is_absent=True))


def rank(doc: str, default: Any = REQUIRED) -> Any:
    """A positive whole number, also as a float or a numeric string."""
    return declare(Field("whole number", doc, _parse_rank, default))


def fraction(doc: str, default: Any = REQUIRED) -> Any:
    """A number above 0 and at most 1."""
    return declare(Field("fraction", doc, _parse_fraction, default))


def pattern(doc: str, default: Any = REQUIRED, *, key: str = "") -> Any:
    """A regular expression that must match whole names."""
    return declare(Field("pattern", doc, lambda value: _parse_expressions(value)[0], default, key=key))


def expressions(doc: str, default: Any = ()) -> Any:
    """A regular expression or a list of them, as patterns that must match whole names."""
    return declare(Field("pattern or list of patterns", doc, _parse_expressions, default))


def values(doc: str, default: Any = REQUIRED) -> Any:
    """A number or a rectangular nested list of numbers."""
    return declare(Field("number or nested list", doc, _parse_values, default))


def choice(
    doc: str, options: tuple[str, ...], default: Any = REQUIRED, *, folded: bool = False, null: str | None = None
) -> Any:
    """One of some words; with `folded` case and surrounding blanks do not matter; `null` is what null stands for."""

    def parse(value: Node) -> str:
        is_null = isinstance(value, Scalar) and value.value is None
        word = null if is_null and null else parse_text(value)
        word = word.strip().lower() if folded else word
        if word not in options:
            near = nearest(word, options, 1)
            raise PlanError(
                f"unknown value {word!r}",
                where=value.mark,
                expected="one of " + ", ".join(options),
                hint=f"did you mean {near[0]}?" if near else None,
            )
        return word

    return declare(Field("one of " + ", ".join(options), doc, parse, default))


def node(doc: str, default: Any = REQUIRED, *, kind: str = "any", key: str = "") -> Any:
    """A YAML node that the directive itself interprets."""
    return declare(Field(kind, doc, lambda value: value, default, key=key))


def reference(doc: str, default: Any = REQUIRED, *, key: str = "", kind: str = "reference") -> Any:
    """A tensor reference; it becomes a `Reference` when its step is built, since only then its aliases are known."""

    def parse(value: Node) -> Node:
        if isinstance(value, document.Mapping) or (isinstance(value, Scalar) and not isinstance(value.value, str)):
            raise wrong(value, "a reference: a string, or a list of strings")
        return value

    return declare(Field(kind, doc, parse, default, key=key))


def declare(spec: Field) -> Any:
    """An attribute of a dataclass that is this key of its step."""
    if spec.required:
        return dataclasses.field(metadata={"field": spec})
    return dataclasses.field(default=spec.default, metadata={"field": spec})


_FIELDS: dict[type, dict[str, tuple[str, Field]]] = {}


def fields_of(cls: Any) -> dict[str, tuple[str, Field]]:
    """YAML key to (attribute, field) of everything a class declares, in order."""
    if cls not in _FIELDS:
        found = _FIELDS[cls] = {}
        for entry in dataclasses.fields(cls):
            if "field" in entry.metadata:
                declared: Field = entry.metadata["field"]
                found[declared.key or entry.name.rstrip("_")] = (entry.name, declared)
    return _FIELDS[cls]


def parse_fields(word: str, payload: Node, declared: Mapping[str, tuple[str, Field]]) -> dict[str, Any]:
    """The values of a payload by attribute name; defaults are left out.

    Raises:
        PlanError: not a mapping, unknown or missing keys, or values of the wrong kind; all of them together are one
            error of several lines.
    """
    if isinstance(payload, Scalar) and payload.value is None:
        payload = document.Mapping({}, {}, payload.mark)
    if not isinstance(payload, document.Mapping):
        raise PlanError(
            f"{word} takes a mapping",
            where=payload.mark,
            expected="a mapping with the keys " + ", ".join(declared),
            found=shown(payload),
        )
    unknown = [key for key in payload.entries if key not in declared]
    if unknown:
        near = nearest(unknown[0], declared, 1)
        missing = [key for key, (_, field) in declared.items() if field.required and key not in payload.entries]
        also = [f"{word}.{key} is required" for key in missing if key not in near]
        raise PlanError(
            "; ".join([f"{word} received unknown keys: {unknown}", *also]),
            where=payload.keys[unknown[0]],
            expected=("one of " + ", ".join(declared)) if declared else "no keys",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    parsed = {}
    for key, (attribute, field) in declared.items():
        value = payload.entries.get(key)
        if value is None or (field.null_is_absent and isinstance(value, Scalar) and value.value is None):
            if field.required:
                raise PlanError(f"{word}.{key} is required", where=payload.mark, expected=f"{field.kind}: {field.doc}")
            continue
        try:
            parsed[attribute] = field.parse(value)
        except PlanError as error:
            error.problem = f"{word}.{key}: {error.problem}"
            raise error.located(value.mark) from None
    return parsed
