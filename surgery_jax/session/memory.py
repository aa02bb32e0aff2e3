"""Plans on trees in memory: what a plan would write becomes arrays."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import Mark, PlanError, StorageError
from ..core.specs import Spec
from ..execute.observers import Observer
from ..execute.options import Options
from ..graph.node import Node, Source
from ..graph.roots import Request
from ..language.plan import Output, Plan
from ..storage.base import Checkpoint, Entry, Format, LaidFile, Layout
from ..storage.flax.trees import MEMORY, held
from ..storage.formats import OutputPlan
from .compiled import Compiled, StorageOutside, compile_with, with_inputs
from .listening import showing
from .passes import Show
from .run import Session, Transaction

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
    observers: Sequence[Observer] = (),
    show: Callable[[str], object] = print,
) -> Checkpoint:
    """What a plan would write, as a checkpoint in memory; an `output` of the plan is not written, steps `save` are.

    `inputs` are checkpoints by alias, as `from_flax` gives them: they stand in for the plan's inputs of these aliases,
    or are further ones. Arrays that the plan does not touch are handed on without a copy. What the plan prints goes to
    `show`; `progress` and `observers` are those of `run`.

    Raises:
        SurgeryError: what is wrong, or an assertion that does not hold.
    """
    options = options or Options()
    mark = plan.output.mark if plan.output is not None else Mark("plan", 0, 0)
    plan, given = with_inputs(replace(plan, output=Output(_PLACE, None, None, mark)), inputs or {})
    compiled = compile_with(plan, _Outside(options, given))
    if not compiled.outputs or compiled.outputs[-1][0].format is not _FORMAT:
        raise PlanError("the plan gives nothing", where=mark, found="a dry run", hint="turn dry-run off before its end")
    rest = _Rest({id(entry) for checkpoint in given.values() for entry in checkpoint.entries.values()})
    session = Session(options, observers=showing(progress, observers))
    (outcome,) = session.run([Transaction(rest.of(compiled), keep=_Result)])
    result = outcome.targets[-1]
    assert isinstance(result, _Result)
    made = result.entries(outcome.compiled.symbolic.saves[-1].tensors)
    if outcome.printed:
        show(outcome.printed)
    entries = {name: rest.kept.get(name) or made[name] for name in rest.names}
    return Checkpoint(MEMORY, MEMORY, entries, rest.metadata)


class _Outside(StorageOutside):
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


class _Rest:
    """What of a plan's result is in memory already, by the identity of its entries: `kept`; the plan makes the rest.
    Known of the plan that was compiled last, of whose result these are all `names` and the `metadata`."""

    def __init__(self, held: Set[int]) -> None:
        self._held = held
        self.kept: dict[str, Entry] = {}
        self.names: list[str] = []
        self.metadata: Mapping[str, str] = {}

    def of(self, compiled: Compiled) -> Compiled:
        """The plan, and what becomes of it once the data has answered its questions, with a last output that leaves
        out what is kept."""
        *others, save = compiled.symbolic.saves
        self.kept, made = {}, []
        for name, node in save.tensors:
            if isinstance(node.op, Source) and id(node.op.entry) in self._held:
                self.kept[name] = node.op.entry
            else:
                made.append((name, node))
        self.names, self.metadata = [name for name, _ in save.tensors], save.metadata
        symbolic = replace(compiled.symbolic, saves=[*others, replace(save, tensors=tuple(made))])
        layout = _FORMAT.layout(Path(_PLACE), [(name, node.spec) for name, node in made])
        again = compiled.again
        return Compiled(
            symbolic,
            (*compiled.outputs[:-1], (compiled.outputs[-1][0], layout)),
            None if again is None else lambda answers: self.of(again(answers)),
            compiled.plan,
        )


class _Result:
    """A file in memory that an output is written to as to any other."""

    is_on_disk = False

    def __init__(self, plan: OutputPlan, layout: Layout) -> None:
        self.plan = plan
        self.layout = layout
        self._fd = os.memfd_create(_PLACE) if hasattr(os, "memfd_create") else _unnamed()
        try:
            os.ftruncate(self._fd, layout.files[0].size)
            self._memory = mmap.mmap(self._fd, layout.files[0].size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Nobody writes any more; its memory stays as long as there are arrays of it."""
        os.close(self._fd)

    def place(self, index: int) -> str:
        return f"{_OPEN_FILES}/{self._fd}"

    def entries(self, tensors: Sequence[tuple[str, Node]]) -> dict[str, Entry]:
        """The tensors that were written, as arrays that share the memory of the file and can be written to."""
        import numpy as np

        found = {}
        for name, node in tensors:
            spec, (_, offset) = node.spec, self.layout.places[name]
            array = np.frombuffer(self._memory, spec.dtype.numpy, spec.size, offset).reshape(spec.shape)
            found[name] = held(array, spec)
        return found


def _unnamed() -> int:
    with tempfile.TemporaryFile() as stream:
        return os.dup(stream.fileno())
