"""`params`: what a plan wants to be told, with types, defaults and bounds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..core.dtypes import parse_dtype
from ..core.errors import Mark, PlanError, nearest
from .functions import FUNCTIONS
from .nodes import Mapping, Node, Scalar, Sequence, check_keys, plain, shown, texts_of

__all__ = ["PARAMS", "Parameter", "declarations", "missing", "mistaken", "unknown"]

PARAMS = "params"
OUTPUT = "output"  # a parameter of this name is the path of the output
TYPES = ("int", "float", "bool", "str", "path", "dtype", "choice")
_KEYS = ("type", "default", "min", "max", "values", "help")
_LIST = "list of "
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_USED = re.compile(r"\$\{\s*" + PARAMS + r"\s*[.\[}]")
_RESERVED = {*FUNCTIONS, "inputs", "transforms", PARAMS, "config", "true", "false", "null", "None", "True", "False"}


@dataclass(frozen=True)
class Parameter:
    """One declaration. Its default and bounds may hold references."""

    name: str
    mark: Mark
    type: str
    is_list: bool
    help: str
    default: Node | None  # None: it must be given
    least: Node | None
    most: Node | None
    values: Node | None

    def convert(self, node: Node, resolve: Callable[[Node], Node]) -> Node:
        """The value that is used for a value that was given; `resolve` is for the references of the bounds.

        Raises:
            PlanError: it is of another type, or out of bounds.
        """
        if isinstance(node, Scalar) and node.value is None and node.text is None and self._is_optional:
            return node
        if not self.is_list:
            return self._single(node, resolve)
        if isinstance(node, Scalar) and node.text is not None and "," not in node.text and node.value is not None:
            node = Sequence((node,), node.mark)  # one word of a command line
        if not isinstance(node, Sequence):
            raise self._wrong(node)
        return Sequence(tuple(self._single(item, resolve) for item in node.items), node.mark)

    @property
    def _is_optional(self) -> bool:
        return isinstance(self.default, Scalar) and self.default.value is None

    def _single(self, node: Node, resolve: Callable[[Node], Node]) -> Node:
        value = _typed(self.type, node) if isinstance(node, Scalar) else None
        if value is None or not isinstance(node, Scalar):
            raise self._wrong(node)
        if self.values is not None:
            allowed = plain(resolve(self.values))
            if self.type == "choice" and isinstance(allowed, list) and node.value in allowed:
                value = node.value  # a number, which a command line gives as text too
            if not isinstance(allowed, list) or value not in allowed:
                words = allowed if isinstance(allowed, list) else []
                near = nearest(str(value), map(str, words), 1)
                raise PlanError(
                    f"parameter {self.name} has none of its values",
                    where=node.mark,
                    expected="one of " + ", ".join(map(str, words)),
                    found=shown(node),
                    hint=f"did you mean {near[0]}?" if near else None,
                )
        for bound, word in ((self.least, "at least"), (self.most, "at most")):
            limit = plain(resolve(bound)) if bound is not None else None
            if isinstance(limit, int | float) and isinstance(value, int | float):
                if not (value >= limit if word == "at least" else value <= limit):
                    raise PlanError(
                        f"parameter {self.name} is out of bounds",
                        where=node.mark,
                        expected=f"{word} {limit}",
                        found=str(value),
                    )
        return Scalar(value, node.mark)

    def _wrong(self, node: Node) -> PlanError:
        is_word = isinstance(node, Scalar) and not isinstance(node.value, str)
        is_text = is_word and self.type in ("str", "path") and not self.is_list
        return PlanError(
            f"parameter {self.name} has another type",
            where=node.mark,
            expected=self.kind,
            found=shown(node),
            hint="put quotes around text that YAML reads as something else" if is_text else None,
        )

    @property
    def is_literal(self) -> bool:
        """Whether its default can be converted without anything else: there are no references in it or the bounds."""
        nodes = (self.default, self.least, self.most, self.values)
        return self.default is not None and not any("${" in text for node in nodes if node for text in texts_of(node))

    @property
    def kind(self) -> str:
        """The type in words."""
        return (_LIST if self.is_list else "") + self.type

    @property
    def facts(self) -> str:
        """What may be given and what it is without: for help."""
        words = [self.kind]
        if isinstance(self.values, Sequence):
            words = [(_LIST if self.is_list else "") + "|".join(str(plain(item)) for item in self.values.items)]
        for bound, word in ((self.least, "at least"), (self.most, "at most")):
            if bound is not None:
                words.append(f"{word} {plain(bound)}")
        words.append("required" if self.default is None else f"default {_spelled(self.default)}")
        return ", ".join(words)


def _spelled(node: Node) -> str:
    if isinstance(node, Scalar) and (node.value is None or isinstance(node.value, bool)):
        return {None: "none", True: "true", False: "false"}[node.value]
    return shown(node, 60).strip("'")


def _typed(kind: str, node: Scalar) -> bool | int | float | str | None:
    """The value as one of a type; None if it is none. What was typed on a command line may always be text."""
    value = node.value
    if kind in ("str", "path", "choice", "dtype"):
        text = node.text if node.text is not None else value
        if kind == "choice" and not isinstance(text, str):
            return text
        if not isinstance(text, str) or (kind == "path" and not text):
            return None
        if kind == "dtype":
            try:
                return parse_dtype(text).name
            except PlanError:
                return None
        return text
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind == "float":
        return float(value) if abs(value) < 1e308 or isinstance(value, float) else None
    return value if isinstance(value, int) else None


def declarations(root: Mapping) -> dict[str, Parameter]:
    """The parameters that a plan file declares; none if its `params` is a variable like any other.

    Declarations are mappings with a `type`, and nothing in the file speaks of `${params...}`.

    Raises:
        PlanError: a declaration that is wrong.
    """
    node = root.entries.get(PARAMS)
    if not isinstance(node, Mapping) or not node.entries:
        return {}
    entries = node.entries.values()
    if not all(isinstance(entry, Mapping) and "type" in entry.entries for entry in entries):
        return {}
    if not any(isinstance(entry, Mapping) and _type(entry) is not None for entry in entries):
        return {}
    if any(_USED.search(text) for text in texts_of(root)):
        return {}
    found = {}
    for name, entry in node.entries.items():
        assert isinstance(entry, Mapping)
        found[name] = _declared(name, entry, node.keys[name])
        if name in root.entries and name != OUTPUT:
            raise PlanError(f"{name!r} is a parameter and a variable", where=root.keys[name], hint="rename one")
    return found


def _type(entry: Mapping) -> tuple[str, bool] | None:
    """Type, and whether it is a list of that."""
    word = plain(entry.entries["type"])
    if not isinstance(word, str):
        return None
    kind = word.removeprefix(_LIST).strip()
    return (kind, word.startswith(_LIST)) if kind in TYPES else None


def _declared(name: str, entry: Mapping, mark: Mark) -> Parameter:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise PlanError(
            f"{name!r} cannot be the name of a parameter",
            where=mark,
            expected="letters, digits and _, no other meaning",
        )
    check_keys(entry, _KEYS, f"parameter {name}")
    kind = _type(entry)
    if kind is None:
        given = entry.entries["type"]
        near = nearest(str(plain(given)), TYPES, 1)
        raise PlanError(
            f"parameter {name} has an unknown type",
            where=given.mark,
            expected=", ".join(TYPES) + f", or {_LIST}one of these",
            found=shown(given),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    values, told = entry.entries.get("values"), entry.entries.get("help")
    if (kind[0] == "choice") and not isinstance(values, Sequence):
        raise PlanError(f"parameter {name} is a choice without values", where=mark, expected="values: [...]")
    if told is not None and not (isinstance(told, Scalar) and isinstance(told.value, str)):
        raise PlanError(f"the help of parameter {name} is text", where=told.mark, found=shown(told))
    least, most = entry.entries.get("min"), entry.entries.get("max")
    return Parameter(
        name, mark, *kind, str(plain(told)) if told else "", entry.entries.get("default"), least, most, values
    )


def mistaken(root: Mapping, name: str) -> str | None:
    """What is to be said of a name that nobody knows, if it is declared with a type that is none."""
    node = root.entries.get(PARAMS)
    entry = node.entries.get(name) if isinstance(node, Mapping) else None
    if not isinstance(entry, Mapping) or "type" not in entry.entries or _type(entry) is not None:
        return None
    given = shown(entry.entries["type"])
    near = nearest(given.strip("'"), TYPES, 1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(TYPES)}"
    return f"{PARAMS} is a variable like any other, since {given} is no type of a parameter; {meant}"


def missing(wanted: list[Parameter], turn: str = "") -> PlanError:
    """That values must be given; `turn` says how their file is reached."""
    mark = wanted[0].mark
    names = ", ".join(parameter.name for parameter in wanted)
    return PlanError(
        f"the plan needs {'a value' if len(wanted) == 1 else 'values'} for {names}",
        where=Mark(mark.file, mark.line, mark.column, mark.path, turn),
        expected=" ".join(f"{parameter.name}=..." for parameter in wanted[:12]),
        found="; ".join(f"{p.name}: {p.kind}{', ' + p.help if p.help else ''}" for p in wanted[:6]),
    )


def unknown(
    name: str, mark: Mark, parameters: dict[str, Parameter], others: set[str], files: Iterable[Mapping] = ()
) -> PlanError:
    """That something is set that no plan file has."""
    near = nearest(name, [*parameters, *others], 1)
    wrong = next(filter(None, (mistaken(root, name) for root in files)), None)
    hint = wrong or (f"did you mean {near[0]}?" if near else None)
    if parameters:
        rest = sorted(others - {PARAMS, *parameters})
        told = f"parameters {', '.join(parameters)}" + (f"; or {', '.join(rest)}" if rest else "")
        return PlanError(f"the plan has no parameter {name!r}", where=mark, expected=told, hint=hint)
    known = "one of " + ", ".join(sorted(others))
    return PlanError(f"no plan file has a variable {name!r} to override", where=mark, expected=known, hint=hint)
