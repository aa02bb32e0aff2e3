"""Plans on trees in memory: what a plan would write becomes arrays."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import Mark, PlanError, StorageError
from ..core.process import take_back
from ..core.specs import Spec
from ..execute.options import Options
from ..graph.node import Node, Source
from ..graph.roots import Request
from ..language.plan import Output, Plan
from ..storage.base import Checkpoint, Entry, Format, LaidFile, Layout
from ..storage.flax.trees import MEMORY, held
from ..storage.formats import OutputPlan
from .compiled import Compiled, Outside, compile_with, with_inputs
from .passes import Show, check_targets, leftovers, settle, settle_questions, stage, write_notes

__all__ = ["apply"]

_PLACE = "<memory>"
_OPEN_FILES = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
_ALIGNMENT = 64  # bytes; what JAX on the CPU wants of memory that it does not copy


def apply(
    plan: Plan,
    inputs: Mapping[str, Checkpoint] | None = None,
    options: Options | None = None,
    *,
    progress: Show | None = None,
    show: Callable[[str], object] = print,
) -> Checkpoint:
    """What a plan would write, as a checkpoint in memory; an `output` of the plan is not written, steps `save` are.

    `inputs` are checkpoints by alias, as `from_flax` gives them: they stand in for the plan's inputs of these aliases,
    or are further ones. Arrays that the plan does not touch are handed on without a copy. What the plan prints goes to
    `show`.

    Raises:
        SurgeryError: what is wrong, or an assertion that does not hold.
    """
    from ..storage.publish import commit_all, unwinding
    from .perform import perform

    options = options or Options()
    mark = plan.output.mark if plan.output is not None else Mark("plan", 0, 0)
    plan, given = with_inputs(replace(plan, output=Output(_PLACE, None, None, mark)), inputs or {})
    compiled = compile_with(plan, _Outside(options, given))
    if not compiled.outputs or compiled.outputs[-1][0].format is not _FORMAT:
        raise PlanError("the plan gives nothing", where=mark, found="a dry run", hint="turn dry-run off before its end")
    (compiled,), _ = settle_questions([compiled], options, progress)
    *others, everything = compiled.symbolic.saves
    compiled, kept = _without(
        compiled, {id(entry) for checkpoint in given.values() for entry in checkpoint.entries.values()}
    )
    leftovers(replace(plan, output=None), compiled.outputs[:-1], remove=True)
    check_targets(compiled, options, compiled.outputs[:-1])
    with unwinding() as stack:
        stack.callback(take_back)
        stagings = stage(compiled.outputs[:-1], stack, options.overwrite)
        result = _Result(*compiled.outputs[-1])
        stack.callback(result.close)
        done = perform(compiled.schedules(options.limits)[-1], [*stagings, result], options, progress)
        printed = settle(compiled.symbolic, done.findings)
        made = result.entries(compiled.symbolic.saves[-1].tensors)
        write_notes(replace(compiled, symbolic=replace(compiled.symbolic, saves=others)), stagings, done.findings)
        commit_all(stagings, options.sync)
    if printed:
        show(printed)
    entries = {name: kept.get(name) or made[name] for name, _ in everything.tensors}
    return Checkpoint(MEMORY, MEMORY, entries, everything.metadata)


class _Outside(Outside):
    """The outside world with a place in memory for the output."""

    def resolve(self, request: Request) -> OutputPlan:
        return OutputPlan(_PLACE, _FORMAT) if request.kind == "output" else super().resolve(request)


class _Format(Format):
    """Arrays one after the other, each at an address that JAX need not copy from."""

    name = MEMORY

    def layout(self, path: Path, tensors: Sequence[tuple[str, Spec]], **_: Any) -> Layout:
        places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, spec in tensors:
            if not spec.dtype.array:
                raise StorageError(f"arrays cannot hold {spec.dtype}", found=f"{name!r} is {spec}")
            places[name] = (0, end)
            end += -(-spec.nbytes // _ALIGNMENT) * _ALIGNMENT
        return Layout((LaidFile("", max(end, 1)),), places, False)


_FORMAT = _Format()


def _without(compiled: Compiled, held: set[int]) -> tuple[Compiled, dict[str, Entry]]:
    """A compiled plan whose last output leaves out what is in memory already, and that."""
    *others, save = compiled.symbolic.saves
    kept, made = {}, []
    for name, node in save.tensors:
        if isinstance(node.op, Source) and id(node.op.entry) in held:
            kept[name] = node.op.entry
        else:
            made.append((name, node))
    symbolic = replace(compiled.symbolic, saves=[*others, replace(save, tensors=tuple(made))])
    layout = _FORMAT.layout(Path(_PLACE), [(name, node.spec) for name, node in made])
    return Compiled(symbolic, (*compiled.outputs[:-1], (compiled.outputs[-1][0], layout))), kept


class _Result:
    """A file in memory that an output is written to as to any other."""

    is_on_disk = False

    def __init__(self, plan: OutputPlan, layout: Layout) -> None:
        self.plan = plan
        self.layout = layout
        self._fd = os.memfd_create(_PLACE) if hasattr(os, "memfd_create") else _unnamed()
        os.ftruncate(self._fd, layout.files[0].size)

    def close(self) -> None:
        """Arrays that were made of it stay."""
        os.close(self._fd)

    def place(self, index: int) -> str:
        return f"{_OPEN_FILES}/{self._fd}"

    def entries(self, tensors: Sequence[tuple[str, Node]]) -> dict[str, Entry]:
        """The tensors that were written, as arrays that share the memory of the file and can be written to."""
        import numpy as np

        memory = mmap.mmap(self._fd, self.layout.files[0].size)
        found = {}
        for name, node in tensors:
            spec, (_, offset) = node.spec, self.layout.places[name]
            array = np.frombuffer(memory, spec.dtype.numpy, spec.size, offset).reshape(spec.shape)
            found[name] = held(array, spec)
        return found


def _unnamed() -> int:
    with tempfile.TemporaryFile() as stream:
        return os.dup(stream.fileno())
