"""Plans compiled: from words and headers to the work that is to be done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from ..compile.grouping import compile_program
from ..compile.program import Program
from ..core.errors import Mark, Problems, SurgeryError
from ..core.process import set_aside
from ..core.specs import Spec
from ..execute.options import Options
from ..execute.reservations import Limits
from ..execute.schedule import Schedule, schedule
from ..graph.build import build
from ..graph.node import Graph
from ..graph.node import Node as GraphNode
from ..graph.roots import Check, Request, Sink, Symbolic
from ..language.document import Node, parse_plan_file
from ..language.plan import Input, Plan
from ..storage import formats
from ..storage.base import Checkpoint, Layout, Single
from ..storage.documents import DocumentText, identify, read_document, with_documents
from ..storage.files import paused_gc
from ..storage.formats import OutputPlan
from ..storage.identity import Identity, add_all
from ..storage.places.found import locate
from .config_check import check_configs

__all__ = ["Answers", "Compiled", "Outputs", "StorageOutside", "compile_with", "joined", "with_inputs"]

Answers = Mapping[GraphNode, Any]  # elements of versions, and whether masks are true everywhere
Outputs = Sequence[tuple[OutputPlan, Layout]]
Held = dict[str, Checkpoint]  # by the path that a plan names them with


@dataclass(frozen=True, eq=False)
class Compiled:
    """A plan after everything that headers can tell: its roots, where every output byte belongs, and the work to do."""

    symbolic: Symbolic
    outputs: Outputs
    again: Callable[[Answers], Compiled] | None = None  # the same plan with answers of the data
    plan: Plan | None = None  # None for several
    graph: Graph | None = None  # None for several
    shorter: Symbolic | None = None  # the same demands with less to make, where something of it is stored already

    @property
    def work(self) -> Symbolic:
        """What the work is made for: its saves, checks and sinks are those of `symbolic`, in their order."""
        return self.shorter or self.symbolic

    @cached_property
    def program(self) -> Program:
        """The work: moves, and groups of components. Found on first use, since many checks need nothing of it."""
        places, encoded = [], []
        files: list[str] = []
        with _no_collection():
            for output, layout in self.outputs:
                encoded += [
                    (f"{output.path}/{file.name}", file.size, file.workspace)
                    for file in layout.files
                    if file.encode is not None
                ]
                first = len(files)
                files += [f"{output.path}/{file.name}" if file.name else output.path for file in layout.files]
                rest = {
                    name: tuple((begin, first + file, at) for begin, file, at in parts)
                    for name, parts in layout.rest.items()
                }
                places.append(
                    {name: (first + file, at, rest.get(name, ())) for name, (file, at) in layout.places.items()}
                )
            return compile_program(self.work, places, files, encoded)

    @cached_property
    def asking(self) -> Program:
        """The work that finds what the plan asks of the data; it writes nothing."""
        questions = self.symbolic.questions
        checks = [question for question in questions if isinstance(question, Check)]
        sinks = [question for question in questions if isinstance(question, Sink)]
        with _no_collection():
            return compile_program(replace(self.symbolic, saves=(), checks=checks, sinks=sinks, questions=()), ())

    @property
    def passes(self) -> tuple[Program, ...]:
        """The passes over the data that headers tell of: that which asks, if there is anything to ask, and the last
        one, which writes."""
        return (*([self.asking] if self.symbolic.questions else []), self.program)

    def first(self, limits: Limits) -> Schedule:
        """How the first pass over the data is done within limits: the one that finds what the plan asks, if it asks
        anything, or the last one. Made once."""
        return self._scheduled(self.asking, limits) if self.symbolic.questions else self.last(limits)

    def last(self, limits: Limits) -> Schedule:
        """How the pass that writes is done within limits. Made once."""
        return self._scheduled(self.program, limits)

    def _scheduled(self, program: Program, limits: Limits) -> Schedule:
        if limits.in_order is None:
            limits = limits._replace(in_order=any(layout.is_directory for _, layout in self.outputs))
        if limits.in_order and len(self.outputs) == 1:
            limits = limits._replace(workers=limits.workers + limits.waiting)
        if (program, limits) not in self._schedules:
            self._schedules[program, limits] = schedule(program, limits)
        return self._schedules[program, limits]

    @cached_property
    def _schedules(self) -> dict[tuple[Program, Limits], Schedule]:
        return {}


class StorageOutside:
    """The outside world as the graph may see it: headers, nested plans, and what output paths mean. Each header is
    read once, also for a plan that is built again: what was asked of the data belongs to it. `sources` keeps what was
    read, by its path."""

    def __init__(self, options: Options, held: Held | None = None) -> None:
        self.options = options
        self.held = dict(held or {})
        self.sources: dict[str, Checkpoint | Node] = {}
        self._singles: dict[tuple[str, str], Single] = {}
        self._identities: dict[str, Identity] = {}

    def open_checkpoint(self, path: str) -> Checkpoint:
        if path not in self.held:
            found = formats.open_checkpoint(path)
            add_all(self._identities, found.identities)
            self.held[path] = found
        self.sources[path] = self.held[path]
        return self.held[path]

    def open_single(self, path: str, format: str) -> Single:
        if (path, format) not in self._singles:
            found = formats.open_single(path, format)
            add_all(self._identities, found.identities)
            self._singles[path, format] = found
            self.sources[path] = Checkpoint(path, format, {found.name or "": found.entry})
        return self._singles[path, format]

    def open_plan(self, path: str) -> Node:
        found = self.sources[path] = parse_plan_file(path, interpolate=False)
        return found

    def read_document(self, path: str) -> DocumentText:
        found = read_document(locate(path))
        add_all(self._identities, found.identities)
        return found

    def identify(self, path: str) -> dict[str, Identity]:
        found = identify(path)
        add_all(self._identities, found)
        return found

    def is_directory(self, request: Request) -> bool:
        return self.resolve(request).is_directory

    def check_request(self, request: Request) -> None:
        self.resolve(request)

    def resolve(self, request: Request) -> OutputPlan:
        """How a save is written."""
        try:
            if request.kind == "tensor":
                return formats.resolve_save_tensor(request.path, request.format, request.options)
            if request.kind == "alias":
                return formats.resolve_save(request.path, request.format, request.shard, request.options)
            return formats.resolve_output(
                request.path, request.format, request.shard, self.options.shard_size, request.options
            )
        except SurgeryError as error:
            raise error.located(request.mark) from None


def with_inputs(plan: Plan, inputs: Mapping[str, Checkpoint]) -> tuple[Plan, Held]:
    """A plan with checkpoints in the place of inputs, or as further ones, and these under the paths it now names."""
    held = {f"<{alias} in memory>": checkpoint for alias, checkpoint in inputs.items()}
    mark = Mark("plan", 0, 0, "inputs")  # which the caller gives
    known = {entry.alias: entry for entry in plan.inputs}
    known.update({alias: Input(alias, f"<{alias} in memory>", mark) for alias in inputs})
    return replace(plan, inputs=tuple(known.values())), held


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the cycle collector: compiling makes millions of small objects that all stay, and it would look at them
    again and again. A process of our own sets them aside from it until the run has ended."""
    with paused_gc():
        yield
        set_aside()


def compile_with(
    plan: Plan, outside: StorageOutside, graph: Graph | None = None, answers: Answers | None = None
) -> Compiled:
    """As `compile_plan`, with the headers that `outside` gives, in the graph of other plans, and with what the data
    answers to the plan's questions.

    Raises:
        Problems: all that is wrong with the plan.
    """
    graph = graph or Graph()
    with _no_collection():
        symbolic = build(plan, outside, graph, answers)
        errors: list[SurgeryError] = []
        outputs: list[tuple[OutputPlan, Layout]] = []
        for save in symbolic.saves:
            resolved = outside.resolve(save.request)
            specs: list[tuple[str, Spec]] = [(name, node.spec) for name, node in save.tensors]
            try:
                layout = resolved.layout(specs, save.metadata)
                outputs.append((resolved, with_documents(layout, save.documents) if save.documents else layout))
            except SurgeryError as error:
                errors.append(error.located(save.request.mark))
        if outside.options.config_check and not errors:
            errors, told = check_configs(symbolic, [output for output, _ in outputs], outside.held)
            symbolic = replace(symbolic, warnings=[*symbolic.warnings, *told])
        if errors:
            raise Problems(errors)
        return Compiled(symbolic, tuple(outputs), partial(compile_with, plan, outside, graph), plan, graph)


def joined(parts: Sequence[Compiled]) -> Compiled:
    """The work of several plans of one graph as that of one; what they print and assert stays with them."""
    if len(parts) == 1:
        return parts[0]
    whole = _joined([part.symbolic for part in parts])
    shorter = _joined([part.work for part in parts]) if any(part.shorter is not None for part in parts) else None
    return Compiled(whole, tuple(output for part in parts for output in part.outputs), shorter=shorter)


def _joined(plans: Sequence[Symbolic]) -> Symbolic:
    return Symbolic(
        saves=[save for plan in plans for save in plan.saves],
        checks=[check for plan in plans for check in plan.checks],
        sinks=[sink for plan in plans for sink in plan.sinks],
        prints=(),
        assertions=(),
        executed=(),
        needs_whole=any(plan.needs_whole for plan in plans),
        questions=[question for plan in plans for question in plan.questions],
        identities={path: known for plan in plans for path, known in plan.identities.items()},
    )
