"""`${key.path}`, `${oc.env:NAME,default}` and `${expression}` inside the strings of one plan file.

What is a path of keys that exists means their value; what is none is an expression over the keys at the top of the
file, the variables of loops, and what `more` offers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from collections.abc import Mapping as AnyMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeAlias, overload

from ..core.errors import Mark, PlanError, listing, nearest
from .braces import split
from .environment import environment
from .expressions import MAX_MADE, MAX_STEPS, ExpressionBudget, evaluate, is_expression
from .nodes import Mapping, Node, Scalar, Sequence, Unresolved, node_of, plain
from .parameters import mistaken

__all__ = ["Path", "Resolver", "Tally", "escape", "interpolate"]

Path: TypeAlias = tuple[str | int, ...]

# A plan is untrusted: a few lines of references to references could fill the memory or the stack.
MAX_DEPTH = 120
MAX_NODES = 2_000_000
MAX_CHARACTERS = 16 * 2**20

_REFERENCE = re.compile(r"(?<!\\)(\\*)\$\{")  # from the first backslash on, or a long row of them takes long
_KEYS = re.compile(r"(?P<dots>\.*)(?P<keys>(?:[^.\[\]:]+|\[[^\[\]:]+\])(?:\.[^.\[\]:]+|\[[^\[\]:]+\])*)")
_KEY = re.compile(r"[^.\[\]]+")
_FUNCTION = re.compile(r"\s*[A-Za-z_][\w.]*\s*:")
_PATH = re.compile(r"(\w+)(?:\.\w+|\[[0-9]+\])*")  # of keys, which is an expression as well
_FIRST = re.compile(r"\w+")


def interpolate(root: Node) -> Node:
    r"""The document with every reference replaced by what it refers to.

    A string that is one reference becomes the value itself, with its type; inside text the value is put as text.
    `\${` stands for a plain `${`. Keys are left alone.

    Raises:
        PlanError: an unknown or circular reference, or a text that grows beyond all bounds.
    """
    return Resolver(root).resolve(root, (), 0)


@overload
def escape(node: Mapping) -> Mapping: ...
@overload
def escape(node: Node) -> Node: ...
def escape(node: Node) -> Node:
    r"""The node with every `${` of its strings written so that `interpolate` gives it back as it is.

    >>> escape(Scalar("a${b}", Mark("plan", 1, 1))).value
    'a\\${b}'
    """
    if isinstance(node, Sequence):
        return Sequence(tuple(map(escape, node.items)), node.mark)
    if isinstance(node, Mapping):
        return Mapping({key: escape(value) for key, value in node.entries.items()}, node.keys, node.mark)
    if not isinstance(node.value, str) or isinstance(node.value, Unresolved):
        return node
    return replace(node, value=_REFERENCE.sub(r"\1\1\\${", node.value))


@dataclass
class Tally:
    """What the references of a plan, in all its files, have made so far."""

    nodes: int = 0
    characters: int = 0
    work: ExpressionBudget = field(default_factory=lambda: ExpressionBudget(5 * MAX_STEPS, 5 * MAX_MADE))

    def count(self, nodes: int, mark: Mark) -> None:
        """Count values.

        Raises:
            PlanError: there are too many.
        """
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise PlanError(f"references make more than {MAX_NODES} values", where=mark)

    def write(self, characters: int, mark: Mark) -> None:
        """Count characters.

        Raises:
            PlanError: there are too many.
        """
        self.characters += characters
        if self.characters > MAX_CHARACTERS:
            raise PlanError(f"references make more than {MAX_CHARACTERS} characters of text", where=mark)


class _Missing(Exception):
    """A path of keys leads nowhere: `node` has no `word`."""

    def __init__(self, node: Node, word: str, inner: str) -> None:
        super().__init__(word)
        self.node, self.word, self.inner = node, word, inner


class Resolver:
    """Resolves the references of one document, each target once, counting what it makes.

    `more` are further names of expressions. `checks` gives, for keys at the top, what makes of the value found there
    the one that is used.
    """

    def __init__(
        self,
        root: Node,
        more: AnyMapping[str, Any] | None = None,
        checks: AnyMapping[str, Callable[[Node], Node]] | None = None,
        limits: Tally | None = None,
    ) -> None:
        self.root = root
        self.more = {} if more is None else more
        self.checks = {} if checks is None else checks
        self.limits = limits or Tally()
        self.loops: dict[str, Any] = {}  # the variables of the loops around
        self.turn = ""  # what these are, for messages
        self._done: dict[Path, tuple[Node, int]] = {}
        self._plain: dict[str, Any] = {}
        self._pieces: dict[str, list[tuple[bool, str]]] = {}
        self._active: dict[Path, None] = {}

    def resolve(self, node: Node, path: Path, depth: int) -> Node:
        """The node that stands at `path`, without references."""
        mark = self.marked(node.mark)
        self.limits.count(1, mark)
        if depth > MAX_DEPTH:
            raise PlanError(f"references lead more than {MAX_DEPTH} levels deep", where=mark)
        if isinstance(node, Sequence):
            return Sequence(tuple(self.items(node, path, depth + 1)), mark)
        if isinstance(node, Mapping):
            entries = {key: self.resolve(value, (*path, key), depth + 1) for key, value in node.entries.items()}
            keys = {key: self.marked(at) for key, at in node.keys.items()} if self.turn else node.keys
            return Mapping(entries, keys, mark)
        if not isinstance(node.value, str) or "${" not in node.value:
            return Scalar(node.value, mark, node.text) if self.turn else node
        parts = self._split(node.value, mark)
        if _is_whole(parts):
            return replace(self._value(parts[0][1], mark, path, depth), mark=mark)
        return Scalar(self._text(parts, mark, path, depth), mark)

    def items(self, node: Sequence, path: Path, depth: int) -> Iterator[Node]:
        """The items of the list at `path`, without references."""
        for number, item in enumerate(node.items):
            yield self.resolve(item, (*path, number), depth)

    def marked(self, mark: Mark) -> Mark:
        """A place of the document, as reached in this turn of the loops around."""
        return Mark(mark.file, mark.line, mark.column, mark.path, self.turn) if self.turn else mark

    def expression(self, text: str, mark: Mark, depth: int) -> Any:
        """The value of an expression, as an ordinary one.

        Raises:
            PlanError: it has none.
        """
        try:
            return evaluate(text, _Scope(self, mark, depth + 4), self.limits.work)
        except PlanError as error:
            raise error.located(mark) from None

    def look_up(self, name: str, mark: Mark, depth: int) -> Any:
        """What a name stands for in expressions.

        Raises:
            KeyError: nothing.
            PlanError: it has no value.
        """
        if name in self.loops:
            return self.loops[name]
        entries = _entries(self.root)
        if name not in entries:
            return self.more[name]
        if name not in self._plain:
            self._plain[name] = plain(self._at(entries[name], (name,), mark, depth))
        return self._plain[name]

    def _text(self, parts: list[tuple[bool, str]], mark: Mark, path: Path, depth: int) -> str:
        text = "".join(self._word(part, mark, path, depth) if is_ref else part for is_ref, part in parts)
        self.limits.write(len(text), mark)
        return text

    def _word(self, inner: str, mark: Mark, path: Path, depth: int) -> str:
        """What stands for a reference inside text."""
        if inner in self.loops:
            return str(self.loops[inner])
        return str(plain(self._value(inner, mark, path, depth)))

    def _value(self, inner: str, mark: Mark, path: Path, depth: int) -> Node:
        """What the reference with this text between its braces stands for."""
        inner = self._inner(inner, mark, path, depth)
        if _FUNCTION.match(inner):
            return Scalar(environment(inner, mark), mark)
        entries = _entries(self.root)
        first = _FIRST.match(inner)
        word = first[0] if first else ""
        if word in self.loops or (word in self.checks and word != inner):
            return self._made(inner, mark, depth)
        if inner in entries and word == inner:
            return self._at(entries[inner], (inner,), mark, depth + 1)
        try:
            node, target = self._locate(inner, mark, path, depth + 1)
        except _Missing as missing:
            if word in self.more if _PATH.fullmatch(inner) else is_expression(inner):
                return self._made(inner, mark, depth)
            self._unknown(missing, mark)
        return self._at(node, target, mark, depth)

    def _made(self, text: str, mark: Mark, depth: int) -> Node:
        """The value of an expression as a node."""
        node = node_of(self.expression(text, mark, depth), mark)
        if isinstance(node, Scalar):
            self.limits.write(len(node.value) if isinstance(node.value, str) else 1, mark)
        else:
            self.limits.count(_size(node), mark)
        return node

    def _at(self, node: Node, target: Path, mark: Mark, depth: int) -> Node:
        """The value at a place, whose node still has references."""
        if target in self._done:
            node, nodes = self._done[target]
            self.limits.count(nodes, mark)
            return node
        before = self.limits.nodes
        with self._entered(target, mark), self._outside_loops():
            node = self.resolve(node, target, depth + 1)
            if len(target) == 1 and target[0] in self.checks:
                node = self.checks[str(target[0])](node)
        if isinstance(node, Mapping) and node.fault is not None:
            raise node.fault
        self._done[target] = node, self.limits.nodes - before
        return node

    @contextmanager
    def _outside_loops(self) -> Iterator[None]:
        """While a value that stands elsewhere is resolved: it sees no variables of loops around its reference."""
        kept = self.loops, self.turn
        self.loops, self.turn = {}, ""
        try:
            yield
        finally:
            self.loops, self.turn = kept

    def _split(self, text: str, mark: Mark) -> list[tuple[bool, str]]:
        if text not in self._pieces:
            self._pieces[text] = split(text, mark)
        return self._pieces[text]

    def _inner(self, inner: str, mark: Mark, path: Path, depth: int) -> str:
        """The text between the braces of a reference, after the references inside it."""
        if depth > MAX_DEPTH:
            raise PlanError(f"references lead more than {MAX_DEPTH} levels deep", where=mark)
        if "${" in inner:
            inner = self._text(self._split(inner, mark), mark, path, depth + 1)
        return inner.strip()

    def _locate(self, inner: str, mark: Mark, here: Path, depth: int) -> tuple[Node, Path]:
        """The node, still with references, that a key path leads to, and its place in the document."""
        found = _KEYS.fullmatch(inner)
        if found is None:
            if is_expression(inner):
                raise _Missing(self.root, inner, inner)
            raise PlanError(
                f"not a reference: ${{{inner}}}",
                where=mark,
                expected="${key.path}, an expression, or ${oc.env:VARIABLE}",
                hint=r"a literal ${ is written \${",
            )
        dots = len(found["dots"])
        if dots > len(here):
            raise PlanError(f"${{{inner}}} leads out of the document", where=mark)
        path = here[: len(here) - dots] if dots else ()
        node = self.root
        for key in path:
            node = node.items[int(key)] if isinstance(node, Sequence) else _entries(node)[str(key)]
        for word in _KEY.findall(found["keys"]):
            node, path = self._through(node, path, depth)
            node, key = _select(node, word, inner)
            path = (*path, key)
        return node, path

    def _through(self, node: Node, path: Path, depth: int) -> tuple[Node, Path]:
        """The container that a key is looked up in: if it is a reference itself, the one it refers to."""
        if not isinstance(node, Scalar) or not isinstance(node.value, str) or "${" not in node.value:
            return node, path
        parts = self._split(node.value, node.mark)
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

    def _unknown(self, missing: _Missing, mark: Mark) -> NoReturn:
        node, word = missing.node, missing.word
        known = [*_entries(node), *(self.loops if node is self.root else ())]
        near = nearest(word, known)
        if isinstance(node, Mapping):
            found = f"keys: {listing(known)}"
        else:
            found = (
                f"a list of {len(node.items)}" if isinstance(node, Sequence) else "a single value, which has no keys"
            )
        hint = f"did you mean {' or '.join(near)}?" if near else r"a literal ${ is written \${"
        wrong = mistaken(node, word) if isinstance(node, Mapping) and node is self.root else None
        problem = f"unknown reference ${{{missing.inner}}}: there is no {word!r}"
        raise PlanError(problem, where=mark, found=found, hint=wrong or hint)


class _Scope(AnyMapping[str, Any]):
    """The names of an expression at a place of a document."""

    def __init__(self, resolver: Resolver, mark: Mark, depth: int) -> None:
        self._resolver, self._mark, self._depth = resolver, mark, depth

    def __getitem__(self, name: str) -> Any:
        return self._resolver.look_up(name, self._mark, self._depth)

    def __contains__(self, name: object) -> bool:
        resolver = self._resolver
        return name in resolver.loops or name in _entries(resolver.root) or name in resolver.more

    def __iter__(self) -> Iterator[str]:
        return iter({**self._resolver.loops, **_entries(self._resolver.root), **dict.fromkeys(self._resolver.more)})

    def __len__(self) -> int:
        return len(list(iter(self)))


def _size(node: Node) -> int:
    """How many values a node is."""
    if isinstance(node, Scalar):
        return 1 + (len(node.value) // 64 if isinstance(node.value, str) else 0)
    return 1 + sum(map(_size, node.items if isinstance(node, Sequence) else node.entries.values()))


def _is_whole(parts: list[tuple[bool, str]]) -> bool:
    return len(parts) == 1 and parts[0][0]


def _entries(node: Node) -> dict[str, Node]:
    return node.entries if isinstance(node, Mapping) else {}


def _select(node: Node, word: str, inner: str) -> tuple[Node, str | int]:
    if isinstance(node, Mapping) and word in node.entries:
        return node.entries[word], word
    if isinstance(node, Sequence) and re.fullmatch(r"-?[0-9]{1,9}", word):
        index = int(word)
        if -len(node.items) <= index < len(node.items):
            return node.items[index], index % len(node.items)
    raise _Missing(node, word, inner)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
