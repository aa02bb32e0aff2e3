"""Checkpoints compared with what the plan of a receipt makes while that is computed; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..asserts.same_bits import SameBits
from ..core.errors import StorageError
from ..execute.options import Options
from ..graph.node import Graph, Node, Source
from ..graph.roots import Check, Sink
from ..hosts.peers import Peers
from ..hosts.sharing import together
from ..kit.kernel import Array, Kernel
from ..language.plan import Plan
from ..proof.differences import varying
from ..proof.receipt import Receipt
from ..proof.tree import tensor_digest
from ..session.compiled import Compiled, StorageOutside, compile_with
from ..session.listening import showing
from ..session.passes import Show
from ..session.run import Session, Transaction
from ..storage.base import Checkpoint, Entry
from ..storage.formats import open_checkpoint
from ..storage.stored import blocks_of
from .replayed import Mismatch, Replay, check_same_inputs, told_replay, told_within
from .survey import stored

__all__ = ["against_checkpoint"]


@dataclass(frozen=True)
class _First(SameBits):
    """Where a has the bits of b; all others are off by one, so that the first of them is told."""

    def measure(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.xp.where(self.apply(k, a, b), 0.0, 1.0)


def against_checkpoint(
    known: Receipt, plan: Plan, options: Options, path: str, progress: Show | None, peers: Peers
) -> Replay:
    """What the plan makes is compared with a checkpoint while it is computed.

    Raises:
        SurgeryError: the inputs are not those of the receipt, or one of the checkpoints cannot be read.
    """
    graph = Graph()
    compiled = together(peers, lambda: compile_with(plan, StorageOutside(options), graph))
    check_same_inputs(known, compiled, peers)
    comparison = _Comparison(known, together(peers, lambda: open_checkpoint(path)), graph)
    session = Session(options, peers=peers, observers=showing(progress))
    (outcome,) = session.run([Transaction(comparison.of(compiled))])
    return told_replay(known, path, [*comparison.mismatches, *comparison.judge(outcome.findings)], None)


class _Comparison:
    """A plan that writes nothing and checks instead that a checkpoint holds what it would write."""

    def __init__(self, known: Receipt, other: Checkpoint, graph: Graph) -> None:
        self._known, self._other, self._graph = known, other, graph
        self._checks: dict[str, tuple[Check, Sink | None]] = {}
        self._nodes: dict[str, Node] = {}
        self.mismatches: list[Mismatch] = []

    def of(self, compiled: Compiled) -> Compiled:
        """The plan with checks in the place of its outputs, and what becomes of it once the data has answered."""
        self._checks, self.mismatches = {}, []
        saves = compiled.symbolic.saves
        if len(saves) <= self._known.number:
            raise StorageError("the plan writes no such output any more", where=str(self._known.path))
        self._nodes = dict(saves[self._known.number].tensors)
        for name in dict.fromkeys((*self._nodes, *self._other.entries)):
            node, entry = self._nodes.get(name), self._other.entries.get(name)
            if node is None or entry is None:
                what = "the plan makes no such tensor" if node is None else f"{self._other.path} has no such tensor"
                self.mismatches.append(Mismatch(name, what))
            elif node.spec != entry.spec:
                self.mismatches.append(Mismatch(name, f"{node.spec} from the plan, {entry.spec} in the checkpoint"))
            elif node.spec.dtype.array and node.spec.size:
                self._checks[name] = self._check(name, node, stored(self._graph, 0, name, entry))
            elif node.spec.size:
                self.mismatches += self._packed(name, node, entry)
        identities = {**compiled.symbolic.identities, **self._other.identities}
        checks = [*compiled.symbolic.checks, *(check for check, _ in self._checks.values())]
        sinks = [*compiled.symbolic.sinks, *(sink for _, sink in self._checks.values() if sink is not None)]
        symbolic = replace(compiled.symbolic, saves=(), checks=checks, sinks=sinks, identities=identities)
        again = compiled.again
        return Compiled(symbolic, (), None if again is None else lambda answers: self.of(again(answers)))

    def _check(self, name: str, node: Node, other: Node) -> tuple[Check, Sink | None]:
        """That a tensor has the same bits; of what may differ elsewhere, also how large its elements are."""
        if varying(node) is None:
            return Check(self._graph.apply(_First(), (node, other), None)[0], name), None
        return Check(self._graph.apply(SameBits(), (node, other), None)[0], name), Sink(node, "stat")

    def judge(self, findings: Mapping[Any, Any]) -> Iterator[Mismatch]:
        """The tensors whose bits differ."""
        for name, (check, sink) in self._checks.items():
            verdict = findings[check]
            if not verdict[0]:
                place, varies = list(verdict.place), varying(self._nodes[name])
                count = f"{verdict.num_off} of {check.node.spec.size} elements differ"
                if sink is None or varies is None:
                    yield Mismatch(name, f"{count}, first {place}", tuple(place))
                else:
                    largest = max(abs(findings[sink]["min"]), abs(findings[sink]["max"]))
                    is_within = verdict.worst <= varies.tolerance * largest
                    why = f"{count}, the most {place}{told_within(varies)}"
                    yield Mismatch(name, why, tuple(place), bool(is_within))

    def _packed(self, name: str, node: Node, entry: Entry) -> list[Mismatch]:
        """A tensor of a type that is only moved: its bytes are those of one that is stored."""
        kind = self._known.digest
        if isinstance(node.op, Source):
            kind = "sha256" if kind == "none" else kind
            known = tensor_digest(node.spec, blocks_of(node.op.entry), kind)
        else:
            known = self._known.table["tensors"].get(name, {}).get("digest", "")
        is_same = kind != "none" and tensor_digest(entry.spec, blocks_of(entry), kind) == known
        return [] if is_same else [Mismatch(name, "its elements differ, which are packed below a byte")]
