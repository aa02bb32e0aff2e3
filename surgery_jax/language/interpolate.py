"""`${key.path}` and `${oc.env:NAME,default}` inside the strings of one plan file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn, TypeAlias

from ..core.errors import Mark, PlanError, listing, nearest
from .nodes import Mapping, Node, Scalar, Sequence, check_text, plain

__all__ = ["escape", "interpolate"]

Path: TypeAlias = tuple[str | int, ...]

# A plan is untrusted: a few lines of references to references could fill the memory or the stack.
MAX_DEPTH = 120
MAX_NODES = 2_000_000
MAX_CHARACTERS = 16 * 2**20

_REFERENCE = re.compile(r"(?<!\\)(\\*)\$\{")  # from the first backslash on, or a long row of them takes long
_MARK = re.compile(r"""['"{}]""")
_QUOTED = {quote: re.compile(rf"{quote}(?:\\.|[^{quote}\\])*{quote}", re.DOTALL) for quote in "'\""}
_KEYS = re.compile(r"(?P<dots>\.*)(?P<keys>(?:[^.\[\]:]+|\[[^\[\]:]+\])(?:\.[^.\[\]:]+|\[[^\[\]:]+\])*)")
_KEY = re.compile(r"[^.\[\]]+")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")


def interpolate(root: Node) -> Node:
    r"""The document with every reference replaced by what it refers to.

    A string that is one reference becomes the value itself, with its type; inside text the value is put as text.
    `\${` stands for a plain `${`. Keys are left alone.

    Raises:
        PlanError: an unknown or circular reference, or a text that grows beyond all bounds.
    """
    return _Resolver(root).resolve(root, (), 0)


def escape(node: Node) -> Node:
    r"""The node with every `${` of its strings written so that `interpolate` gives it back as it is.

    >>> escape(Scalar("a${b}", Mark("plan", 1, 1))).value
    'a\\${b}'
    """
    if isinstance(node, Sequence):
        return Sequence(tuple(map(escape, node.items)), node.mark)
    if isinstance(node, Mapping):
        return Mapping({key: escape(value) for key, value in node.entries.items()}, node.keys, node.mark)
    return replace(node, value=_REFERENCE.sub(r"\1\1\\${", node.value)) if isinstance(node.value, str) else node


class _Resolver:
    """Resolves the references of one document, each target once, counting what it makes."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._nodes = 0
        self._characters = 0
        self._done: dict[Path, tuple[Node, int]] = {}
        self._active: dict[Path, None] = {}

    def resolve(self, node: Node, path: Path, depth: int) -> Node:
        """The node that stands at `path`, without references."""
        self._count(1, node.mark)
        if depth > MAX_DEPTH:
            raise PlanError(f"references lead more than {MAX_DEPTH} levels deep", where=node.mark)
        if isinstance(node, Sequence):
            resolve = self._step if path[-1:] == ("transforms",) and path[0] == "transforms" else self.resolve
            return Sequence(tuple(resolve(item, (*path, i), depth + 1) for i, item in enumerate(node.items)), node.mark)
        if isinstance(node, Mapping):
            entries = {key: self.resolve(value, (*path, key), depth + 1) for key, value in node.entries.items()}
            return Mapping(entries, node.keys, node.mark)
        if not isinstance(node.value, str) or "${" not in node.value:
            return node
        parts = _split(node.value, node.mark)
        if _is_whole(parts):
            return replace(self._value(parts[0][1], node.mark, path, depth), mark=node.mark)
        return Scalar(self._text(parts, node.mark, path, depth), node.mark)

    def _step(self, node: Node, path: Path, depth: int) -> Node:
        """A step of a plan. What is wrong with its references may be that it is none; others know the steps."""
        try:
            return self.resolve(node, path, depth)
        except PlanError as error:
            if not isinstance(node, Mapping):
                raise
            return replace(node, fault=error)

    def _text(self, parts: list[tuple[bool, str]], mark: Mark, path: Path, depth: int) -> str:
        text = "".join(str(plain(self._value(p, mark, path, depth))) if is_ref else p for is_ref, p in parts)
        self._characters += len(text)
        if self._characters > MAX_CHARACTERS:
            raise PlanError(f"references make more than {MAX_CHARACTERS} characters of text", where=mark)
        return text

    def _value(self, inner: str, mark: Mark, path: Path, depth: int) -> Node:
        """What the reference with this text between its braces stands for."""
        inner = self._inner(inner, mark, path, depth)
        if ":" in inner:
            return Scalar(_environment(inner, mark), mark)
        node, target = self._locate(inner, mark, path, depth + 1)
        if target in self._done:
            node, nodes = self._done[target]
            self._count(nodes, mark)
            return node
        before = self._nodes
        with self._entered(target, mark):
            node = self.resolve(node, target, depth + 1)
        if isinstance(node, Mapping) and node.fault is not None:
            raise node.fault
        self._done[target] = node, self._nodes - before
        return node

    def _inner(self, inner: str, mark: Mark, path: Path, depth: int) -> str:
        """The text between the braces of a reference, after the references inside it."""
        if depth > MAX_DEPTH:
            raise PlanError(f"references lead more than {MAX_DEPTH} levels deep", where=mark)
        if "${" in inner:
            inner = self._text(_split(inner, mark), mark, path, depth + 1)
        return inner.strip()

    def _locate(self, inner: str, mark: Mark, here: Path, depth: int) -> tuple[Node, Path]:
        """The node, still with references, that a key path leads to, and its place in the document."""
        found = _KEYS.fullmatch(inner)
        if found is None:
            raise PlanError(
                f"not a reference: ${{{inner}}}",
                where=mark,
                expected="${key.path} or ${oc.env:VARIABLE}",
                hint=r"a literal ${ is written \${",
            )
        dots = len(found["dots"])
        if dots > len(here):
            raise PlanError(f"${{{inner}}} leads out of the document", where=mark)
        path = here[: len(here) - dots] if dots else ()
        node = self._root
        for key in path:
            node = node.items[int(key)] if isinstance(node, Sequence) else _entries(node)[str(key)]
        for word in _KEY.findall(found["keys"]):
            node, path = self._through(node, path, depth)
            node, key = _select(node, word, inner, mark)
            path = (*path, key)
        return node, path

    def _through(self, node: Node, path: Path, depth: int) -> tuple[Node, Path]:
        """The container that a key is looked up in: if it is a reference itself, the one it refers to."""
        if not isinstance(node, Scalar) or not isinstance(node.value, str) or "${" not in node.value:
            return node, path
        parts = _split(node.value, node.mark)
        if not _is_whole(parts):
            return node, path
        inner = self._inner(parts[0][1], node.mark, path, depth)
        if ":" in inner:
            return node, path
        with self._entered(path, node.mark):
            return self._through(*self._locate(inner, node.mark, path, depth + 1), depth + 1)

    @contextmanager
    def _entered(self, path: Path, mark: Mark) -> Iterator[None]:
        if path in self._active:
            chain = " -> ".join(_dotted(step) for step in [*self._active, path][-6:])
            raise PlanError(f"references in a circle: {chain}", where=mark)
        self._active[path] = None
        try:
            yield
        finally:
            del self._active[path]

    def _count(self, nodes: int, mark: Mark) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise PlanError(f"references make more than {MAX_NODES} values", where=mark)


def _split(text: str, mark: Mark) -> list[tuple[bool, str]]:
    """The pieces of a string: (is it a reference, its text). Backslashes count only just before `${`, in pairs."""
    parts: list[tuple[bool, str]] = []
    literal: list[str] = []
    unclosed: set[str] = set()
    at = 0
    while (start := text.find("${", at)) >= 0:
        head = text[at:start]
        kept = head.rstrip("\\")
        slashes = len(head) - len(kept)
        literal += [kept, "\\" * (slashes // 2)]
        at = start + 2
        if slashes % 2:
            literal.append("${")
            continue
        end = _closing(text, at, mark, unclosed)
        parts += [(False, "".join(literal)), (True, text[at:end])]
        literal = []
        at = end + 1
    parts.append((False, "".join(literal) + text[at:]))
    return [part for part in parts if part[0] or part[1]]


def _closing(text: str, at: int, mark: Mark, unclosed: set[str]) -> int:
    """Where the brace is that closes a reference. What stands in quotes counts for nothing.

    `unclosed` are quotes of which no more is closed: so the rest of the text is looked through only once."""
    depth, place = 1, at
    while (found := _MARK.search(text, place)) is not None:
        place = found.end()
        word = found[0]
        if word in _QUOTED:
            quoted = None if word in unclosed else _QUOTED[word].match(text, found.start())
            if quoted is None:
                unclosed.add(word)
            else:
                place = quoted.end()
            continue
        depth += 1 if word == "{" else -1
        if depth == 0:
            return found.start()
    raise PlanError(
        f"a reference without its closing brace in {text[:80]!r}", where=mark, hint=r"a literal ${ is written \${"
    )


def _is_whole(parts: list[tuple[bool, str]]) -> bool:
    return len(parts) == 1 and parts[0][0]


def _entries(node: Node) -> dict[str, Node]:
    return node.entries if isinstance(node, Mapping) else {}


def _select(node: Node, word: str, inner: str, mark: Mark) -> tuple[Node, str | int]:
    if isinstance(node, Mapping) and word in node.entries:
        return node.entries[word], word
    if isinstance(node, Sequence) and re.fullmatch(r"-?[0-9]{1,9}", word):
        index = int(word)
        if -len(node.items) <= index < len(node.items):
            return node.items[index], index % len(node.items)
    _unknown(node, word, inner, mark)


def _unknown(node: Node, word: str, inner: str, mark: Mark) -> NoReturn:
    near = [*nearest(word, _entries(node))]
    if isinstance(node, Mapping):
        found = f"keys: {listing(node.entries)}"
    else:
        found = f"a list of {len(node.items)}" if isinstance(node, Sequence) else "a single value, which has no keys"
    raise PlanError(
        f"unknown reference ${{{inner}}}: there is no {word!r}",
        where=mark,
        found=found,
        hint=f"did you mean {' or '.join(near)}?" if near else r"a literal ${ is written \${",
    )


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _environment(inner: str, mark: Mark) -> str | None:
    """The value of `oc.env:NAME` or `oc.env:NAME,default`; always text, or null for the default `null`."""
    function, _, arguments = inner.partition(":")
    if function.strip() != "oc.env":
        raise PlanError(
            f"unknown function {function.strip()!r} in ${{{inner}}}", where=mark, expected="${oc.env:VARIABLE,default}"
        )
    name, comma, default = arguments.partition(",")
    name = _unquoted(name.strip())
    if not name:
        raise PlanError(f"no variable named in ${{{inner}}}", where=mark)
    if name in os.environ:
        return check_text(os.environ[name], mark)
    if not comma:
        raise PlanError(
            f"environment variable {name!r} is not set",
            where=mark,
            hint=f"set it, or give a default: ${{oc.env:{name},default}}",
        )
    return _default(default.strip())


def _default(text: str) -> str | None:
    """A default as OmegaConf prints it, so that plans written for it mean the same."""
    word = text.lower()
    if word == "null":
        return None
    if word in ("true", "false"):
        return word.capitalize()
    if len(text) < 300 and _INT.fullmatch(text):
        return str(int(text))
    if len(text) < 300 and _FLOAT.fullmatch(text):
        return str(float(text))
    return _unquoted(text)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace("\\" + text[0], text[0])
    return text
