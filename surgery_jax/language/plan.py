"""A plan as words and positions: inputs, steps, output. Knows no transform and no file format."""

from __future__ import annotations

from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import Mark, PlanError, nearest
from .nodes import Mapping, Node, Scalar, Sequence, check_keys, shown, words_of

__all__ = ["Input", "Origin", "Output", "Plan", "inputs_of", "parse_documents"]


@dataclass(frozen=True, slots=True)
class Input:
    """One entry of `inputs`."""

    alias: str
    path: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Output:
    """The `output` of a plan, as written."""

    path: str
    format: str | None
    shard: str | None
    mark: Mark
    options: AbstractMapping[str, str] = field(default_factory=dict)  # of the format
    documents: tuple[str, ...] | None = None  # patterns of their names; None: the plan does not say


@dataclass(frozen=True, slots=True)
class Origin:
    """What a plan was made of: the texts of its files by path, overrides as given, and values of parameters."""

    files: AbstractMapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    parameters: AbstractMapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan: inputs with their aliases, the steps as YAML, and where the result goes. `origin` is for receipts."""

    inputs: tuple[Input, ...]
    steps: Node | None
    output: Output | None
    origin: Origin = Origin()

    @classmethod
    def of(cls, root: Mapping, nested: bool = False) -> Plan:
        """A plan from its YAML. Keys other than `inputs`, `transforms` and `output` are variables and ignored.

        Raises:
            PlanError: inputs or output of the wrong form.
        """
        for key in root.entries:
            near = nearest(key, ("inputs", "transforms", "output"), 1)
            if (
                key not in ("inputs", "transforms", "output")
                and near
                and near[0] not in root.entries
                and _close(key, near[0])
            ):
                raise PlanError(f"unknown key {key!r}", where=root.keys[key], hint=f"did you mean {near[0]}?")
        return cls(
            inputs_of(root.entries.get("inputs"), nested),
            root.entries.get("transforms"),
            _output(root.entries.get("output")),
        )


def _close(word: str, wanted: str) -> bool:
    """Whether a key is a slip of another: the same letters but one or two."""
    import difflib

    return difflib.SequenceMatcher(None, word, wanted).ratio() > 0.8


def inputs_of(node: Node | None, nested: bool = False) -> tuple[Input, ...]:
    """The inputs that the list of a plan names; in a nested plan they may lack aliases.

    Raises:
        PlanError: they are of the wrong form.
    """
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return ()
    if not isinstance(node, Sequence):
        raise PlanError(
            "inputs is a list", where=node.mark, expected="a list of `path` or `alias::path`", found=shown(node)
        )
    entries: list[Input] = []
    for number, item in enumerate(node.items):
        if not isinstance(item, Scalar) or not isinstance(item.value, str):
            raise PlanError(
                "an input is a string", where=item.mark, expected="`path` or `alias::path`", found=shown(item)
            )
        alias, separator, path = item.value.partition("::")
        alias, path = (alias, path) if separator else ("", item.value)
        _check_path(path, "an input", item.mark)
        if not path:
            raise PlanError("an input has an empty path", where=item.mark, found=f"{item.value!r}")
        if not alias:
            if len(node.items) > 1 and not nested:
                raise PlanError(
                    "of several inputs each needs an alias",
                    where=item.mark,
                    expected="alias::path",
                    found=f"{item.value!r}",
                )
            alias = "model" if len(node.items) == 1 else f"model_{number}"
        if any(alias == entry.alias for entry in entries):
            raise PlanError(f"two inputs have the alias {alias!r}", where=item.mark, hint="give each its own alias")
        entries.append(Input(alias, path, item.mark))
    return tuple(entries)


def _output(node: Node | None) -> Output | None:
    if node is None or (isinstance(node, Scalar) and node.value in (None, "")):
        return None
    if isinstance(node, Scalar):
        path = _word(node, "output")
        _check_path(path, "output", node.mark)
        return Output(path, None, None, node.mark)
    if not isinstance(node, Mapping):
        raise PlanError("output is a path or a mapping", where=node.mark, found=shown(node))
    if not node.entries:
        return None
    check_keys(node, ("path", "format", "shard", "options", "documents"), "output")
    values = {
        key: _word(value, f"output.{key}")
        for key, value in node.entries.items()
        if key not in ("options", "documents") and not (isinstance(value, Scalar) and value.value is None)
    }
    options = words_of(node.entries["options"], "output.options") if "options" in node.entries else {}
    documents = parse_documents(node.entries["documents"], "output") if "documents" in node.entries else None
    if "path" not in values:
        raise PlanError("output.path is required", where=node.mark)
    _check_path(values["path"], "output", node.mark)
    return Output(values["path"], values.get("format"), values.get("shard"), node.mark, options, documents)


def parse_documents(node: Node, what: str) -> tuple[str, ...] | None:
    """Which documents come along: `none`, or patterns of their names; None where the plan leaves it open.

    Raises:
        PlanError: something else.
    """
    if isinstance(node, Scalar) and node.value is None and node.text in (None, "", "~", "null"):
        return None
    if isinstance(node, Scalar) and node.value == "none":
        return ()
    if not isinstance(node, Sequence):
        raise PlanError(
            f"{what}.documents: none, or a list of patterns",
            where=node.mark,
            expected="for example [config.json, 'tokenizer*']",
            found=shown(node),
        )
    return tuple(_word(item, f"{what}.documents") for item in node.items)


def _check_path(path: str, what: str, mark: Mark) -> None:
    if "\0" in path:
        raise PlanError(f"{what} has a path with NUL, which no file can have", where=mark, found=f"{path[:120]!r}")


def _word(node: Node, what: str) -> str:
    if isinstance(node, Scalar) and node.text is not None and node.value is not None:
        return node.text
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        raise PlanError(f"{what} is a string", where=node.mark, found=shown(node))
    return node.value
