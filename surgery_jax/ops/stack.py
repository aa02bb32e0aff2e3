"""`stack`: many tensors, one after the other along a new axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import PlanError, listing
from ..core.specs import Spec
from ..kit import base
from ..kit.base import BoundStep, integer
from ..kit.forms import Form
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_arrays
from ..kit.state import State
from ..kit.structure import Run, Structure, worthwhile
from ..language.names import Reference


class _Gather(Form):
    """`from`, `to`: a new tensor for all matches of `from` that come to the same name, in the order of their number."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.fields = {
            "from": ("from", base.reference("tensors to read; the group `index` is their number").metadata["field"]),
            "to": ("to", base.reference("names of the results, without the number; must be new").metadata["field"]),
        }

    def build(self, step: BoundStep, state: State) -> None:
        assert isinstance(step.thing, Stack)
        source = state.names.reference(step.refs["from"], key="from")
        dest = state.names.reference(step.refs["to"], key="to", slices=False)
        gathered: dict[str, dict[int, str]] = {}
        for name, new, number in state.names.numbered(source, dest):
            other = gathered.setdefault(new, {}).setdefault(number, name)
            if other != name:
                raise PlanError(
                    f"{self.word}: two tensors are number {number} of {new}",
                    where=source.mark,
                    found=f"{other} and {name}",
                )
        state.names.expect_new(dest.alias, list(gathered))
        for new, numbered in gathered.items():
            names = _in_order(self.word, source, new, numbered)
            parts = [state.versions.read(source, name) for name in names]
            _check_alike(self.word, source, names, [part.spec for part in parts])
            state.versions.create(dest.alias, new, state.versions.compute(step.thing, *parts))
            state.speech.tell(f"{self.word}: {len(names)} tensors, {names[0]} to {names[-1]} -> {new}")


def _in_order(word: str, source: Reference, new: str, numbered: dict[int, str]) -> list[str]:
    """The names from number 0 on."""
    missing = [number for number in range(len(numbered)) if number not in numbered]
    if missing:
        later = min(number for number in numbered if number > missing[0])
        raise PlanError(
            f"{word}: number {missing[0]} of {new} is missing",
            where=source.mark,
            expected="all numbers from 0 on",
            found=f"{len(numbered)} tensors, but the next one is {numbered[later]}",
        )
    return [numbered[number] for number in range(len(numbered))]


def _check_alike(word: str, source: Reference, names: list[str], specs: list[Spec | None]) -> None:
    for name, spec in zip(names, specs, strict=True):
        if spec is not None and specs[0] is not None and spec != specs[0]:
            raise PlanError(
                f"{word}: {name} is not like {names[0]}",
                where=source.mark,
                expected=str(specs[0]),
                found=str(spec),
                hint="tensors of one stack have the same shape and dtype",
            )


@dataclass(frozen=True)
class Stack(Structure):
    """Put tensors one after the other along a new axis, in the order of the number that the group `index` of their name
    matches.

    parts: equal shape and dtype, numbered from 0 on without a gap -> one axis more, as numpy.stack does.
    """

    spellings = (_Gather("stack"),)
    examples = (
        "stack: { from: 'model\\.layers\\.(?P<index>\\d+)\\.(.+)', to: 'model.layers.\\2' }",
        "stack: { from: [model, layers, $index, '*rest'], to: [decoder, layers, '*rest'], dim: 1 }",
    )

    dim: int = integer("the new axis; negative counts from the end of the result", 0)

    def infer(self, *parts: Spec) -> tuple[Spec, ...]:
        first, axis = parts[0], self.axis(parts[0])
        for part in parts[1:]:
            if part != first:
                raise PlanError("parts differ", expected=str(first), found=listing(map(str, parts[1:])))
        if math.prod(first.shape[:axis]) > 1:
            check_arrays(first)  # parts of packed bytes can only follow one another
        return (Spec((*first.shape[:axis], len(parts), *first.shape[axis:]), first.dtype),)

    def axis(self, part: Spec) -> int:
        """The new axis counted from the front.

        Raises:
            PlanError: the result has no such axis.
        """
        rank = len(part.shape) + 1
        if not -rank <= self.dim < rank:
            raise PlanError(f"no axis {self.dim}", expected=f"-{rank} to {rank - 1}", found=f"parts {part}")
        return self.dim % rank

    def runs(self, *parts: Spec) -> list[Run] | None:
        axis = self.axis(parts[0])
        outer, size = math.prod(parts[0].shape[:axis]), math.prod(parts[0].shape[axis:])
        if not worthwhile(outer * len(parts), sum(part.nbytes for part in parts)):
            return None
        return [(i, row * size, size) for row in range(outer) for i in range(len(parts)) if size]

    def interleaved(self, *parts: Spec) -> list[int]:
        return [math.prod(part.shape[self.axis(part) :]) for part in parts]

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> Stack | None:
        return self if self.axis(operands[0]) > 0 else None

    def apply(self, k: Kernel, *parts: Array) -> Array:
        return k.xp.stack(parts, axis=self.dim)
