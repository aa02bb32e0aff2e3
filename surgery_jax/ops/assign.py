"""`assign`: values of one tensor into another."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.forms import Accumulate
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_same
from ..kit.structure import Run, Structure


@dataclass(frozen=True)
class Assign(Structure):
    """Copy values into existing tensors or slices of them.

    to, from: equal shape and dtype -> `to` holds the bits of `from`.
    """

    passes = 1
    spellings = (Accumulate("assign"),)
    examples = ("assign: { from: 'w::[0]', to: 'w::[3]' }",)

    def infer(self, before: Spec, source: Spec) -> tuple[Spec, ...]:
        check_same(before, source)
        return (source,)

    def runs(self, before: Spec, source: Spec) -> list[Run]:
        return [(1, 0, source.size)] if source.size else []

    def apply(self, k: Kernel, before: Array, source: Array) -> Array:
        return source
