"""`finite`: no NaN and no infinity."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.specs import Spec
from ..kit.kernel import Array, Bound, Kernel
from ..kit.predicates import Known, Mask, Outcome, Pending
from ..kit.rules import check_arrays
from ..kit.selecting import Selecting
from ..kit.state import State
from ..language.names import Reference


@dataclass(frozen=True)
class FiniteMask(Mask):
    """Where an element is neither NaN nor infinite."""

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_arrays(source)
        return (source,)

    def apply(self, k: Kernel, source: Array) -> Array:
        return k.xp.isfinite(k.widen(source))

    def measure(self, k: Kernel, source: Array) -> Array:
        return k.magnitude(source)

    def by_bits(self, *operands: Spec) -> bool:
        return True  # a subnormal number is finite, flushed or not

    def smallest(self, source: Bound) -> Bound:
        return source


@dataclass(frozen=True)
class Finite(Selecting):
    """No element of any match is NaN or infinite; integers never are."""

    name = "finite"
    takes = "of"
    examples = ("finite: '.+'", "finite: 'lm_head\\.weight::[:128]'")

    def test(self, state: State, ref: Reference, name: str) -> Outcome:
        node = state.versions.read(ref, name)
        if state.versions.spec(node).dtype.kind in "iub":
            return Known(True, f"finite: {name}: holds everywhere")
        return Pending(state.checks.check(FiniteMask(), (node,), f"finite: {name}"))
