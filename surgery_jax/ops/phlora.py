"""`phlora`, `phlora_`: low-rank factors of matrices (PHLoRA, arXiv 2509.10971)."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import DECOMPOSED, Directive, TensorOp, boolean, choice, rank, reference
from ..kit.forms import InPlace
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_floats, check_matrix
from ..kit.state import State
from ..language.document import Node
from ..numerics.cuts import Cut, factoring_bytes, longer_side
from ..numerics.lowrank import METHODS, factors, workspace_bytes

METHOD = "how: exact, randomized, or whichever gives 1.001 of the least error soonest"


def _check(source: Spec) -> None:
    check_floats(source, complex_too=True)
    check_matrix(source)


@dataclass(frozen=True)
class BestFactors(TensorOp):
    """The factors A and B of the best approximation of a given rank.

    source: float[m, n] -> A: [r, n] = sqrt(S) Vh and B: [m, r] = U sqrt(S) with r = min(rank, m, n), so that B @ A is
    the best rank-r approximation. Narrow floats are factored in float32.
    """

    kind = "whole"
    varies = DECOMPOSED
    uses_lapack = True
    needs_finite = True
    outputs = 2
    rank: int
    method: str = "auto"

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        _check(source)
        m, n = source.shape
        r = min(self.rank, m, n)
        return (Spec((r, n), source.dtype), Spec((m, r), source.dtype))

    def workspace_bytes(self, source: Spec) -> int:
        return workspace_bytes(source, self.rank)

    def cut(self, source: Spec) -> Cut:
        axis = longer_side(source)
        return Cut((axis,), (None, 0) if axis == 0 else (1, None))

    def cut_workspace_bytes(self, count: int, cut: Cut, source: Spec) -> int:
        return factoring_bytes(count, source, self.rank, max(source.dtype.itemsize, 4))

    def apply(self, k: Kernel, source: Array) -> tuple[Array, Array]:
        u, s, vt = factors(k, source, self.rank, self.method)
        root = k.xp.sqrt(s)
        return k.narrow(root[:, None] * vt, source), k.narrow(u * root, source)


@dataclass(frozen=True)
class LowRank(TensorOp):
    """Replace matrices by their best approximation of a given rank.

    source: float[m, n] -> the same shape and dtype.
    """

    kind = "whole"
    varies = DECOMPOSED
    uses_lapack = True
    needs_finite = True
    spellings = (InPlace("phlora_", slices=False),)
    examples = ("phlora_: { target: '.+\\.delta', rank: 16 }",)

    rank: int = rank("rank of the approximation; more than min(m, n) means all")
    method: str = choice(METHOD, METHODS, "auto")

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        _check(source)
        return (source,)

    def workspace_bytes(self, source: Spec) -> int:
        return workspace_bytes(source, self.rank)

    def cut(self, source: Spec) -> Cut:
        return Cut((longer_side(source),), (longer_side(source),))

    def cut_workspace_bytes(self, count: int, cut: Cut, source: Spec) -> int:
        return factoring_bytes(count, source, self.rank, max(source.dtype.itemsize, 4))

    def apply(self, k: Kernel, source: Array) -> Array:
        u, s, vt = factors(k, source, self.rank, self.method)
        return k.narrow(k.matmul(u * s, vt), source)


@dataclass(frozen=True)
class Phlora(Directive):
    """Factor matrices into B @ A of a given rank, each side carrying the square root of the singular values.

    target: float[m, n] -> target_a: [r, n] and target_b: [m, r], r = min(rank, m, n).
    """

    word = "phlora"
    selects = True
    computes = True
    examples = (
        "phlora: { target: '(.+)\\.weight', target_a: '\\1.lora_a', target_b: '\\1.lora_b', rank: 8 }",
        "phlora: { target: w, target_a: a, target_b: b, rank: 4, delete_original: false }",
    )

    target: Node = reference("matrices to factor")
    target_a: Node = reference("names of the A factors")
    target_b: Node = reference("names of the B factors")
    rank: int = rank("rank of the factors; more than min(m, n) means all")
    method: str = choice(METHOD, METHODS, "auto")
    delete_original: bool = boolean("remove the matrices afterwards", True)
    require_missing_dest: bool = boolean("refuse to overwrite existing tensors", True)

    def build(self, state: State) -> None:
        target = state.names.reference(self.target, key="target", slices=False)
        sides = [
            state.names.reference(node, key=key, slices=False, default=target.alias)
            for key, node in (("target_a", self.target_a), ("target_b", self.target_b))
        ]
        pairs = [state.names.pairs(target, side) for side in sides]
        for (name, a), (_, b) in zip(*pairs, strict=True):
            if (sides[0].alias, a) == (sides[1].alias, b):
                raise PlanError(
                    "phlora destination collision: A and B of one matrix need different names", found=f"{name} -> {a}"
                )
        for side, named in zip(sides, pairs, strict=True):
            if self.require_missing_dest:
                state.names.expect_new(side.alias, [dest for _, dest in named])
        for (name, a), (_, b) in zip(*pairs, strict=True):
            node = state.versions.slot(target.alias, name, reads=2).node
            for side, dest, factor in zip(
                sides, (a, b), state.versions.apply(BestFactors(self.rank, self.method), node), strict=True
            ):
                if state.names.has(side.alias, dest):
                    state.versions.rebind(side.alias, dest, factor)
                else:
                    state.versions.create(side.alias, dest, factor)
            if self.delete_original:
                state.versions.drop(target.alias, name)
            state.speech.tell(f"phlora: {name} -> {a}, {b}")

    def contributes(self, state: State) -> str | None:
        return state.names.reference(self.target, key="target", slices=False).alias
