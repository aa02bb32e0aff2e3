"""Symbolic execution of steps: implements what `kit.state.State` promises, over versions instead of data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ..core.dtypes import BY_NAME
from ..core.errors import Mark, Notice, PlanError, StorageError, SurgeryError, listing, nearest
from ..core.quantised import companions
from ..core.specs import Spec
from ..kit.base import NO_ARITHMETIC, TensorOp
from ..kit.made import Positions
from ..kit.structure import Structure, Update, View
from ..kit.where import Where
from ..language import names as naming
from ..language.document import Node as YamlNode
from ..language.names import Reference, Selector
from ..language.regexes import compile_regex, ends_in_time
from .namespace import Model, Slot
from .node import Graph, Node, Source
from .roots import Assertion, Check, Print, Request, Save, Sink

__all__ = ["Consequence", "Files", "SymbolicState"]


class Files(Protocol):
    """The headers of the outside world, and nested plans; the graph itself opens no file."""

    def open_checkpoint(self, path: str) -> Any: ...

    def open_single(self, path: str, format: str) -> Any: ...

    def open_plan(self, path: str) -> YamlNode: ...

    def read_document(self, path: str) -> str: ...

    def check_request(self, request: Request) -> None: ...


class Consequence(Exception):
    """A step cannot run only because an earlier one failed; nothing to report."""


class _Broken:
    """Stands for a version that an earlier failed step would have made."""

    spec: Any = None
    quantised: Any = None


BROKEN: Any = _Broken()


class SymbolicState:
    """The namespace while a plan runs symbolically. See `kit.state.State` for the promises of the methods."""

    def __init__(
        self,
        files: Files,
        inputs: Mapping[str, tuple[str, Mark]],
        default_alias: str | None,
        graph: Graph,
        answers: Mapping[Node, Any],
    ) -> None:
        self.files = files
        self.default_alias = default_alias
        self.graph = graph
        self.answers = answers
        self.questions: list[Check | Sink] = []
        self.models: dict[str, Model | None] = dict.fromkeys(inputs)  # None: an input that nothing has touched yet
        self.inputs = dict(inputs)
        self.saves: list[Save] = []
        self.checks: list[Check] = []
        self.sinks: list[Sink] = []
        self.prints: list[Print] = []
        self.assertions: list[Assertion] = []
        self.flags = {"dry-run": False, "preview": False, "verbose": False}
        self.kept: dict[str, Model | None] | None = None  # the namespace that dry-run must give back
        self.stopped = False
        self.closed = False
        self.word = ""
        self.where: Where | None = None  # of the running step, as is `raw`
        self.raw = False
        self.mark = Mark("plan", 1, 1)
        self.step = 0
        self.errors: list[SurgeryError] = []
        self.warnings: dict[str, Notice] = {}  # by their texts: each is told once
        self.broken_aliases: set[str] = set()
        self.ghosts: list[tuple[str, Reference]] = []  # templates of names that failed steps would have made
        self.pending: list[tuple[str, str]] = []  # names that the running step will make
        self.recent: list[str] = []  # names that the running step has read since it last wrote one
        self.touched: dict[str, list[str]] = {"changed": [], "created": [], "deleted": []}
        self.identities: dict[str, Any] = {}  # of all files whose headers were read, by path
        self._checkpoints: dict[str, Any] = {}
        self._selectors: dict[Any, Selector] = {}

    # -- references ---------------------------------------------------------------------------------------------

    def reference(
        self,
        node: YamlNode,
        *,
        key: str,
        slices: bool = True,
        default: str | None = None,
        literal: bool = False,
        new_alias: bool = False,
    ) -> Reference:
        where = f"{self.word}.{key}"
        try:
            ref = naming.parse_reference(node, default or self.default_alias)
            if ref.slice is not None and not slices:
                raise PlanError("takes no slice", found=ref.text)
            if literal:
                naming.literal(ref)
        except PlanError as error:
            error.problem = f"{where}: {error.problem}"
            raise error.located(node.mark) from None
        if ref.alias not in self.models and not new_alias:
            near = nearest(ref.alias, self.models, 1)
            raise PlanError(
                f"{where}: unknown model alias: {ref.alias!r}",
                where=node.mark,
                expected="one of " + (", ".join(self.models) or "(none: the plan has no inputs)"),
                hint=f"did you mean {near[0]}?" if near else "add it with prefixes or load first",
            )
        return ref

    def selector(self, ref: Reference) -> Selector:
        found = self._selectors.get(ref.expr)
        if found is None:
            try:
                found = self._selectors[ref.expr] = Selector(ref)
            except PlanError as error:
                raise error.located(ref.mark) from None
        return found

    def match(self, ref: Reference) -> list[str]:
        model = self.model(ref.alias)
        found = self.selector(ref).match(model.index)
        if not found:
            self._check_follows(ref)
        return found if self.where is None else self._of_dtype(model, found, self.where, ref)

    def _of_dtype(self, model: Model, names: list[str], where: Where, ref: Reference) -> list[str]:
        """Those that `where` takes; of a tensor that an earlier step failed to make nothing is known, so it stays."""
        specs: dict[str, Spec | None] = {name: model.slots[name].node.spec for name in names}
        found = [name for name, spec in specs.items() if spec is None or where.takes(spec.dtype)]
        if names and not found:
            dtypes = dict.fromkeys(spec.dtype.name for spec in specs.values() if spec is not None)
            raise PlanError(
                f"{self.word}: of {len(names)} tensors that match {ref.text} none is of dtype {where.text}",
                where=ref.mark,
                found=listing(dtypes),
            )
        return found

    def select(self, ref: Reference) -> list[str]:
        found = self.match(ref)
        if not found:
            self._nothing_matches(ref, f"{self.word} matched zero tensors: {ref.alias}::{ref.expr}")
        return found

    def one(self, ref: Reference) -> str:
        found = self.select(ref)
        if len(found) != 1:
            raise PlanError(
                f"{self.word}: {ref.text} must match exactly one tensor", where=ref.mark, found=listing(found)
            )
        return found[0]

    def pairs(self, source: Reference, *templates: Reference) -> list[tuple[str, ...]]:
        rows = self.rows(source, *templates)
        seen: dict[str, str] = {}
        for row in rows:
            if row[-1] in seen:
                raise PlanError(
                    f"{self.word} destination collision: {templates[-1].alias}::{row[-1]}",
                    where=templates[-1].mark,
                    expected="another name for every source",
                    found=f"both {seen[row[-1]]} and {row[0]} give it",
                    hint="use groups: from: '...(\\d+)...', to: '...\\1...'",
                )
            seen[row[-1]] = row[0]
        return rows

    def numbered(self, source: Reference, template: Reference) -> list[tuple[str, str, int]]:
        rows = self.rows(source, template)
        try:
            return [(name, new, self.selector(source).number(name)) for name, new in rows]
        except PlanError as error:
            error.problem = f"{self.word}: {error.problem}"
            raise

    def numberable(self, source: Reference, template: Reference) -> list[tuple[str, Callable[[int], str]]]:
        try:
            open_template, fill = naming.numbered_by(template)
        except PlanError as error:
            error.problem = f"{self.word}: {error.problem}"
            raise
        return [(name, partial(fill, new)) for name, new in self.pairs(source, open_template)]

    def spec(self, node: Node) -> Spec:
        if node is BROKEN:
            raise Consequence
        return node.spec

    def rows(self, source: Reference, *templates: Reference) -> list[tuple[str, ...]]:
        found = self.match(source)
        if not found:
            self._nothing_matches(source, f"{self.word} source matched zero tensors: {source.alias}::{source.expr}")
        selector = self.selector(source)
        rows = []
        try:
            for name in found:
                rows.append((name, *(selector.rewrite(name, template) for template in templates)))
        except PlanError as error:
            error.problem = f"{self.word}: {error.problem}"
            raise error.located(templates[-1].mark) from None
        for template in templates:
            odd = selector.oddity(template)
            if odd is not None:
                self.warn(f"{self.word}: {odd.problem}", where=source.mark, hint=odd.hint)
        return rows

    def warn(self, problem: str, *, where: Mark | None = None, hint: str | None = None) -> None:
        notice = Notice(problem, where=where or self.mark, hint=hint)
        self.warnings.setdefault(str(notice), notice)

    def _check_follows(self, ref: Reference) -> None:
        """That nothing matches may only follow from an earlier failed step."""
        if ref.alias in self.broken_aliases:
            raise Consequence
        ghosts = naming.NameIndex()
        for alias, template in self.ghosts:
            if alias == ref.alias:
                ghosts.add(naming.placeholder(template))
        if len(ghosts) and self.selector(ref).match(ghosts):
            raise Consequence

    def _is_ghost(self, alias: str, name: str) -> bool:
        """Whether an earlier failed step could have made a name."""
        return any(alias == known and naming.could_produce(template, name) for known, template in self.ghosts)

    def _nothing_matches(self, ref: Reference, problem: str) -> None:
        model = self.model(ref.alias)
        wanted = ref.expr if isinstance(ref.expr, str) else ".".join(ref.expr)
        near = nearest(wanted.replace("\\", ""), model.slots)
        shown = near or list(model.slots)[:5]
        raise PlanError(
            problem,
            where=ref.mark,
            found=f"{len(model.slots)} tensors in {ref.alias}"
            + (f"; {'nearest' if near else 'among them'}: {', '.join(shown)}" if shown else ""),
            hint=_matching_hint(ref, model.slots, near),
        )

    # -- slots --------------------------------------------------------------------------------------------------

    def model(self, alias: str) -> Model:
        """The names of an alias; an input's headers are read now."""
        found = self.models[alias]
        if found is None:
            path, mark = self.inputs[alias]
            found = self.models[alias] = Model()
            self._attach(found, path, mark, alias)
            if self.kept is not None and alias in self.kept and self.kept[alias] is None:
                self.kept[alias] = found.copy()
        return found

    def _attach(self, model: Model, path: str, mark: Mark, alias: str) -> None:
        saved = self._saved(path, mark)
        if saved is not None:
            if saved.request.kind == "tensor" and saved.request.format == "numpy":
                raise StorageError(f"{path} holds one array, not a checkpoint", where=mark, hint="load it with `to`")
            model.metadata = dict(saved.metadata)
            for name, node in saved.tensors:
                model.add(name, Slot(node, 0, 1))
            return
        try:
            key = _real_path(path)
            if key not in self._checkpoints:
                self._checkpoints[key] = self.files.open_checkpoint(path)
        except SurgeryError as error:
            self.broken_aliases.add(alias)
            raise _asked_for_at(mark, error) from None
        checkpoint = self._checkpoints[key]
        self.identities |= checkpoint.identities
        model.metadata, model.documents = dict(checkpoint.metadata), checkpoint.documents
        scales = companions((name, entry.spec.dtype) for name, entry in checkpoint.entries.items())
        for name, entry in checkpoint.entries.items():
            model.add(name, Slot(self._read(key, name, entry, scales.get(name, "")), 0, 1))

    def _read(self, checkpoint: str, name: str, entry: Any, companion: str = "") -> Node:
        self.graph.needs_whole |= entry.blocks is not None
        return self.graph.read(Source(checkpoint, name, entry, companion), entry.spec, self.mark)

    def _saved(self, path: str, mark: Mark) -> Save | None:
        """What an earlier step of this plan writes at a path."""
        wanted = _real_path(path)
        for save in reversed(self.saves):
            written = _written_path(save.request)
            if written == wanted:
                return save
            if written.startswith(wanted + os.sep) or wanted.startswith(written + os.sep):
                raise StorageError(
                    f"{path} overlaps with {save.request.path}, which this plan writes at {save.request.mark}",
                    where=mark,
                    hint="load exactly what was saved",
                )
        return None

    def has(self, alias: str, name: str) -> bool:
        found = name in self.model(alias).slots
        if not found and self.word == "assert" and self._is_ghost(alias, name):
            raise Consequence
        return found

    def slot(self, alias: str, name: str, reads: int = 0) -> Slot:
        found = self.model(alias).slots.get(name)
        if found is None:
            raise PlanError(f"{self.word}: no tensor {alias}::{name}", where=self.mark)
        if self.word == "assert" and found.node is BROKEN:
            raise Consequence  # nothing can be said of what a failed step would have made
        if self.kept is None:
            found.reads += reads
        self.recent.append(name)
        return found

    def create(self, alias: str, name: str, node: Node, reads: int = 0) -> None:
        if self.has(alias, name):
            raise PlanError(f"{self.word} destination already exists: {alias}::{name}", where=self.mark)
        if not name:
            raise PlanError(f"{self.word}: a destination has an empty name", where=self.mark)
        self.model(alias).add(name, Slot(node, reads, 1))
        self.recent.clear()
        self.touched["created"].append(f"{alias}::{name}")

    def rebind(self, alias: str, name: str, node: Node, reads: int = 0) -> None:
        slot = self.slot(alias, name, reads)
        slot.node = node
        self.recent.clear()
        if self.kept is None:
            slot.writes += 1
        self.touched["changed"].append(f"{alias}::{name}")

    def drop(self, alias: str, name: str) -> None:
        self.slot(alias, name)
        self.model(alias).drop(name)
        self.touched["deleted"].append(f"{alias}::{name}")

    def expect_new(self, alias: str, names: Sequence[str]) -> None:
        existing = [name for name in names if self.has(alias, name)]
        if existing:
            if any(self.slot(alias, name).node is BROKEN for name in existing):
                raise Consequence
            raise PlanError(
                f"{self.word} destination already exists: {alias}::{existing[0]}",
                where=self.mark,
                found=f"{len(existing)} of {len(names)} destinations exist",
                hint="delete or move it first, or choose another name",
            )
        self.pending += [(alias, name) for name in names]

    def expect_present(self, alias: str, names: Sequence[str], kind: str = "destination") -> None:
        missing = [name for name in names if not self.has(alias, name)]
        if missing:
            if alias in self.broken_aliases or self._is_ghost(alias, missing[0]):
                raise Consequence
            near = nearest(missing[0], self.model(alias).slots)
            raise PlanError(
                f"{self.word} {kind} missing: {alias}::{missing[0]}",
                where=self.mark,
                expected="an existing tensor",
                found=f"{len(missing)} of {len(names)} do not exist"
                + (f"; nearest: {', '.join(near)}" if near else ""),
                hint="this is a template, not a pattern: write its dots as they are" if "\\" in missing[0] else None,
            )

    # -- versions -----------------------------------------------------------------------------------------------

    def apply(self, op: TensorOp, *operands: Node) -> tuple[Node, ...]:
        if any(operand is BROKEN for operand in operands):
            return (BROKEN,) * op.outputs
        if op.kind == "composed":
            return self._composed(op, operands)
        if op.needs_positions:
            places = Spec(operands[0].spec.shape, BY_NAME["uint64"])
            operands = (*operands, *self.graph.apply(Positions(places), (), self.mark))
        try:
            if op.kind == "template":
                op, operands = op.made(*(operand.spec for operand in operands)), ()  # type: ignore[attr-defined]
            elif hasattr(op, "is_identity") or isinstance(op, Structure):
                op.infer(*(operand.spec for operand in operands))
                source = _passes_through(op, operands)
                if source is not None:
                    return (source,)
        except PlanError as error:
            raise self._told(error) from None
        if op.kind not in NO_ARITHMETIC:
            self.check_plain(*operands)
        try:
            return self.graph.apply(op, operands, self.mark)
        except PlanError as error:
            raise self._told(error) from None

    def _composed(self, op: Any, operands: Sequence[Node]) -> tuple[Node, ...]:
        """What an operation comes to that stands for others."""
        try:
            made: tuple[Node, ...] = op.compose(self, *operands)
        except PlanError as error:
            raise self._told(error) if error.where is None else error from None
        return made

    def _told(self, error: PlanError) -> SurgeryError:
        """An error of an operation with the step and the tensors that it works on."""
        error.problem = ": ".join([self.word, *self._recently_read(), error.problem])
        return error.located(self.mark)

    def check_plain(self, *nodes: Node) -> None:
        found = None if self.raw else next((node.quantised for node in nodes if node.quantised is not None), None)
        if found is not None:
            raise PlanError(
                f"{self.word}: {found.name} is quantised: its numbers mean nothing without {found.companion}",
                where=self.mark,
                expected="a tensor whose numbers are its values",
                found=str(found.entry.spec),
                hint="dequantise the checkpoint first; with raw: true this step computes with the stored numbers",
            )

    def _recently_read(self) -> list[str]:
        """The tensors that the step is working on, for messages."""
        names = list(dict.fromkeys(self.recent))
        return [" and ".join(names) if len(names) <= 3 else listing(names, 3)] if names else []

    def view(self, node: Node, ref: Reference) -> Node:
        if ref.slice is None or node is BROKEN:
            return node
        return self.apply(self._view(node.spec, ref), node)[0]

    def store(self, base: Node, ref: Reference, value: Node) -> Node:
        if ref.slice is None or base is BROKEN or value is BROKEN:
            return value
        view = self._view(base.spec, ref)
        if view.is_identity(base.spec):
            return value
        return self.apply(Update(view), base, value)[0]

    def _view(self, spec: Spec, ref: Reference) -> View:
        assert ref.slice is not None
        try:
            axes, _, removed = naming.resolve_slice(ref.slice, spec.shape)
            view = View(axes, removed)
            if spec.dtype.bits % 8 and not view.is_identity(spec):
                raise PlanError(f"{spec.dtype} is packed below a byte and cannot be sliced")
        except PlanError as error:
            error.problem = f"{self.word}: {ref.text}: {error.problem}"
            error.found = error.found or str(spec)
            raise error.located(ref.mark) from None
        return view

    # -- roots --------------------------------------------------------------------------------------------------

    def check(self, op: TensorOp, operands: tuple[Node, ...], label: str) -> Check:
        if any(operand is BROKEN for operand in operands):
            raise Consequence
        self.checks.append(Check(self.apply(op, *operands)[0], label))
        return self.checks[-1]

    def sink(self, node: Node, wants: str) -> Sink:
        if node is BROKEN:
            raise Consequence
        self.sinks.append(Sink(node, wants))
        return self.sinks[-1]

    def ask(self, node: Node) -> Any:
        if node is BROKEN:
            raise Consequence
        if node not in self.answers:
            self.questions.append(Check(node, "") if node.kind == "check" else Sink(node, "array"))
        return self.answers.get(node)

    def waits(self) -> bool:
        return bool(self.questions)

    def say(self, line: str) -> None:
        self.prints.append(Print(self.step, lambda found: line))

    def say_later(self, render: Callable[[Mapping[Any, Any]], str]) -> None:
        self.prints.append(Print(self.step, render))

    def tell(self, line: str) -> None:
        if self.flags["verbose"]:
            self.say(("dry-run " if self.flags["dry-run"] else "") + line)

    def assert_(self, outcome: Any, text: str) -> None:
        self.assertions.append(Assertion(self.step, self.mark, outcome, text))

    def save(
        self,
        path: str,
        format: str | None,
        shard: str | None,
        alias: str,
        name: str | None,
        options: Mapping[str, str],
    ) -> None:
        if alias not in self.models:
            raise PlanError(
                f"{self.word}: unknown model alias: {alias!r}", where=self.mark, expected=listing(self.models)
            )
        model = self.model(alias)
        chosen = {name: model.slots[name]} if name is not None else model.slots
        for slot in chosen.values():
            if self.kept is None:
                slot.reads += 1 if name is None else 2
        if alias in self.broken_aliases or any(slot.node is BROKEN for slot in chosen.values()):
            raise Consequence
        if self.flags["dry-run"]:
            return
        kind = "tensor" if name is not None else "output" if self.word == "output" else "alias"
        if format is None and name is None and not Path(path).suffix:
            format = model.format
        request = Request(path, format, shard, kind, self.mark, options)
        self.files.check_request(request)
        tensors = tuple((key, slot.node) for key, slot in chosen.items())
        written = _written_path(request)
        self.saves = [save for save in self.saves if _written_path(save.request) != written]
        self.saves.append(Save(request, tensors, dict(model.metadata), dict(model.notes)))

    def read_one(self, path: str, format: str) -> Node:
        saved = self._saved(path, self.mark)
        if saved is not None:
            if len(saved.tensors) != 1:
                raise StorageError(
                    f"{path} holds {len(saved.tensors)} tensors", where=self.mark, expected="exactly one"
                )
            return saved.tensors[0][1]
        try:
            single = self.files.open_single(path, format)
        except SurgeryError as error:
            raise _asked_for_at(self.mark, error) from None
        self.identities |= single.identities
        return self._read(f"{_real_path(path)} as {format}", single.name or path, single.entry)

    def is_at_end(self) -> bool:
        return self.closed

    def is_written(self, node: Node) -> bool:
        return any(node is other for save in self.saves for _, other in save.tensors)

    # -- aliases and flags --------------------------------------------------------------------------------------

    def aliases(self) -> list[str]:
        return list(self.models)

    def is_empty(self, alias: str) -> bool:
        found = self.models.get(alias)
        return found is not None and not found.slots

    def names(self, alias: str) -> list[str]:
        if alias not in self.models:
            raise PlanError(
                f"{self.word}: unknown model alias: {alias!r}", where=self.mark, expected=listing(self.models)
            )
        return list(self.model(alias).slots)

    def add_alias(self, alias: str, path: str | None = None) -> None:
        if alias in self.models:
            raise PlanError(
                f"{self.word}: alias {alias!r} already exists",
                where=self.mark,
                found=f"aliases {listing(self.models)}",
                hint="give `alias` a new name",
            )
        model = self.models[alias] = Model()
        if self.word == "prefixes" and self.kept is not None:
            self.kept[alias] = Model()
        if path is not None:
            self._attach(model, path, self.mark, alias)
            self.tell(f"load: {path} -> {alias}")

    def metadata(self, alias: str) -> Mapping[str, str]:
        return self.model(alias).metadata

    def document(self, alias: str, name: str) -> str | None:
        path = self.model(alias).documents.get(name)
        return None if path is None else self.files.read_document(path)

    def annotate(
        self,
        alias: str,
        format: str,
        metadata: Mapping[str, str],
        notes: Mapping[str, Callable[[Mapping[Any, Any]], str]],
    ) -> None:
        model = self.model(alias)
        model.format, model.metadata, model.notes = format, dict(metadata), dict(notes)

    def remove_alias(self, alias: str) -> None:
        self._need(alias)
        del self.models[alias]
        if self.kept is not None:
            self.kept.pop(alias, None)

    def rename_alias(self, alias: str, new: str) -> None:
        self._need(alias)
        if new in self.models:
            raise PlanError(f"{self.word}: alias {new!r} already exists", where=self.mark)
        for models in (self.models, self.kept):
            if models is not None and alias in models:
                renamed = {new if key == alias else key: value for key, value in models.items()}
                models.clear()
                models.update(renamed)
        if alias in self.inputs:
            self.inputs[new] = self.inputs.pop(alias)

    def _need(self, alias: str) -> None:
        if alias not in self.models:
            raise PlanError(
                f"{self.word}: unknown model alias: {alias!r}",
                where=self.mark,
                expected="one of " + listing(self.models),
            )

    def set_flag(self, flag: str, on: bool) -> None:
        if flag == "dry-run" and on != self.flags[flag]:
            if on:
                self.kept = {alias: model and model.copy() for alias, model in self.models.items()}
            elif self.kept is not None:
                self.models, self.kept = self.kept, None
        self.flags[flag] = on

    def flag(self, flag: str) -> bool:
        return self.flags[flag]

    def stop(self) -> None:
        self.stopped = True

    def run_nested(self, sources: Sequence[tuple[str, YamlNode]]) -> None:
        raise NotImplementedError  # `graph.build` knows how steps are driven


def _asked_for_at(mark: Mark, error: SurgeryError) -> SurgeryError:
    """An error of a file, told with the place of the plan that asks for it."""
    if error.where is not None:
        error.problem = f"{error.where}: {error.problem}"
    error.where = mark
    return error


def _matching_hint(ref: Reference, names: Mapping[str, Any], near: Sequence[str]) -> str | None:
    """What may have been meant by a pattern that matches nothing."""
    if isinstance(ref.expr, str):
        try:
            inside = compile_regex(ref.expr, ref.mark)
        except PlanError:
            return None
        if not ref.expr.isprintable():
            return "in double quotes YAML reads the backslashes: put the pattern in single quotes"
        found = next(filter(inside.search, names), None) if ends_in_time(inside, names) else None
        if found is not None:
            return f"a pattern must match a whole name; it matches a part of {found}: add .* at its ends"
    return f"did you mean {near[0]}?" if near else None


def _passes_through(op: TensorOp, operands: Sequence[Node]) -> Node | None:
    """The operand that an operation returns unchanged, if it does."""
    if isinstance(op, Structure) and op.passes is not None:
        return operands[op.passes]
    identity = getattr(op, "is_identity", None)
    if identity is not None and identity(operands[0].spec):
        return operands[0]
    return None


def _written_path(request: Request) -> str:
    path = request.path
    if request.kind == "tensor" and request.format == "numpy" and not path.endswith(".npy"):
        path += ".npy"
    return _real_path(path)


def _real_path(path: str) -> str:
    """The path without links.

    Raises:
        StorageError: no file can be called so.
    """
    try:
        return os.path.realpath(path)
    except ValueError as error:  # a NUL byte
        raise StorageError(f"not a path: {error}", found=repr(path)[:120]) from None
