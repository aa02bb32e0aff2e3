"""Plans run again from their receipts: on the same inputs they must make the same tensors, to the last bit."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..asserts.same_bits import SameBits
from ..core.errors import PlanError, StorageError, SurgeryError
from ..execute.options import Options
from ..graph.node import Graph, Node, Source
from ..graph.roots import Check, Sink
from ..hosts.peers import ALONE, Peers
from ..hosts.sharing import together
from ..kit.kernel import Array, Kernel
from ..kit.operations import Varies
from ..language.document import giving_files
from ..language.plan import Plan
from ..proof.differences import first_difference, suspects, varying
from ..proof.environment import versions
from ..proof.inputs import check_inputs
from ..proof.keeping import Proof, Receipts
from ..proof.receipt import Receipt, read_receipt
from ..proof.tree import tensor_digest
from ..session.compiled import Compiled, StorageOutside, compile_with
from ..session.listening import showing
from ..session.passes import Show
from ..session.run import Session, Transaction
from ..storage.base import Checkpoint, Entry
from ..storage.choice import is_pattern
from ..storage.files import storage_error
from ..storage.formats import open_checkpoint, place_of_input
from ..storage.places.found import is_local, locate, place_of
from ..storage.stored import blocks_of
from .locked import plan_of_receipt
from .survey import stored

__all__ = ["Mismatch", "Replay", "replay"]


@dataclass(frozen=True)
class Mismatch:
    """A tensor that is not what the plan makes. why: what differs. index: of the first element that does, if it is
    known; within: whether it is within what its operations may differ by between processors."""

    name: str
    why: str
    index: tuple[int, ...] | None = None
    within: bool = False


@dataclass(frozen=True)
class Replay:
    """What came of a replay. compared: the receipt, or the checkpoint that it was compared with. suspects: what differs
    between then and now that results may depend on."""

    receipt: str
    compared: str
    num_tensors: int
    mismatches: tuple[Mismatch, ...]
    suspects: tuple[str, ...] = ()
    output: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every tensor is the same, or as near as its operations promise."""
        return all(mismatch.within for mismatch in self.mismatches)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"holds": self.holds}


def replay(
    receipt: str,
    options: Options | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    output: str | None = None,
    against: str | None = None,
    progress: Show | None = None,
    peers: Peers = ALONE,
) -> Replay:
    """Run the plan of a receipt again, and compare every tensor with what the receipt says of it.

    inputs: other places of its inputs, by alias. output: where the result goes, if it is right; otherwise it is built
    in a hidden place and removed. against: a checkpoint to compare with what the plan makes; nothing is written then.
    peers: processes that share the work; the first of them tells what differs.

    Raises:
        SurgeryError: the receipt cannot be read, inputs are not those of the receipt, or the plan fails; in the other
            processes also that something differs from the receipt.
    """
    known = read_receipt(receipt)
    options = replace(options or Options(), receipt=False, receipt_path=None, sign=None)
    with giving_files(known.plan_files):
        return _replayed(known, options, inputs or {}, output, against, progress, peers)


def _replayed(
    known: Receipt,
    options: Options,
    inputs: Mapping[str, str],
    output: str | None,
    against: str | None,
    progress: Show | None,
    peers: Peers,
) -> Replay:
    plan = plan_of_receipt(known, inputs)
    for entry in plan.inputs:
        _check_there(entry.alias, locate(place_of_input(entry.path)))
    if against is not None:
        if output is not None:
            raise PlanError("--output and --against contradict each other", hint="against writes nothing")
        return _against(known, plan, options, against, progress, peers)
    if output is not None:
        return _again(known, plan, options, locate(output), output, progress, peers)
    with _hidden(known.path.parent, peers) as folder:
        return _again(known, plan, options, folder / "output", None, progress, peers)


def _check_there(alias: str, place: Path) -> None:
    """Whether an input lies where a receipt or whoever replays it says, as far as that is one path.

    Raises:
        StorageError: it does not.
    """
    if is_local(place) and not is_pattern(str(place)) and not place.exists():
        raise StorageError(
            f"the input {alias} does not exist",
            where=str(place),
            hint=f"--input {alias}=PATH says where it lies now; relative paths mean the working directory",
        )


# --------------------------------------------------------------------------------------------------- made once more


@contextmanager
def _hidden(above: Path, peers: Peers) -> Iterator[Path]:
    """A hidden directory that the first of the processes makes and removes when it leaves it.

    Raises:
        StorageError: there cannot be one.
    """
    if peers.rank:
        yield locate(peers.share().decode())
        return
    with _made(above) as folder:
        peers.share(str(folder).encode())
        yield folder


@contextmanager
def _made(above: Path) -> Iterator[Path]:
    """A hidden directory, until it is left.

    Raises:
        StorageError: there cannot be one.
    """
    place = place_of(str(above))
    if not place.is_writable:
        raise StorageError(
            f"a replay is built beside the receipt, and {place.scheme}:// can only be read",
            where=str(above),
            hint=f"--against {above} compares what the plan makes with that and writes nothing; or give an --output",
        )
    if not is_local(above):
        remote = above / f".surgery-replay-{secrets.token_hex(4)}"
        try:
            yield remote
        finally:
            with _told_of(remote):
                for name in place.below(str(remote)):
                    place.remove(f"{remote}/{name}")
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix=".surgery-replay-", dir=above)
    except OSError as error:
        raise storage_error(error, above, "build what the plan makes there") from None
    with folder as path:
        yield Path(path)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, "remove what was built there") from None


def _elsewhere(compiled: Compiled, places: Sequence[str]) -> Compiled:
    """A plan that writes its outputs to other places, and goes on to do so when the data has answered its questions."""
    outputs = [
        (replace(output, path=path), layout) for (output, layout), path in zip(compiled.outputs, places, strict=True)
    ]
    again = compiled.again
    more = None if again is None else lambda answers: _elsewhere(again(answers), places)
    return Compiled(compiled.symbolic, outputs, more)


class _Comparing(Receipts):
    """Finds the digests of what is written, and compares them with those of a receipt before anything appears."""

    def __init__(self, known: Receipt, options: Options, peers: Peers) -> None:
        super().__init__(replace(options, digest=known.digest), peers, lambda what: None)
        self.known = known
        self.found: list[Mismatch] = []

    def wants(self, number: int, is_directory: bool) -> bool:
        return number == self.known.number

    def keep(self, proof: Proof) -> None:
        """Raises _Differs: something is not what the receipt says, so it must not appear."""
        self.found = [*_mismatches(self.known, proof)]
        if any(not mismatch.within for mismatch in self.found):
            raise _Differs("the output is not what the receipt says", where=str(self.known.path))


class _Differs(SurgeryError):
    """What was made is not what the receipt says: an error for other processes, which do not know more."""

    exit_code = 1


def _again(
    known: Receipt,
    plan: Plan,
    options: Options,
    target: Path,
    output: str | None,
    progress: Show | None,
    peers: Peers,
) -> Replay:
    comparing = _Comparing(known, options, peers)
    session = Session(options, peers=peers, observers=showing(progress), kept=[comparing])
    compiled = session.compile(plan)
    _check_inputs(known, compiled, peers)
    if len(compiled.outputs) <= known.number:
        raise StorageError("the plan writes no such output any more", where=str(known.path))
    with _hidden(known.path.parent, peers) as rest:
        places = [str(rest / str(number)) for number in range(len(compiled.outputs))]
        places[known.number] = str(target)
        try:
            session.run([Transaction(_elsewhere(compiled, places))])
        except _Differs:
            output = None
    return _told(known, str(known.path), comparing.found, output)


def _check_inputs(known: Receipt, compiled: Compiled, peers: Peers) -> None:
    """Whether the inputs are those of a receipt, as the first of the processes finds.

    Raises:
        SurgeryError: they are not.
    """

    def checked() -> bool:
        if not peers.rank:
            check_inputs(known, compiled.symbolic)
        return True

    together(peers, checked)


def _told(known: Receipt, compared: str, found: Sequence[Mismatch], output: str | None) -> Replay:
    now = versions(with_devices=known.versions.get("devices", "none") != "none") if found else {}
    causes = tuple(suspects(known.versions, now)) if found else ()
    return Replay(str(known.path), compared, len(known.table["tensors"]), tuple(found), causes, output)


def _mismatches(known: Receipt, proof: Proof) -> Iterator[Mismatch]:
    """What differs between the output that is built and what the receipt says."""
    then, now = known.table["tensors"], proof.table["tensors"]
    nodes = dict(proof.output.save.tensors)
    originals = _Originals(known)
    for name in dict.fromkeys((*then, *now)):
        if name not in now or name not in then:
            yield Mismatch(
                name, "the plan makes no such tensor" if name not in now else "the receipt has no such tensor"
            )
        elif (then[name]["dtype"], then[name]["shape"]) != (now[name]["dtype"], now[name]["shape"]):
            yield Mismatch(name, f"{_spec_of(then[name])} then, {_spec_of(now[name])} now")
        elif then[name].get("digest") != now[name].get("digest"):
            yield originals.compare(name, nodes[name], proof.output.staging.root)
    for name in known.table["documents"]:
        files = proof.table["files"]
        if known.table["files"].get(name, {}).get("sha256") != files.get(name, {}).get("sha256"):
            yield Mismatch(name, "the document has other bytes" if name in files else "the plan makes no such document")


def _spec_of(facts: Mapping[str, Any]) -> str:
    return f"{facts['dtype']}{facts['shape']}"


class _Originals:
    """What a receipt was written for, if it still lies beside it: digests tell that tensors differ, and this where."""

    def __init__(self, known: Receipt) -> None:
        self._known = known
        self._made: dict[str, Entry] | None = None
        try:
            self._entries = dict(open_checkpoint(str(known.output)).entries)
        except StorageError:
            self._entries = {}

    def compare(self, name: str, node: Node, root: Path) -> Mismatch:
        """A tensor whose digest differs."""
        why = "its elements differ; the original does not lie beside the receipt, so there is no telling which"
        entry, facts = self._entries.get(name), self._known.table["tensors"][name]
        if entry is None or tensor_digest(entry.spec, blocks_of(entry), self._known.digest) != facts["digest"]:
            return Mismatch(name, why)
        if self._made is None:
            self._made = dict(open_checkpoint(str(root)).entries)
        varies = varying(node)
        index, is_within = first_difference(entry, self._made[name], varies.tolerance if varies is not None else 0.0)
        return Mismatch(
            name, f"element {list(index)} is the first that differs{_told_within(varies)}", index, is_within
        )


# ------------------------------------------------------------------------------------------------ compared as it is


@dataclass(frozen=True)
class _First(SameBits):
    """Where a has the bits of b; all others are off by one, so that the first of them is told."""

    def measure(self, k: Kernel, a: Array, b: Array) -> Array:
        return k.xp.where(self.apply(k, a, b), 0.0, 1.0)


def _told_within(varies: Varies | None) -> str:
    return "" if varies is None else f"; {varies.why}: by {varies.tolerance:g} of the largest magnitude at most"


def _against(known: Receipt, plan: Plan, options: Options, path: str, progress: Show | None, peers: Peers) -> Replay:
    """What the plan makes is compared with a checkpoint while it is computed."""
    graph = Graph()
    compiled = together(peers, lambda: compile_with(plan, StorageOutside(options), graph))
    _check_inputs(known, compiled, peers)
    comparison = _Comparison(known, together(peers, lambda: open_checkpoint(path)), graph)
    session = Session(options, peers=peers, observers=showing(progress))
    (outcome,) = session.run([Transaction(comparison.of(compiled))])
    return _told(known, path, [*comparison.mismatches, *comparison.judge(outcome.findings)], None)


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
                    why = f"{count}, the most {place}{_told_within(varies)}"
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
