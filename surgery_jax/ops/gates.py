"""`gates`: router rows from the embeddings of prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.dtypes import BY_NAME, DType
from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import SUMMED, Directive, TensorOp, dtype_name, node, reference
from ..kit.kernel import Array, Kernel
from ..kit.rules import check_floats
from ..kit.state import State
from ..kit.structure import View
from ..language.document import Node, plain
from ..language.slices import Indices


@dataclass(frozen=True)
class PromptRows(TensorOp):
    """For every expert the unit vector of the sum of some rows, less that of others, as a unit vector.

    rows: float [tokens, width] -> [experts, width] of `dtype`. `counts` says how often each row counts in each sum,
    first those that are added. Computed in float64, rounded once; lengths below 1e-8 are taken for 1e-8.
    """

    kind = "whole"
    varies = SUMMED
    counts: tuple[tuple[float, ...], ...] = ()
    dtype: DType = field(default=BY_NAME["float32"])

    def infer(self, rows: Spec) -> tuple[Spec, ...]:
        check_floats(rows)
        if len(rows.shape) != 2:
            raise PlanError("an embedding has two axes", found=str(rows))
        return (Spec((len(self.counts) // 2, rows.shape[1]), self.dtype),)

    def workspace_bytes(self, rows: Spec) -> int:
        return 8 * (rows.size + 4 * len(self.counts) * rows.shape[1])

    def apply(self, k: Kernel, rows: Array) -> Array:
        sums = k.matmul(k.xp.asarray(self.counts, "float64"), k.widen(rows).astype("float64"))
        units, half = _units(k, sums), len(self.counts) // 2
        return k.cast(_units(k, k.sub(units[:half], units[half:])), self.dtype)


def _units(k: Kernel, vectors: Array) -> Array:
    lengths = k.xp.sqrt(k.einsum("ij,ij->i", vectors, vectors))
    return vectors / k.at_least(lengths, 1e-8).reshape(-1, 1)


@dataclass(frozen=True)
class Gates(Directive):
    """Make the rows of a router from the embeddings of prompts.

    `positive` and `negative` have for every expert the numbers of its prompts' tokens. Its row is the sum of their
    embeddings as a unit vector, less that of the negative ones, as a unit vector.
    """

    word = "gates"
    computes = True
    examples = ("gates: { from: 'model.embed_tokens.weight', to: router.weight, positive: [[5, 17], [9]] }",)

    from_: Node = reference("the embedding of tokens", key="from")
    to: Node = reference("name of the result, must be new")
    positive: Node = node("lists of numbers of tokens, one for each expert", kind="list of lists")
    negative: Node | None = node("lists of numbers of tokens, one for each expert", None, kind="list of lists")
    dtype: DType = dtype_name("of the result", BY_NAME["float32"])

    def build(self, state: State) -> None:
        source = state.names.reference(self.from_, key="from")
        dest = state.names.reference(self.to, key="to", slices=False, literal=True)
        assert isinstance(dest.expr, str)
        state.names.expect_new(dest.alias, [dest.expr])
        embedding = state.versions.read(source, state.names.one(source))
        shape = state.versions.spec(embedding).shape
        positive = _lists(self.positive, "positive")
        negative = _lists(self.negative, "negative") if self.negative is not None else [[] for _ in positive]
        if len(negative) != len(positive) or not all(positive):
            raise PlanError("gates: every expert has a list of positive tokens, and one of negative ones if any has")
        tokens = sorted({token for part in (*positive, *negative) for token in part})
        if len(shape) != 2 or not 0 <= tokens[0] <= tokens[-1] < shape[0]:
            where = self.positive.mark
            raise PlanError(
                "gates: a token has no row", where=where, found=f"tokens {tokens[0]} to {tokens[-1]}, {list(shape)}"
            )
        view = View((Indices(tuple(tokens)), (0, 1, shape[1])), (False, False))
        counts = tuple(tuple(float(part.count(token)) for token in tokens) for part in (*positive, *negative))
        made = state.versions.compute(PromptRows(counts, self.dtype), state.versions.compute(view, embedding))
        state.versions.create(dest.alias, dest.expr, made)
        state.speech.tell(f"gates: {dest.expr}")

    def contributes(self, state: State) -> str | None:
        return state.names.reference(self.to, key="to").alias


def _lists(given: Node, key: str) -> list[list[int]]:
    found = plain(given)
    if isinstance(found, list) and found and all(isinstance(part, list) for part in found):
        if all(isinstance(token, int) and not isinstance(token, bool) for part in found for token in part):
            return found
    raise PlanError(f"gates.{key}: not lists of numbers of tokens", where=given.mark, expected="such as [[5, 17], [9]]")
