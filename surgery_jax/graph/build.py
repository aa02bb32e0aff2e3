"""Drives a plan: parses its steps, runs them symbolically one after the other, collects every error, and closes the
plan."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping as GraphMapping
from collections.abc import Sequence as AbstractSequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..core.errors import AssertionFailed, Mark, PlanError, Problems, SurgeryError, listing
from ..kit.words import BoundStep, find_word, known_word
from ..language import document
from ..language import names as naming
from ..language.document import Mapping, Node, Scalar, Sequence, noting_files, plain
from ..language.expansion import CONTROL
from ..language.nodes import node_of
from ..language.plan import Input, Plan
from .frame import BROKEN, Consequence, Frame, Outside
from .namespace import Namespace
from .node import Graph
from .node import Node as GraphNode
from .roots import Assertion, Request, Symbolic
from .symbolic import SymbolicState

__all__ = ["build"]

MAX_TURNS = 3  # of a loop, whose errors at one place are told
MAX_ERRORS = 100  # that are told: nobody reads more, and thousands of them take long to find


def build(
    plan: Plan, outside: Outside, graph: Graph | None = None, answers: GraphMapping[GraphNode, Any] | None = None
) -> Symbolic:
    """The plan as versions and roots; in the graph of other plans, what they have in common is found there.

    `answers` are the elements of versions that an earlier result for the same graph has asked for.

    Raises:
        Problems: everything that is wrong with the plan and can be known from headers, in the order of the plan.
    """
    builder = _Builder(plan, outside, graph or Graph(), answers or {})
    with noting_files() as nested:
        builder.run()
    demands, frame = builder.frame.demands, builder.frame
    if demands.errors:
        raise Problems(_few_turns(demands.errors))
    return Symbolic(
        saves=demands.saves,
        checks=demands.checks,
        sinks=demands.sinks,
        prints=demands.prints,
        assertions=demands.assertions,
        executed=demands.executed,
        needs_whole=frame.graph.needs_whole,
        warnings=list(demands.warnings.values()),
        questions=demands.questions,
        identities=frame.identities,
        plan=replace(plan, origin=replace(plan.origin, files={**plan.origin.files, **nested})) if nested else plan,
        given=frame.given,
        met=frame.met,
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


class _Builder:
    """Symbolic execution of a whole plan, and how it goes on (`kit.state.Control`)."""

    def __init__(self, plan: Plan, outside: Outside, graph: Graph, answers: GraphMapping[GraphNode, Any]) -> None:
        inputs = {entry.alias: (entry.path, entry.mark) for entry in plan.inputs}
        space = Namespace(dict.fromkeys(inputs), inputs)
        default = plan.inputs[0].alias if len(plan.inputs) == 1 else None
        self.frame = Frame(space, outside, graph, answers, default)
        self.state = SymbolicState(self.frame, self)
        self.plan = plan
        self.contributed: list[str] = []
        self.nested = False
        self.closed = False

    def run(self) -> None:
        """Every step, then the output."""
        for node, step in self._parse(step_list(self.plan.steps)):
            self._contribute(step)
            self._run_step(node, step)
            errors = self.frame.demands.errors
            if len(errors) >= MAX_ERRORS:
                errors[MAX_ERRORS:] = [
                    PlanError(
                        f"after {MAX_ERRORS} errors the rest of the plan was not looked at",
                        where=node.mark,
                        hint="mend these first; many are often of one cause",
                    )
                ]
                return
        if self.plan.output is not None:
            self._finish(self.plan.output)
        demands = self.frame.demands
        open_until_now = [assertion for assertion in demands.assertions if not assertion.outcome.known()]
        self.closed = True
        if not demands.errors:
            self._judge(open_until_now)

    def _parse(self, steps: AbstractSequence[Node]) -> Iterator[tuple[Node, BoundStep | PlanError]]:
        """The steps, parsed; in place of one that is wrong stands its error."""
        for node in steps:
            try:
                yield node, parse_step(node)
            except PlanError as error:
                yield node, error

    def _run_step(self, node: Node, step: BoundStep | PlanError) -> None:
        """One step; after the end of the plan it must still be well-formed."""
        frame = self.frame
        frame.pending = []
        if isinstance(step, PlanError):
            frame.demands.errors.append(step)
            self._leave_ghosts(node)
            return
        if frame.space.stopped:
            return
        frame.demands.step += 1
        frame.word, frame.mark, frame.where, frame.raw = step.word.name, step.mark, step.where, step.raw
        frame.recent.clear()
        if frame.space.flags["preview"] and self._preview(step):
            return
        assertions = len(frame.demands.assertions)
        try:
            step.build(self.state)
        except SurgeryError as error:
            frame.demands.errors.append(error.located(step.mark))
            self._leave_ghosts(node)
        except Consequence:
            self._leave_ghosts(node)
        self._judge(frame.demands.assertions[assertions:])
        if not self.nested:
            frame.demands.executed.append(plain(node))

    def _judge(self, assertions: AbstractSequence[Assertion]) -> None:
        """Those of some assertions that can be decided now."""
        for assertion in assertions:
            if assertion.outcome.known():
                holds, why = assertion.outcome.settle({})
                if not holds:
                    problem = AssertionFailed(f"assertion failed: {why}", where=assertion.mark)
                    self.frame.demands.errors.append(problem)

    def _preview(self, step: BoundStep) -> bool:
        """Print what a step touches; whether it is to be skipped. Seen by running it on a copy and looking."""
        word, frame = step.word.name, self.frame
        if word in ("set", "exit", "help", "assert", "diff", "dump"):
            self.state.speech.say(f"preview: {word}: no tensor impact")
            return False
        space, demands = frame.space, frame.demands
        frame.space, frame.demands = space.trial(), demands.copy()
        frame.touched = {"changed": [], "created": [], "deleted": []}
        with suppress(SurgeryError, Consequence):  # the step itself reports it, or is skipped
            step.build(self.state)
        frame.space, frame.demands, frame.pending = space, demands, []
        counts = ", ".join(
            f"{what} {len(names)} ({listing(names, 3)})" for what, names in frame.touched.items() if names
        )
        self.state.speech.say(f"preview: {word}: {counts or 'no tensor impact'}")
        return space.flags["dry-run"] and (bool(counts) or word in ("load", "save", "prefixes"))

    def _leave_ghosts(self, node: Node) -> None:
        """Remember what a failed step would have made, so that its consequences are not reported too."""
        space = self.frame.space
        for alias, name in self.frame.pending:
            if alias in space.models and not self.state.names.has(alias, name):
                self.state.versions.create(alias, name, BROKEN)
        if self.frame.pending or not isinstance(node, Mapping):
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
                space.broken.add(given.value)
                if given.value not in space.models:
                    space.add(given.value)

    def _leave_ghost(self, value: Node | None) -> None:
        if value is None:
            return
        try:
            ref = naming.parse_reference(value, self.frame.default_alias)
            self.frame.space.ghosts.append((ref.alias, ref))
        except PlanError:
            return

    # -- how the plan goes on -------------------------------------------------------------------------------------

    def flag(self, flag: str) -> bool:
        """The state of a flag."""
        return self.frame.space.flags[flag]

    def set_flag(self, flag: str, on: bool) -> None:
        """Change a flag; with dry-run the namespace is another until it ends."""
        if flag == "dry-run" and on != self.flag(flag):
            space = self.frame.space
            self.frame.space = space.dry() if on else space.ended()
        self.frame.space.flags[flag] = on

    def is_at_end(self) -> bool:
        """Whether all steps have run."""
        return self.closed

    def stop(self) -> None:
        """End the plan here."""
        self.frame.space.stopped = True

    def run_nested(self, sources: AbstractSequence[tuple[str, Node]]) -> None:
        """Run the steps of other plans here."""
        frame = self.frame
        if self.nested:
            raise PlanError("execute inside execute is not allowed", where=frame.mark)
        steps: list[Node] = []
        hint: str | None = None
        for kind, node in sources:
            added, default = self._nested_steps(kind, node)
            steps += added
            hint = hint or default
        if not steps:
            raise PlanError("execute needs at least one step", where=frame.mark)
        aliases = self.state.names.aliases()
        outer = frame.word, frame.mark, frame.default_alias
        self.nested = True
        frame.default_alias = hint or (aliases[0] if len(aliases) == 1 else None)
        try:
            for step in self._parse(steps):
                self._run_step(*step)
                if len(frame.demands.errors) >= MAX_ERRORS:
                    break
        finally:
            self.nested = False
            frame.word, frame.mark, frame.default_alias = outer

    def _nested_steps(self, kind: str, node: Node) -> tuple[list[Node], str | None]:
        if kind == "plan-yaml":
            if not isinstance(node, Scalar) or not isinstance(node.value, str):
                raise PlanError("execute.plan-yaml is text", where=node.mark)
            node = document.parse_yaml(node.value, f"{node.mark.file}:{node.mark.line}:plan-yaml", interpolate=False)
        elif kind == "path":
            assert isinstance(node, Scalar)
            node = self.frame.outside.open_plan(str(node.value))
        if kind == "transforms" or not isinstance(node, Mapping):
            return list(step_list(node)), None
        if not {"inputs", "transforms", "output"} & set(node.entries):
            if len(node.entries) == 1 and known_word(next(iter(node.entries))) is not None:
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
        frame = self.frame
        frame.word, frame.mark = step.word.name, step.mark
        space, known = frame.space, frame.space.models
        space.models = _AnyAlias(known)
        try:
            alias = step.contributes(self.state)
        except PlanError:
            return  # the step itself reports it
        finally:
            space.models = known
        if alias is not None and alias not in self.contributed:
            self.contributed.append(alias)

    def _finish(self, output: Any) -> None:
        frame, names = self.frame, self.state.names
        frame.word, frame.mark, frame.demands.step = "output", output.mark, frame.demands.step + 1
        errors = frame.demands.errors
        if errors:
            # a failed step may have decided which alias is written, so only the place is still worth checking
            request = Request(output.path, output.format, output.shard, "output", output.mark, output.options)
            try:
                frame.outside.check_request(request)
            except SurgeryError as error:
                errors.append(error.located(output.mark))
            return
        full = [alias for alias in names.aliases() if not names.is_empty(alias)]
        offered = [alias for alias in self.contributed if alias in full]
        if not offered and len(full) == 1:
            offered = full
        if len(offered) != 1:
            errors.append(
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
            where = (output.path, output.format, output.shard)
            self.state.files.save(*where, offered[0], None, output.options, output.documents)
        except SurgeryError as error:
            errors.append(error.located(output.mark))


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
    if output.documents is not None:
        keys["documents"] = node_of(list(output.documents), mark)
    payload = Mapping(keys, dict.fromkeys(keys, mark), mark)
    return Mapping({"save": payload}, {"save": mark}, mark)
