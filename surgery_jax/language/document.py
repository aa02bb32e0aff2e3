"""Plan files to nodes: YAML, safely, with line and column on every value."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from collections.abc import Mapping as AnyMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import Mark, Notice, PlanError, nearest
from .interpolate import interpolate as resolve_references
from .nodes import MAX_DEPTH, Mapping, Node, Scalar, Sequence, check_keys, check_text, node_of, plain
from .scalars import parse_bool, parse_float, parse_int, parse_plain

__all__ = [
    "Mapping",
    "Node",
    "Scalar",
    "Sequence",
    "check_keys",
    "node_of",
    "parse_documents_file",
    "parse_plan_file",
    "parse_yaml",
    "plain",
]

# Bounds on untrusted plans. A plan that renames every tensor of a very large model by hand has a few MiB and some
# hundred thousand values.
MAX_BYTES = 16 * 2**20
MAX_NODES = 2_000_000

# The parser in C accepts the same and is ten times as fast; it is missing where PyYAML was built without libyaml.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, Callable[[str], bool | int | float | str]] = {
    _TAG + "str": str,
    _TAG + "int": parse_int,
    _TAG + "float": parse_float,
    _TAG + "bool": parse_bool,
}
SUFFIXES = (".yaml", ".yml")


def parse_yaml(text: str, file: str, *, interpolate: bool) -> Node:
    """One YAML document; an empty one is an empty mapping. `file` is the name for the marks.

    Raises:
        PlanError: not YAML, several documents, a duplicate key, a tag that would build an object, or too large.
    """
    if len(text) > MAX_BYTES:
        raise PlanError(f"longer than {MAX_BYTES} characters", where=file)
    root = _NodeBuilder(text, file).document()
    if isinstance(root, Scalar) and root.value is None:
        root = Mapping({}, {}, root.mark)
    return resolve_references(root) if interpolate else root


def parse_plan_file(path: str | Path, *, interpolate: bool = True) -> Node:
    """The document in a file. Marks name the file as `path` does.

    Raises:
        PlanError: the file cannot be read or is not UTF-8, and all that `parse_yaml` raises.
    """
    return parse_yaml(_read(path), str(path), interpolate=interpolate)


def parse_documents_file(path: str | Path, notices: list[Notice]) -> tuple[str, list[Node]]:
    """The text of a file, and its YAML documents, of which there may be several; references stay as they are. Of a key
    that a mapping has twice the last one counts, as files in use have been read, which `notices` get.

    Raises:
        PlanError: what `parse_plan_file` raises, but for several documents and keys that come twice.
    """
    text = _read(path)
    return text, _NodeBuilder(text, str(path), notices).documents()


def _read(path: str | Path) -> str:
    """The text of a file, which is noted; or what was given for it.

    Raises:
        PlanError: it cannot be read, is too large, or is not UTF-8.
    """
    file = str(path)
    given = _GIVEN.get() or {}
    text = given[file] if file in given else _read_from_disk(path)
    noted = _NOTED.get()
    if noted is not None:
        noted[file] = text
    return text


def _read_from_disk(path: str | Path) -> str:
    """The text of a file.

    Raises:
        PlanError: it cannot be read, is too large, or is not UTF-8.
    """
    file = str(path)
    try:
        # a pipe would be waited for: it is opened without that, and refused
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise PlanError("cannot read the plan file: it is no regular file", where=file)
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        if "://" in file:
            raise PlanError(
                f"plan files are read on this machine only: {file}",
                hint="fetch it; the paths in it may be of any place",
            ) from None
        near = [str(Path(path).with_name(name)) for name in nearest(Path(path).name, _siblings(Path(path)))]
        raise PlanError(
            f"plan file does not exist: {file}", hint=f"did you mean {' or '.join(near)}?" if near else None
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise PlanError(f"cannot read the plan file: {reason}", where=file) from None
    if len(data) > MAX_BYTES:
        raise PlanError(f"a plan file of more than {MAX_BYTES} bytes", where=file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise PlanError("not UTF-8 text", where=Mark(file, line, column)) from None


_NOTED: ContextVar[dict[str, str] | None] = ContextVar("noted", default=None)
_GIVEN: ContextVar[AnyMapping[str, str] | None] = ContextVar("given", default=None)


@contextmanager
def noting_files() -> Iterator[dict[str, str]]:
    """The texts of the plan files that this thread reads meanwhile, by path; whoever notes them already hears of them
    too."""
    found: dict[str, str] = {}
    outer = _NOTED.get()
    token = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(token)
        if outer is not None:
            outer.update(found)


@contextmanager
def giving_files(texts: AnyMapping[str, str]) -> Iterator[None]:
    """Whoever reads plan files of these paths in this thread meanwhile gets these texts, whatever lies there."""
    token = _GIVEN.set(texts)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _siblings(path: Path) -> list[str]:
    """The names of the plan files in the same directory."""
    try:
        return sorted(p.name for p in path.parent.iterdir() if p.name.lower().endswith(SUFFIXES))
    except (OSError, ValueError):
        return []


@dataclass(frozen=True, slots=True)
class _Anchor:
    node: Node
    nodes: int
    height: int


class _NodeBuilder:
    """Builds nodes from the events of one text; aliases share nodes and are counted as if they were copies."""

    def __init__(self, text: str, file: str, notices: list[Notice] | None = None) -> None:
        self._text = text
        self._file = file
        self._notices = notices  # of keys that come twice; None if they are errors
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, _Anchor] = {}
        self._open: set[str] = set()
        self._nodes = 0

    def document(self) -> Node:
        """The only document; null if there is none."""
        self._next()
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return Scalar(None, Mark(self._file, 1, 1))
        root, _ = self._node(self._next(), 1)
        self._next()
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise PlanError("several documents in one file", where=self._mark(event), expected="one document")
        return root

    def documents(self) -> list[Node]:
        """All documents; anchors of one are unknown in the next."""
        found: list[Node] = []
        self._next()
        while not isinstance(self._next(), yaml.StreamEndEvent):
            found.append(self._node(self._next(), 1)[0])
            self._anchors.clear()
            self._next()
        return found

    def _node(self, event: Any, depth: int) -> tuple[Node, int]:
        """The node that begins with `event`, and the number of levels below it."""
        mark = self._mark(event)
        self._count(1, mark)
        if depth > MAX_DEPTH:
            raise PlanError(f"nested more than {MAX_DEPTH} levels deep", where=mark)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, depth, mark)
        before = self._nodes
        node: Node
        height = 0
        if event.anchor:
            self._open.add(event.anchor)
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, mark)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, "seq", mark)
            node, height = self._sequence(mark, depth)
        else:
            self._check_tag(event, "map", mark)
            node, height = self._mapping(mark, depth)
        if event.anchor:
            self._open.discard(event.anchor)
            self._anchors[event.anchor] = _Anchor(node, self._nodes - before, height)
        return node, height

    def _alias(self, name: str, depth: int, mark: Mark) -> tuple[Node, int]:
        if name in self._open:
            raise PlanError(f"alias *{name} inside its own anchor", where=mark)
        anchor = self._anchors.get(name)
        if anchor is None:
            near = nearest(name, self._anchors)
            raise PlanError(
                f"unknown alias *{name}", where=mark, hint=f"did you mean *{near[0]}?" if near else "define it first"
            )
        self._count(anchor.nodes, mark)
        if depth + anchor.height > MAX_DEPTH:
            raise PlanError(f"nested more than {MAX_DEPTH} levels deep", where=mark)
        return anchor.node, anchor.height

    def _scalar(self, event: Any, mark: Mark) -> Scalar:
        text: str = event.value
        check_text(text, mark)
        if event.tag is None or event.tag == "!":
            return Scalar(parse_plain(text) if event.implicit[0] else text, mark)
        if event.tag == _TAG + "null":
            return Scalar(None, mark)
        parse = _SCALARS.get(event.tag)
        if parse is None:
            raise self._unknown_tag(event.tag, mark)
        try:
            return Scalar(parse(text), mark)
        except ValueError:
            raise PlanError(f"{text[:80]!r} is no value of !!{event.tag.removeprefix(_TAG)}", where=mark) from None

    def _sequence(self, mark: Mark, depth: int) -> tuple[Sequence, int]:
        items: list[Node] = []
        height = 0
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            item, below = self._node(event, depth + 1)
            items.append(item)
            height = max(height, below + 1)
        return Sequence(tuple(items), mark), height

    def _mapping(self, mark: Mark, depth: int) -> tuple[Mapping, int]:
        entries: dict[str, Node] = {}
        keys: dict[str, Mark] = {}
        merged: list[Mapping] | None = None
        height = 0
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key_mark = self._mark(event)
            is_merge = _is_merge(event)
            key = "<<" if is_merge else self._key(event, depth, key_mark)
            if key in keys:
                if self._notices is None or is_merge:
                    raise PlanError(f"duplicate key {key!r}: already at {keys[key]}", where=key_mark)
                self._notices.append(Notice(f"{key!r} is also at {keys[key]}: this one counts", where=key_mark))
            value, below = self._node(self._next(), depth + 1)
            height = max(height, below + 1)
            keys[key] = key_mark
            if is_merge:
                merged = self._sources(value)
            else:
                entries[key] = value
        if merged is not None:
            del keys["<<"]
        for source in merged or ():
            for key, value in source.entries.items():
                if key not in entries:
                    entries[key], keys[key] = value, source.keys[key]
        return Mapping(entries, keys, mark), height

    def _sources(self, value: Node) -> list[Mapping]:
        """The mappings that a `<<` key names, the most important one first. A second such key is one too many: parsers
        do not agree on which comes first."""
        items = value.items if isinstance(value, Sequence) else (value,)
        sources = [item for item in items if isinstance(item, Mapping)]
        if len(sources) != len(items):
            raise PlanError("<< merges mappings only", where=value.mark, expected="a mapping or a list of mappings")
        return sources

    def _key(self, event: Any, depth: int, mark: Mark) -> str:
        node, _ = self._node(event, depth + 1)
        if not isinstance(node, Scalar) or node.value is None:
            raise PlanError("a key must be a word", where=mark, found="null" if isinstance(node, Scalar) else "a list")
        return str(event.value if isinstance(event, yaml.ScalarEvent) else node.value)

    def _check_tag(self, event: Any, kind: str, mark: Mark) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            raise self._unknown_tag(event.tag, mark)

    def _unknown_tag(self, tag: str, mark: Mark) -> PlanError:
        short = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
        return PlanError(
            f"unknown tag {short[:80]}", where=mark, expected="plain values, lists and mappings", hint="leave it out"
        )

    def _count(self, nodes: int, mark: Mark) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise PlanError(f"more than {MAX_NODES} values, counting aliases as copies", where=mark)

    def _next(self) -> Any:
        try:
            return next(self._events)
        except yaml.MarkedYAMLError as error:
            problem = " ".join(filter(None, (error.problem, error.context)))
            mark = error.problem_mark or error.context_mark
            where = Mark(self._file, mark.line + 1, mark.column + 1) if mark else self._file
            hint = "in double quotes YAML reads the backslashes: use single quotes" if "escape" in problem else None
            if "nesting depth" in problem:  # the parser looks ahead, and has a limit of its own from PyYAML 6.0.4 on
                raise PlanError(f"nested more than {MAX_DEPTH} levels deep", where=where) from None
            raise PlanError(f"not valid YAML: {problem}", where=where, hint=hint) from None
        except yaml.reader.ReaderError as error:
            before = self._text[: error.position]
            where = Mark(self._file, before.count("\n") + 1, len(before) - before.rfind("\n"))
            raise PlanError(f"not valid YAML: {error.reason}", where=where) from None
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # The parser in Python lets bad numbers in escapes such as "\Uffffffff" through as they are.
            raise PlanError(f"not valid YAML: {error}", where=self._file) from None

    def _mark(self, event: Any) -> Mark:
        return Mark(self._file, event.start_mark.line + 1, event.start_mark.column + 1)


def _is_merge(event: Any) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.tag is None and event.implicit[0]
