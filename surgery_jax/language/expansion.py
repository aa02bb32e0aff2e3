"""`foreach`, `when`, `include`: the steps that they stand for, with the places where they are written.

A step that is one of these is left as it is while its file is resolved, so that overrides count steps as they are
written; `expanded` puts the steps in its place when all is merged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from ..core.errors import Mark, PlanError, SurgeryError, listing
from .fragments import read_fragment, with_arguments
from .interpolate import Path, Resolver, Tally, escape
from .loops import bindings
from .nodes import Mapping, Node, Scalar, Sequence, Unresolved, check_keys, plain, shown
from .parameters import OUTPUT, PARAMS, declarations, missing
from .partial import partly
from .sources import CONFIG, Sources

__all__ = ["CONTROL", "PlanResolver", "PlanTally", "expanded"]

MAX_TURNS = 200_000  # of all loops of a plan
MAX_INCLUDES = 10_000
MAX_LEVELS = 16  # of loops, conditions and includes inside each other
CONTROL = ("foreach", "when", "include")
_EXAMPLE = "foreach: { e: '${range(8)}', do: [...] }"


@dataclass
class PlanTally(Tally):
    """What a plan, in all its files, has made and read so far."""

    turns: int = 0
    includes: int = 0
    level: int = 0
    fragments: dict[str, Mapping] = field(default_factory=dict)


class PlanResolver(Resolver):
    """Resolves one plan file or fragment. `given` are values of its parameters; `around` are the files that include it.

    Raises:
        PlanError: a parameter that must be given is not.
    """

    def __init__(
        self,
        root: Mapping,
        given: dict[str, Node],
        sources: Sources,
        bounds: PlanTally,
        around: tuple[str, ...] = (),
        turn: str = "",
    ) -> None:
        self.parameters = declarations(root)
        wanted = [p for p in self.parameters.values() if p.default is None and p.name not in given and p.name != OUTPUT]
        if wanted:
            raise missing(wanted, turn)
        values = {name: given.get(name, p.default) for name, p in self.parameters.items() if name != OUTPUT}
        own = {key: node for key, node in root.entries.items() if not (self.parameters and key == PARAMS)}
        self.own = tuple(own)
        entries = own | {name: node for name, node in values.items() if node is not None}
        keys = root.keys | {name: self.parameters[name].mark for name in values}
        checks = {name: partial(self._converted, name) for name in values}
        super().__init__(Mapping(entries, keys, root.mark), sources, checks, bounds)
        self.sources, self.bounds = sources, bounds
        self.around, self.base = around, turn
        self.turn = turn
        self.is_expanding = bool(around)
        self.has_deferred = False
        self.late: Path | None = None  # while a step `config` is resolved, the place of what it sets
        self._sure = [name for name, p in self.parameters.items() if name in values and (name in given or p.is_literal)]

    def check_given(self) -> None:
        """That the given values, and defaults that are no expressions, are of their types and within bounds, used or
        not.

        Raises:
            PlanError: one is not.
        """
        for name in self._sure:
            self.look_up(name, self.parameters[name].mark, 0)

    def values(self) -> dict[str, Any]:
        """What parameters stand for, as far as that can be found out: one that is not used may have a default of which
        nothing is known."""
        found = {}
        for name, parameter in self.parameters.items():
            if name != OUTPUT:
                with suppress(SurgeryError):
                    found[name] = self.look_up(name, parameter.mark, 0)
        return found

    def _converted(self, name: str, node: Node) -> Node:
        return self.parameters[name].convert(node, lambda bound: self.resolve(bound, (PARAMS,), 1))

    def whole(self) -> Mapping:
        """The document without its declarations, references resolved, and with the steps of this module left."""
        assert isinstance(self.root, Mapping)
        entries = {key: self.resolve(self.root.entries[key], (key,), 1) for key in self.own}
        return Mapping(entries, {key: self.root.keys[key] for key in entries}, self.root.mark)

    def only(self, key: str) -> Mapping:
        """The part of the document at one key at the top."""
        assert isinstance(self.root, Mapping)
        entries = {name: self.resolve(self.root.entries[name], (name,), 1) for name in self.own if name == key}
        return Mapping(entries, self.root.keys, self.root.mark)

    def resolve(self, node: Node, path: Path, depth: int) -> Node:
        if isinstance(node, Mapping) and _is_list(path) and _is_control(node):
            node = Sequence((node,), node.mark)  # one step in the place of a list
        is_late = self.late is not None and path[: len(self.late)] == self.late
        if is_late and isinstance(node, Scalar) and isinstance(node.value, str) and "${" in node.value:
            late = self._late(node, node.value, path, depth)
            if late is not None:
                return late
        return super().resolve(node, path, depth)

    def items(self, node: Sequence, path: Path, depth: int) -> Iterator[Node]:
        if not _is_list(path):
            yield from super().items(node, path, depth)
            return
        for number, item in enumerate(node.items):
            place = (*path, number)
            if not isinstance(item, Mapping) or not _is_control(item):
                yield self._step(item, place, depth)
            elif self.is_expanding:
                yield from self._expand(item, place)
            else:
                self.has_deferred = True
                yield replace(item, expand=partial(self._first, path=place))

    def _step(self, node: Node, path: Path, depth: int) -> Node:
        """A step. What is wrong with its references may be that it is none; others know the steps."""
        kept = self.late  # what a step speaks of may be an input, whose list is resolved now
        is_config = isinstance(node, Mapping) and list(node.entries) == [CONFIG] and path[0] == "transforms"
        self.late = (*path, CONFIG, "set") if is_config else None
        try:
            return self.resolve(node, path, depth)
        except PlanError as error:
            if not isinstance(node, Mapping) or path[0] != "transforms":
                raise
            return replace(node, fault=error)
        finally:
            self.late = kept

    @contextmanager
    def _outside_loops(self) -> Iterator[None]:
        kept, self.late = self.late, None
        try:
            with super()._outside_loops():
                yield
        finally:
            self.late = kept

    def _late(self, node: Scalar, text: str, path: Path, depth: int) -> Scalar | None:
        """A value of the step `config` that speaks of the config at its place; None if it does not."""
        mark = self.marked(node.mark)
        parts, is_late = [], False
        for is_ref, part in self._split(text, mark):
            inner = self._inner(part, mark, path, depth) if is_ref else ""
            kept = self._over_config(inner, mark, depth) if is_ref else None
            is_late |= kept is not None
            told = self._word(part, mark, path, depth) if is_ref and kept is None else part
            parts.append(f"${{{kept}}}" if kept is not None else plain(escape(Scalar(told, mark))))
        return Scalar(Unresolved("".join(map(str, parts))), mark) if is_late else None

    def _over_config(self, inner: str, mark: Mark, depth: int) -> str | None:
        """An expression over the config at its place alone; of many inputs, `config.ALIAS` is that of one of them."""
        if CONFIG in self.loops or CONFIG in self.own:
            return None
        aliases = () if self.sources.only is not None else self.sources
        return partly(inner, CONFIG, aliases, lambda text: self.expression(text, mark, depth))

    # -- expansion ----------------------------------------------------------------------------------------------

    def _first(self, step: Mapping, path: Path) -> list[Node]:
        """Expand a step outside all others."""
        self.is_expanding = True
        try:
            return self._expand(step, path)
        finally:
            self.is_expanding = False

    def _expand(self, step: Mapping, path: Path) -> list[Node]:
        mark = self.marked(step.mark)
        self.bounds.level += 1
        if self.bounds.level > MAX_LEVELS:
            raise PlanError(f"loops and includes nested more than {MAX_LEVELS} levels deep", where=mark)
        try:
            return self._expanded(step, path, mark)
        finally:
            self.bounds.level -= 1

    def _expanded(self, step: Mapping, path: Path, mark: Mark) -> list[Node]:
        rest = {key: node for key, node in step.entries.items() if key != "when"}
        if len(rest) != 1:
            raise PlanError(
                "a step is a mapping with exactly one transform, and a condition if any",
                where=mark,
                expected=f"for example {{ {_EXAMPLE} }} or {{ when: e > 0, delete: {{ target: name }} }}",
                found=", ".join(step.entries),
            )
        if "when" in step.entries and not self._holds(step.entries["when"], (*path, "when")):
            return []
        ((word, payload),) = rest.items()
        if word == "foreach":
            return self._foreach(payload, (*path, word))
        if word == "include":
            return self._include(payload, (*path, word))
        if word == "do" and "when" in step.entries:
            return self._block(payload, (*path, word))
        return [self._step(Mapping(rest, {word: step.keys[word]}, step.mark), path, 1)]

    def _block(self, node: Node, path: Path) -> list[Node]:
        """The steps of a list, or one step."""
        found: list[Node] = []
        for number, item in enumerate(node.items if isinstance(node, Sequence) else (node,)):
            place = (*path, number)
            if isinstance(item, Mapping) and _is_control(item):
                found += self._expand(item, place)
            else:
                found.append(self._step(item, place, 1))
        return found

    def _holds(self, node: Node, path: Path) -> bool:
        """Whether a condition holds: an expression, with or without braces around."""
        mark = self.marked(node.mark)
        if isinstance(node, Scalar) and isinstance(node.value, str) and "${" not in node.value:
            value = self.expression(node.value, mark, 1)
        else:
            value = plain(self.resolve(node, path, 1))
        if not isinstance(value, bool):
            raise PlanError(
                "a condition is true or false",
                where=mark,
                expected="a comparison such as `when: e > 0`",
                found=f"{value!r:.80}",
            )
        return value

    def _foreach(self, node: Node, path: Path) -> list[Node]:
        if not isinstance(node, Mapping) or "do" not in node.entries or len(node.entries) < 2:
            raise PlanError(
                "foreach names a variable, its values, and what to do",
                where=self.marked(node.mark),
                expected=_EXAMPLE,
                found=listing(node.entries) if isinstance(node, Mapping) else shown(node),
            )
        found: list[Node] = []
        self._turns(node, [key for key in node.entries if key != "do"], path, found)
        return found

    def _turns(self, node: Mapping, names: list[str], path: Path, found: list[Node]) -> bool:
        """Add the steps of all turns of a loop; a turn with a step that is wrong is the last, and False."""
        if not names:
            self.bounds.turns += 1
            if self.bounds.turns > MAX_TURNS:
                raise PlanError(f"loops of more than {MAX_TURNS} turns in all", where=node.mark)
            added = self._block(node.entries["do"], (*path, "do"))
            found += added
            return not any(isinstance(step, Mapping) and step.fault is not None for step in added)
        kept = self.loops, self.turn
        for values in bindings(self, self.sources, node, names[0], path):
            self.loops = {**kept[0], **values}
            told = ", ".join(f"{name} = {_short(value)}" for name, value in self.loops.items())
            self.turn = f"{told}; {self.base}" if self.base else told
            try:
                if not self._turns(node, names[1:], path, found):
                    return False
            finally:
                self.loops, self.turn = kept
        return True

    # -- fragments ----------------------------------------------------------------------------------------------

    def _include(self, node: Node, path: Path) -> list[Node]:
        mark = self.marked(node.mark)
        call = node if isinstance(node, Mapping) else Mapping({"path": node}, {"path": node.mark}, node.mark)
        check_keys(call, ("path", "with"), "include")
        target = self.resolve(call.entries["path"], (*path, "path"), 1) if "path" in call.entries else None
        if not isinstance(target, Scalar) or not isinstance(target.value, str) or not target.value:
            raise PlanError("include names a file", where=mark, expected="include: { path: steps.yaml, with: {...} }")
        arguments = call.entries.get("with", Mapping({}, {}, mark))
        given = self.resolve(arguments, (*path, "with"), 1)
        if not isinstance(given, Mapping):
            raise PlanError("include.with is a mapping", where=mark, expected="names and values", found=shown(given))
        file = str(FilePath(call.mark.file).parent / target.value)
        real = os.path.realpath(file)
        chain = self.around or (os.path.realpath(call.mark.file),)
        if real in chain:
            raise PlanError(f"{target.value} includes itself", where=mark, hint="repeat steps with foreach")
        self.bounds.includes += 1
        if self.bounds.includes > MAX_INCLUDES:
            raise PlanError(f"more than {MAX_INCLUDES} includes", where=mark)
        try:
            if real not in self.bounds.fragments:
                self.bounds.fragments[real] = read_fragment(file)
            root = self.bounds.fragments[real]
            filled, own = with_arguments(root, given)
            place = f"included at {call.mark.file}:{call.mark.line}"
            turn = f"{self.turn}; {place}" if self.turn else place
            child = PlanResolver(filled, own, self.sources, self.bounds, (*chain, real), turn)
            child.check_given()
        except PlanError as error:
            raise error.located(mark) from None
        return child._block(root.entries["transforms"], ("transforms",))


def expanded(node: Node) -> Node:
    """The node with the steps that stand for others replaced by these, at any depth.

    Raises:
        PlanError: what is wrong with them.
    """
    if isinstance(node, Scalar):
        return node
    if isinstance(node, Mapping):
        return replace(node, entries={key: expanded(value) for key, value in node.entries.items()})
    items: list[Node] = []
    for item in node.items:
        if isinstance(item, Mapping) and item.expand is not None:
            items += item.expand(item)
        else:
            items.append(expanded(item))
    return Sequence(tuple(items), node.mark)


def _is_list(path: Path) -> bool:
    """Whether a list of steps, or of inputs, stands at this place of a plan."""
    if path[:1] == ("transforms",):
        return len(path) == 1 or path[-1] == "transforms" or path[-2:] == ("execute", "plan")
    return path == ("inputs",)


def _is_control(step: Mapping) -> bool:
    return any(word in step.entries for word in CONTROL)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
