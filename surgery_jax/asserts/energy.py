"""`energy`: how much of a tensor another one keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.dtypes import BY_NAME
from ..core.errors import PlanError
from ..kit.base import number, operation, reference
from ..kit.kernel import Array, Kernel
from ..kit.predicates import Known, Measured, Outcome, Predicate, settle_all
from ..kit.reduction import ScaledSums
from ..kit.state import State, Value
from ..language.document import Node
from ..language.names import Reference


@dataclass(frozen=True)
class Remainder(ScaledSums):
    """Sums of the squares of a and of a - factor b, both divided by the largest magnitude first, in float64.

    a, b: float, of one size -> float64[2].
    """

    num_sums = 2
    factor: float = number("of b", traced=True)

    def scales(self, k: Kernel, a: Array, b: Array) -> tuple[Array, Array]:
        largest = k.xp.maximum(a, b)
        return largest, largest

    def products(self, k: Kernel, x: Array, y: Array) -> tuple[Array, ...]:
        off = x - k.mul(y, k.xp.asarray(self.factor, "float64"))
        return k.mul(x, x), k.mul(off, off)


@dataclass(frozen=True)
class Energy(Predicate):
    """The share of the squared norm of every match of `of` that an approximation of it keeps is at least `ge`.

    The share is 1 - |of - approximation|^2 / |of|^2, in float64: 1 if they are equal, 0 if the approximation is zero,
    and less than 0 if it is worse than that. A tensor of zeros is kept by zeros alone. The approximation is the tensor
    `by`, or the product `by` @ `and` of two factors, in float32 (float64 if all are), times `scale`.
    """

    name = "energy"
    examples = (
        "energy: { of: 'delta::(.+)', by: 'approx::\\1', ge: 0.9 }",
        "energy: { of: '(.+)\\.delta', by: '\\1.lora_B', and: '\\1.lora_A', scale: 2, ge: 0.9 }",
    )

    of: Node = reference("the tensors, may be sliced")
    by: Node = reference("template of what keeps them, or of its left factor, may be sliced")
    ge: float = number("at least, at most 1")
    right: Node | None = reference("template of the right factor, may be sliced", None, key="and")
    scale: float = number("factor of the approximation", 1.0)

    def __post_init__(self) -> None:
        if not self.ge <= 1:
            raise PlanError("energy.ge is at most 1", found=f"{self.ge:g}")

    def evaluate(self, state: State) -> Outcome:
        keys = {"of": self.of, "by": self.by} | ({} if self.right is None else {"and": self.right})
        refs = [state.names.reference(node, key=key) for key, node in keys.items()]
        if not state.names.match(refs[0]):
            return Known(False, f"energy: matched zero tensors: {refs[0].text}")
        return settle_all("all", [self._test(state, refs, names) for names in state.names.rows(refs[0], *refs[1:])])

    def _test(self, state: State, refs: list[Reference], names: tuple[str, ...]) -> Outcome:
        label = f"energy: {names[0]} by {' @ '.join(names[1:])}"
        for ref, name in zip(refs[1:], names[1:], strict=True):
            if not state.names.has(ref.alias, name):
                return Known(False, f"{label}: {name} does not exist")
        nodes = [state.versions.read(ref, name) for ref, name in zip(refs, names, strict=True)]
        kept = nodes[1] if len(nodes) == 2 else self._product(state, nodes)
        specs = [state.versions.spec(node) for node in (nodes[0], kept)]
        if specs[0].shape != specs[1].shape:
            return Known(False, f"{label}: {specs[0]} against {specs[1]}")
        found = state.versions.compute(Remainder(self.scale), nodes[0], kept)

        def judge(sums: Sequence[float]) -> tuple[bool, str]:
            whole, rest = map(float, sums)
            share = 1 - rest / whole if whole else float(rest == 0)
            return share >= self.ge, f"{label}: {share:.9g} of the squared norm is kept, expected at least {self.ge:g}"

        return Measured(state.checks.sink(found, "array"), judge)

    def _product(self, state: State, nodes: list[Value]) -> Value:
        is_double = all(state.versions.spec(node).dtype.name == "float64" for node in nodes)
        wide = operation("cast", dtype=BY_NAME["float64" if is_double else "float32"])
        return state.versions.compute(operation("matmul"), *(state.versions.compute(wide, node) for node in nodes[1:]))
