"""Drives a plan: parses its steps, runs them symbolically one after the other, collects every error, and closes the
plan."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as GraphMapping
from collections.abc import Sequence as AbstractSequence
from copy import copy
from dataclasses import replace
from typing import Any

from ..core.errors import AssertionFailed, Mark, PlanError, Problems, SurgeryError, listing
from ..kit.base import BoundStep, find_word, words
from ..language import document
from ..language import names as naming
from ..language.document import Mapping, Node, Scalar, Sequence, plain
from ..language.expansion import CONTROL
from ..language.nodes import node_of
from ..language.plan import Input, Plan
from .namespace import Model
from .node import Graph
from .node import Node as GraphNode
from .roots import Request, Symbolic
from .symbolic import BROKEN, Consequence, Files, SymbolicState

__all__ = ["build"]

MAX_TURNS = 3  # of a loop, whose errors at one place are told
MAX_ERRORS = 100  # that are told: nobody reads more, and thousands of them take long to find


def build(
    plan: Plan, files: Files, graph: Graph | None = None, answers: GraphMapping[GraphNode, Any] | None = None
) -> Symbolic:
    """The plan as versions and roots; in the graph of other plans, what they have in common is found there.

    `answers` are the elements of versions that an earlier result for the same graph has asked for.

    Raises:
        Problems: everything that is wrong with the plan and can be known from headers, in the order of the plan.
    """
    builder = _Builder(plan, files, graph or Graph(), answers or {})
    builder.run()
    if builder.errors:
        raise Problems(_few_turns(builder.errors))
    return Symbolic(
        saves=builder.saves,
        checks=builder.checks,
        sinks=builder.sinks,
        prints=builder.prints,
        assertions=builder.assertions,
        executed=builder.executed,
        needs_whole=builder.graph.needs_whole,
        warnings=list(builder.warnings.values()),
        questions=builder.questions,
        identities=builder.identities,
    )


def _few_turns(errors: AbstractSequence[SurgeryError]) -> list[SurgeryError]:
    """The errors without those of further turns of a loop at a place that has had `MAX_TURNS` of them."""
    found: list[SurgeryError] = []
    counts: dict[Mark, int] = {}
    for error in errors:
        place = replace(error.where, turn="") if isinstance(error.where, Mark) and error.where.turn else None
        if place is not None:
            counts[place] = counts.get(place, 0) + 1
        if place is None or counts[place] <= MAX_TURNS:
            found.append(error)
    rest = {place: count - MAX_TURNS for place, count in counts.items() if count > MAX_TURNS}
    found += [PlanError(f"errors in {count} more turns of the loop", where=place) for place, count in rest.items()]
    return found


def parse_step(step: Node) -> BoundStep:
    """One step: a mapping with exactly one transform, or a bare word.

    Raises:
        PlanError: neither, an unknown transform, or bad keys.
    """
    if isinstance(step, Scalar) and isinstance(step.value, str):
        return find_word(step.value, step.mark).parse(Scalar(None, step.mark), step.mark)
    if not isinstance(step, Mapping) or len(step.entries) != 1:
        found = ", ".join(step.entries) if isinstance(step, Mapping) else repr(plain(step))
        raise PlanError(
            "a step is a mapping with exactly one transform, or a bare name",
            where=step.mark,
            expected="for example { delete: { target: name } }",
            found=found or "an empty mapping",
        )
    ((name, payload),) = step.entries.items()
    if name in CONTROL:
        raise PlanError(
            f"{name} is for plan files only: what stands here is taken as it is",
            where=step.keys[name],
            hint="write the loop in Python" if not step.mark.line else "include reads a file of such steps",
        )
    word = find_word(name, step.keys[name])
    if step.fault is not None:
        raise step.fault
    try:
        return word.parse(payload, step.keys[name])
    except PlanError as error:
        raise error.located(step.keys[name]) from None


def step_list(steps: Node | None) -> tuple[Node, ...]:
    """The items of `transforms`: a list, or one step."""
    if steps is None or (isinstance(steps, Scalar) and steps.value is None):
        return ()
    return steps.items if isinstance(steps, Sequence) else (steps,)


# What a trial run of a step may change.
_STATE = (
    *("models", "kept", "inputs", "saves", "checks", "sinks", "prints", "assertions", "flags", "stopped"),
    *("errors", "warnings", "executed", "questions", "broken_aliases", "ghosts", "pending", "step", "word", "mark"),
)


class _Builder(SymbolicState):
    """Symbolic execution of a whole plan."""

    def __init__(self, plan: Plan, files: Files, graph: Graph, answers: GraphMapping[GraphNode, Any]) -> None:
        inputs = {entry.alias: (entry.path, entry.mark) for entry in plan.inputs}
        super().__init__(files, inputs, plan.inputs[0].alias if len(plan.inputs) == 1 else None, graph, answers)
        self.plan = plan
        self.executed: list[Any] = []
        self.contributed: list[str] = []
        self.nested = False

    def run(self) -> None:
        """Every step, then the output."""
        for node, step in self._parse(step_list(self.plan.steps)):
            self._contribute(step)
            self._run_step(node, step)
            if len(self.errors) >= MAX_ERRORS:
                self.errors[MAX_ERRORS:] = [
                    PlanError(
                        f"after {MAX_ERRORS} errors the rest of the plan was not looked at",
                        where=node.mark,
                        hint="mend these first; many are often of one cause",
                    )
                ]
                return
        if self.plan.output is not None:
            self._finish(self.plan.output)

    def _parse(self, steps: AbstractSequence[Node]) -> Iterator[tuple[Node, BoundStep | PlanError]]:
        """The steps, parsed; in place of one that is wrong stands its error."""
        for node in steps:
            try:
                yield node, parse_step(node)
            except PlanError as error:
                yield node, error

    def _run_step(self, node: Node, step: BoundStep | PlanError) -> None:
        """One step; after the end of the plan it must still be well-formed."""
        self.pending = []
        if isinstance(step, PlanError):
            self.errors.append(step)
            self._leave_ghosts(node)
            return
        if self.stopped:
            return
        self.step += 1
        self.word, self.mark = step.word.name, step.mark
        self.where, self.raw = step.where, step.raw
        self.recent.clear()
        if self.flags["preview"] and self._preview(step):
            return
        assertions = len(self.assertions)
        try:
            step.build(self)
        except SurgeryError as error:
            self.errors.append(error.located(step.mark))
            self._leave_ghosts(node)
        except Consequence:
            self._leave_ghosts(node)
        for assertion in self.assertions[assertions:]:
            if assertion.outcome.known():
                holds, why = assertion.outcome.settle({})
                if not holds:
                    self.errors.append(AssertionFailed(f"assertion failed: {why}", where=assertion.mark))
        if not self.nested:
            self.executed.append(plain(node))

    def _preview(self, step: BoundStep) -> bool:
        """Print what a step touches; whether it is to be skipped. Seen by running it and looking."""
        word = step.word.name
        if word in ("set", "exit", "help", "assert", "diff", "dump"):
            self.say(f"preview: {word}: no tensor impact")
            return False
        kept = {name: copy(getattr(self, name)) for name in _STATE}
        self.models = {alias: model and model.copy() for alias, model in self.models.items()}
        self.kept = {}  # counts nothing
        self.touched = {"changed": [], "created": [], "deleted": []}
        try:
            step.build(self)
        except (SurgeryError, Consequence):
            pass  # the step itself reports it, or is skipped
        touched = self.touched
        for name, value in kept.items():
            setattr(self, name, value)
        counts = ", ".join(f"{what} {len(names)} ({listing(names, 3)})" for what, names in touched.items() if names)
        impact = bool(counts)
        self.say(f"preview: {word}: {counts or 'no tensor impact'}")
        return self.flags["dry-run"] and (impact or word in ("load", "save", "prefixes"))

    def _leave_ghosts(self, node: Node) -> None:
        """Remember what a failed step would have made, so that its consequences are not reported too."""
        for alias, name in self.pending:
            if alias in self.models and not self.has(alias, name):
                self.create(alias, name, BROKEN)
        if self.pending or not isinstance(node, Mapping):
            return
        for word, payload in node.entries.items():
            if not isinstance(payload, Mapping):
                continue
            for key in ("to", "target_a", "target_b", "target"):
                value = payload.entries.get(key)
                for item in value.items if isinstance(value, Sequence) and word == "split" else (value,):
                    self._leave_ghost(item)
            given = payload.entries.get("alias")
            if word in ("load", "prefixes") and isinstance(given, Scalar) and isinstance(given.value, str):
                self.broken_aliases.add(given.value)
                self.models.setdefault(given.value, Model())

    def _leave_ghost(self, value: Node | None) -> None:
        if value is None:
            return
        try:
            ref = naming.parse_reference(value, self.default_alias)
            self.ghosts.append((ref.alias, ref))
        except PlanError:
            return

    # -- nested plans -------------------------------------------------------------------------------------------

    def run_nested(self, sources: AbstractSequence[tuple[str, Node]]) -> None:
        if self.nested:
            raise PlanError("execute inside execute is not allowed", where=self.mark)
        steps: list[Node] = []
        hint: str | None = None
        for kind, node in sources:
            added, default = self._nested_steps(kind, node)
            steps += added
            hint = hint or default
        if not steps:
            raise PlanError("execute needs at least one step", where=self.mark)
        aliases = list(self.models)
        outer, outer_default = (self.word, self.mark), self.default_alias
        self.nested = True
        self.default_alias = hint or (aliases[0] if len(aliases) == 1 else None)
        try:
            for step in self._parse(steps):
                self._run_step(*step)
                if len(self.errors) >= MAX_ERRORS:
                    break
        finally:
            self.nested = False
            (self.word, self.mark), self.default_alias = outer, outer_default

    def _nested_steps(self, kind: str, node: Node) -> tuple[list[Node], str | None]:
        if kind == "plan-yaml":
            if not isinstance(node, Scalar) or not isinstance(node.value, str):
                raise PlanError("execute.plan-yaml is text", where=node.mark)
            node = document.parse_yaml(node.value, f"{node.mark.file}:{node.mark.line}:plan-yaml", interpolate=False)
        elif kind == "path":
            assert isinstance(node, Scalar)
            node = self.files.open_plan(str(node.value))
        if kind == "transforms" or not isinstance(node, Mapping):
            return list(step_list(node)), None
        if not {"inputs", "transforms", "output"} & set(node.entries):
            if len(node.entries) == 1 and next(iter(node.entries)) in words():
                return [node], None
        plan = Plan.of(node, nested=True)
        steps = [_load_step(entry) for entry in plan.inputs]
        steps += step_list(plan.steps)
        if plan.output is not None:
            steps.append(_save_step(plan.output))
        return steps, plan.inputs[0].alias if len(plan.inputs) == 1 else None

    # -- output -------------------------------------------------------------------------------------------------

    def _contribute(self, step: BoundStep | PlanError) -> None:
        if isinstance(step, PlanError):
            return
        self.word, self.mark = step.word.name, step.mark
        known, self.models = self.models, _AnyAlias(self.models)
        try:
            alias = step.contributes(self)
        except PlanError:
            return  # the step itself reports it
        finally:
            self.models = known
        if alias is not None and alias not in self.contributed:
            self.contributed.append(alias)

    def _finish(self, output: Any) -> None:
        self.word, self.mark, self.step = "output", output.mark, self.step + 1
        if self.errors:
            # a failed step may have decided which alias is written, so only the place is still worth checking
            request = Request(output.path, output.format, output.shard, "output", output.mark, output.options)
            try:
                self.files.check_request(request)
            except SurgeryError as error:
                self.errors.append(error.located(output.mark))
            return
        offered = [alias for alias in self.contributed if alias in self.models and not self.is_empty(alias)]
        full = [alias for alias in self.models if not self.is_empty(alias)]
        if not offered and len(full) == 1:
            offered = full
        if len(offered) != 1:
            self.errors.append(
                PlanError(
                    "cannot infer output model uniquely",
                    where=output.mark,
                    expected="exactly one checkpoint that the steps change",
                    found=", ".join(offered) or "none",
                    hint="delete or remove the helper checkpoints, or write with save: { path: ..., alias: ... }",
                )
            )
            return
        try:
            self.save(output.path, output.format, output.shard, offered[0], None, output.options)
        except SurgeryError as error:
            self.errors.append(error.located(output.mark))


class _AnyAlias(dict[str, Any]):
    """Aliases while it is asked what a step offers: every alias counts as known."""

    def __contains__(self, alias: object) -> bool:
        return True


def _load_step(entry: Input) -> Node:
    mark = entry.mark
    keys = {"path": Scalar(entry.path, mark), "alias": Scalar(entry.alias, mark)}
    payload = Mapping(dict(keys), dict.fromkeys(keys, mark), mark)
    return Mapping({"load": payload}, {"load": mark}, mark)


def _save_step(output: Any) -> Node:
    mark: Mark = output.mark
    alias, _, path = output.path.rpartition("::") if "::" in output.path else ("", "", output.path)
    given = {"path": path, "alias": alias or None, "format": output.format, "shard": output.shard}
    keys: dict[str, Node] = {key: Scalar(value, mark) for key, value in given.items() if value is not None}
    if output.options:
        keys["options"] = node_of(dict(output.options), mark)
    payload = Mapping(keys, dict.fromkeys(keys, mark), mark)
    return Mapping({"save": payload}, {"save": mark}, mark)
