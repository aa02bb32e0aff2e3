"""`preserves`: a block of experts computes what the dense block did that it was made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..core.dtypes import BY_NAME
from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit.base import TensorOp, boolean, choice, integer, node, number, operation, rank, reference
from ..kit.draws import Drawn
from ..kit.kernel import Array, Kernel
from ..kit.made import Positions
from ..kit.predicates import Known, Measured, Outcome, Predicate, settle_all
from ..kit.rules import check_floats
from ..kit.state import State, Value
from ..kit.structure import View
from ..language.document import Mapping as YamlMapping
from ..language.document import Node, check_keys
from ..language.names import INDEX, Reference, numbered_by

PARTS = ("gate", "up", "down")
PIECE = 1 << 22  # elements of a matrix that are widened at once
_T = TypeVar("_T")


@dataclass(frozen=True)
class DenseAndMixture(TensorOp):
    """A dense gated MLP and a mixture of such experts, on the same tokens.

    tokens: [n, h]; router: [E, h]; the router of the shared expert [1, h] if it is gated; then gate, up: [f, h], down:
    [h, f] of the dense MLP, and of every other one that is not the same as an earlier one -> float64[2], the largest
    magnitude of the difference and of what the dense one gives. In float32, or float64 if all are.

    Where all are one and the same, what it gives counts no more, only with what weights: matrices are not given then,
    and tokens stand for it.
    """

    kind = "whole"
    top_k: int
    act: str
    normalize: bool
    scores: str
    scale: float
    experts: tuple[int, ...]  # which of the MLPs each of E experts is
    shared: int | None  # which of them all tokens go to
    is_gated: bool

    def infer(self, tokens: Spec, router: Spec, *rest: Spec) -> tuple[Spec, ...]:
        check_floats(router)
        width = tokens.shape[1]
        for gate, up, down in self._triples(rest):
            for spec in (gate, up, down):
                check_floats(spec)
            inner = gate.shape[0] if gate.shape else 0
            if (gate.shape, up.shape, down.shape) != ((inner, width), (inner, width), (width, inner)):
                raise PlanError(
                    "the matrices of a gated MLP do not fit",
                    expected=f"gate and up [f, {width}], down [{width}, f]",
                    found=f"{gate}, {up}, {down}",
                )
        return (Spec((2,), BY_NAME["float64"]),)

    def _triples(self, rest: Sequence[_T]) -> list[Sequence[_T]]:
        """Gate, up and down of every MLP."""
        rest = rest[self.is_gated :]
        return [rest[at : at + 3] for at in range(0, len(rest), 3)]

    def workspace_bytes(self, tokens: Spec, router: Spec, *rest: Spec) -> int:
        piece = max(PIECE, tokens.shape[1])
        return 2 * 3 * 8 * min(piece, max((spec.size for spec in rest), default=0))  # pieces of two MLPs, widened

    def apply(self, k: Kernel, tokens: Array, router: Array, *rest: Array) -> Array:
        wide = "float64" if all(x.dtype == "float64" for x in (router, *rest)) else "float32"
        tokens = tokens.astype(wide)
        weights = self._weights(k, k.matmul(tokens, router.astype(wide).T))
        share = k.xp.ones((), wide)
        if self.is_gated:
            share = _sigmoid(k, k.matmul(tokens, rest[0].astype(wide).T))
        dense = mixed = k.xp.zeros(tokens.shape, wide)
        for mlp, found in enumerate([self._mlp(k, tokens, *each) for each in self._triples(rest)] or [tokens]):
            dense = dense if mlp else found
            places = [place for place, which in enumerate(self.experts) if which == mlp]
            if places:
                mixed = mixed + k.xp.sum(weights[:, k.xp.asarray(places)], axis=1, keepdims=True) * found
            if self.shared == mlp:
                mixed = mixed + share * found
        off, size = k.xp.max(k.xp.abs(mixed - dense)), k.xp.max(k.xp.abs(dense))
        return k.xp.stack([off, size]).astype("float64")

    def _mlp(self, k: Kernel, tokens: Array, gate: Array, up: Array, down: Array) -> Array:
        """What an MLP gives, [n, h]; its places are worked off in pieces, so that few are wide at a time."""
        found = k.xp.zeros(tokens.shape, tokens.dtype)
        step = max(1, PIECE // tokens.shape[1])
        for first in range(0, gate.shape[0], step):
            places = slice(first, first + step)
            found = found + self._piece(k, tokens, gate[places], up[places], down[:, places])
        return found

    def _piece(self, k: Kernel, tokens: Array, gate: Array, up: Array, down: Array) -> Array:
        gate, up, down = (x.astype(tokens.dtype).T for x in (gate, up, down))
        inner = k.matmul(tokens, gate)
        if self.act == "silu":
            inner = inner * _sigmoid(k, inner)
        elif self.act == "gelu_tanh":
            cubic = inner + 0.044715 * inner * inner * inner
            inner = 0.5 * inner * (1 + k.xp.tanh(math.sqrt(2 / math.pi) * cubic))
        else:
            inner = k.xp.maximum(inner, 0)
        return k.matmul(inner * k.matmul(tokens, up), down)

    def _weights(self, k: Kernel, logits: Array) -> Array:
        """What every token gives to every expert, [n, E]; of equal scores the first ones are chosen."""
        if self.scores == "sigmoid":
            scores = _sigmoid(k, logits)
        else:
            raised = k.xp.exp(logits - k.xp.max(logits, axis=1, keepdims=True))
            scores = raised / k.xp.sum(raised, axis=1, keepdims=True)
        places = k.xp.arange(len(self.experts))
        mine, others = scores[:, :, None], scores[:, None, :]
        before = (others > mine) | ((others == mine) & (places[None, None, :] < places[None, :, None]))
        chosen = k.xp.where(k.xp.sum(before, axis=2) < self.top_k, scores, k.xp.zeros((), scores.dtype))
        total = k.xp.sum(chosen, axis=1, keepdims=True) if self.normalize else 1
        return chosen / total * self.scale


def _sigmoid(k: Kernel, x: Array) -> Array:
    return 1 / (1 + k.xp.exp(-x))


def _references(state: State, given: Node, key: str, names: tuple[str, ...]) -> dict[str, Reference]:
    if not isinstance(given, YamlMapping):
        raise PlanError(
            f"preserves.{key}: not a mapping", where=given.mark, expected=f"the keys {', '.join(names)} with references"
        )
    check_keys(given, names, f"preserves.{key}")
    return {name: state.names.reference(value, key=f"{key}.{name}") for name, value in given.entries.items()}


@dataclass(frozen=True)
class Preserves(Predicate):
    """Every block of experts gives what the dense gated MLP gives that it was made of, on seeded random tokens.

    A block is known by the match of `dense.gate`; the other references are templates. `experts` names gate, up and down
    with `\\g<index>` for the number of the expert, or gate_up [E, 2 f, h] (gate first) and down [E, h, f], which hold
    all. The router scores every expert (`scores`), the `top_k` best are taken, their weights divided by their sum if
    `normalize`, times `scale`. The largest difference, relative to the largest element of the dense result, is at most
    `tolerance`.
    """

    name = "preserves"
    examples = (
        "preserves: { dense: { gate: 'd::(.+)\\.mlp\\.gate_proj\\.weight', up: 'd::\\1.mlp.up_proj.weight', down:"
        " 'd::\\1.mlp.down_proj.weight' }, experts: { gate: 'm::\\1.moe.experts.\\g<index>.w1.weight', up:"
        " 'm::\\1.moe.experts.\\g<index>.w3.weight', down: 'm::\\1.moe.experts.\\g<index>.w2.weight' }, router:"
        " 'm::\\1.moe.gate.weight', top_k: 2 }",
    )

    dense: Node = node("gate, up and down: the first a pattern, the others templates", kind="mapping of references")
    experts: Node = node("templates of gate, up and down, or of gate_up and down", kind="mapping of references")
    router: Node = reference("template of the router, [E, h]")
    top_k: int = rank("experts that a token goes to")
    shared: Node | None = node(
        "templates of gate, up and down of a shared expert, and of its `router` if it has one",
        None,
        kind="mapping of references",
    )
    act: str = choice("activation of the gate", ("silu", "gelu_tanh", "relu"), "silu")
    scores: str = choice("what the router gives", ("softmax", "sigmoid"), "softmax")
    normalize: bool = boolean("whether the weights of the chosen experts are divided by their sum", True)
    scale: float = number("factor of the weights", 1.0)
    tokens: int = rank("how many tokens", 16)
    seed: int = integer("of the tokens", 0)
    tolerance: float = number("the largest relative difference", 1e-5)

    def evaluate(self, state: State) -> Outcome:
        dense = _references(state, self.dense, "dense", PARTS)
        if len(dense) < len(PARTS):
            raise PlanError("preserves.dense needs gate, up and down", where=self.dense.mark)
        if not state.names.match(dense["gate"]):
            return Known(False, f"preserves: matched zero tensors: {dense['gate'].text}")
        given = {
            "router": state.names.reference(self.router, key="router"),
            **{f"experts.{key}": ref for key, ref in self._expert_templates(state).items()},
        }
        if self.shared is not None:
            shared = _references(state, self.shared, "shared", (*PARTS, "router"))
            if not set(PARTS) <= set(shared):
                raise PlanError("preserves.shared needs gate, up and down", where=self.shared.mark)
            given |= {f"shared.{key}": shared[key] for key in (*PARTS, "router") if key in shared}
        given = {"dense.up": dense["up"], "dense.down": dense["down"], **given}
        fills, opened = {}, {}
        for key, ref in given.items():
            if key.startswith("experts.") and "experts.gate" in given:
                opened[key], fills[key] = numbered_by(ref)
            else:
                opened[key] = ref
        keys = ["dense.gate", *given]
        outcomes = []
        for names in state.names.rows(dense["gate"], *opened.values()):
            found = dict(zip(keys, names, strict=True))
            outcomes.append(self._block(state, {"dense.gate": dense["gate"], **given}, found, fills))
        return settle_all("all", outcomes)

    def _expert_templates(self, state: State) -> dict[str, Reference]:
        found = _references(state, self.experts, "experts", (*PARTS, "gate_up"))
        if set(found) not in ({*PARTS}, {"gate_up", "down"}):
            raise PlanError(
                "preserves.experts needs gate, up and down, or gate_up and down",
                where=self.experts.mark,
                found=", ".join(found),
                hint=rf"\g<{INDEX}> stands for the number of an expert",
            )
        return found

    def _block(
        self,
        state: State,
        refs: Mapping[str, Reference],
        names: Mapping[str, str],
        fills: Mapping[str, Callable[[str, int], str]],
    ) -> Outcome:
        label = f"preserves: {names['dense.gate']}"
        missing: list[str] = []

        def version(key: str, name: str) -> Value | None:
            if not state.names.has(refs[key].alias, name):
                missing.append(f"{refs[key].alias}::{name}")
                return None
            return state.versions.read(refs[key], name)

        router = version("router", names["router"])
        if router is None:
            return Known(False, f"{label}: there is no {missing[0]}")
        spec = state.versions.spec(router)
        if len(spec.shape) != 2 or not 0 < self.top_k <= spec.shape[0]:
            return Known(
                False, f"{label}: {names['router']} is {spec}, expected [E, h] with at least {self.top_k} rows"
            )
        count = spec.shape[0]
        parts = [version(f"dense.{part}", names[f"dense.{part}"]) for part in PARTS]
        if fills:
            for expert in range(count):
                keys = [f"experts.{part}" for part in PARTS]
                parts += [version(key, fills[key](names[key], expert)) for key in keys]
        else:
            gate_up, down = (version(key, names[key]) for key in ("experts.gate_up", "experts.down"))
            if gate_up is not None and down is not None:
                parts += self._unfused(state, count, gate_up, down)
        for key in (f"shared.{part}" for part in (*PARTS, "router")):
            if key in names:
                parts.append(version(key, names[key]))
        if missing:
            return Known(False, f"{label}: there is no {missing[0]}")
        there = [part for part in parts if part is not None]
        return self._measured(state, label, count, names["dense.gate"], router, there)

    def _unfused(self, state: State, count: int, gate_up: Value, down: Value) -> list[Value]:
        """Gate, up and down of every expert."""
        both, last = state.versions.spec(gate_up), state.versions.spec(down)
        if len(both.shape) != 3 or len(last.shape) != 3 or both.shape[0] != count or both.shape[1] % 2:
            raise PlanError(
                "preserves: the experts do not fit the router",
                expected=f"gate_up [{count}, 2 f, h] and down [{count}, h, f]",
                found=f"{both} and {last}",
            )
        half = both.shape[1] // 2
        found: list[Value] = []
        for expert in range(count):
            for start in (0, half):
                axes = ((expert, 1, 1), (start, 1, half), (0, 1, both.shape[2]))
                found += state.versions.apply(View(axes, (True, False, False)), gate_up)
            axes = ((expert, 1, 1), (0, 1, last.shape[1]), (0, 1, last.shape[2]))
            found += state.versions.apply(View(axes, (True, False, False)), down)
        return found

    def _measured(self, state: State, label: str, count: int, name: str, router: Value, parts: list[Value]) -> Outcome:
        triples = [tuple(parts[at : at + 3]) for at in range(0, len(parts) // 3 * 3, 3)]
        gates = parts[3 * len(triples) :]
        if len(triples) > 1 + count and not state.versions.spec(parts[3 + 3 * count]).size:  # of no width: adds nothing
            triples, gates = triples[: 1 + count], []
        distinct = list(dict.fromkeys(triples))  # copies of one tensor are one version
        which = [distinct.index(triple) for triple in triples]
        drawn = operation("normal", mean=0.0, std=1.0)
        assert isinstance(drawn, Drawn)
        spec = Spec((self.tokens, state.versions.spec(router).shape[1]), BY_NAME["float32"])
        places = state.versions.compute(Positions(Spec(spec.shape, BY_NAME["uint64"])))
        tokens = state.versions.compute(drawn.of(name, self.seed, spec.dtype), places)
        rule = (self.top_k, self.act, self.normalize, self.scores, self.scale)
        shared = which[1 + count] if len(which) > 1 + count else None
        op = DenseAndMixture(*rule, tuple(which[1 : 1 + count]), shared, bool(gates))
        mlps = [part for triple in distinct for part in triple]
        op.infer(*map(state.versions.spec, (tokens, router, *gates, *mlps)))
        found = state.versions.compute(op, tokens, router, *gates, *(mlps if len(distinct) > 1 else ()))

        def judge(measured: Sequence[float]) -> tuple[bool, str]:
            off, size = map(float, measured)
            share = off / size if size else (0.0 if off == 0 else math.inf)
            why = f"{label}: the blocks differ by {share:.3g} of the largest element, tolerance {self.tolerance:g}"
            return share <= self.tolerance, why

        return Measured(state.checks.sink(found, "array"), judge)
