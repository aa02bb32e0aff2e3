"""Plans run again from their receipts: on the same inputs they must make the same tensors, to the last bit."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import PlanError, StorageError, SurgeryError
from ..execute.options import Options
from ..graph.node import Node
from ..hosts.peers import ALONE, Peers
from ..language.document import giving_files
from ..language.plan import Plan
from ..proof.beside import find_receipt
from ..proof.differences import first_difference, varying
from ..proof.keeping import Proof, Receipts
from ..proof.receipt import Receipt
from ..proof.tree import tensor_digest
from ..session.compiled import Compiled
from ..session.listening import showing
from ..session.passes import Show
from ..session.run import Session, Transaction
from ..storage.base import Entry
from ..storage.choice import is_pattern
from ..storage.files import storage_error
from ..storage.formats import open_checkpoint, place_of_input
from ..storage.places.found import is_local, locate, place_of
from ..storage.stored import blocks_of
from .against import against_checkpoint
from .locked import plan_of_receipt
from .replayed import Mismatch, Replay, check_same_inputs, told_replay, told_within

__all__ = ["replay"]

_ELSEWHERE = "--output PATH has it built beside that path; --against CHECKPOINT compares that and writes nothing"


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
    known = find_receipt(receipt)
    options, shard = options or Options(), known.definition["internalParameters"].get("shardSize")
    shard = shard if isinstance(shard, str) else options.shard_size
    options = replace(options, receipt=False, receipt_path=None, sign=None, config_check=False, shard_size=shard)
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
        return against_checkpoint(known, plan, options, against, progress, peers)
    target = None if output is None else locate(output)
    with _hidden(known.path.parent if target is None else target.parent, peers) as folder:
        return _again(known, plan, options, folder, target, output, progress, peers)


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
            hint=_ELSEWHERE,
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
    there = next((path for path in (above, *above.absolute().parents) if path.exists()), above)  # or it is made there
    try:
        folder = tempfile.TemporaryDirectory(prefix=".surgery-replay-", dir=there)
    except OSError as error:
        refused = storage_error(error, above, "build what the plan makes there")
        refused.hint = _ELSEWHERE
        raise refused from None
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
    folder: Path,
    target: Path | None,
    output: str | None,
    progress: Show | None,
    peers: Peers,
) -> Replay:
    """In a hidden folder, but for what goes to a target."""
    comparing = _Comparing(known, options, peers)
    session = Session(options, peers=peers, observers=showing(progress), kept=[comparing])
    compiled = session.compile(plan)
    check_same_inputs(known, compiled, peers)
    if len(compiled.outputs) <= known.number:
        raise StorageError("the plan writes no such output any more", where=str(known.path))
    places = [str(folder / str(number)) for number in range(len(compiled.outputs))]
    if target is not None:
        places[known.number] = str(target)
    try:
        session.run([Transaction(_elsewhere(compiled, places))])
    except _Differs:
        output = None
    return told_replay(known, str(known.path), comparing.found, output)


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
    files = proof.table["files"]
    # without digests of tensors those of files tell; others in the directory then may have been there before
    names = known.table["documents"] if known.digest != "none" else dict.fromkeys((*known.table["documents"], *files))
    for name in names:
        if known.table["files"].get(name, {}).get("sha256") != files.get(name, {}).get("sha256"):
            what = "document" if name in known.table["documents"] else "file"
            yield Mismatch(name, f"the {what} has other bytes" if name in files else f"the plan makes no such {what}")


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
        return Mismatch(name, f"element {list(index)} is the first that differs{told_within(varies)}", index, is_within)
