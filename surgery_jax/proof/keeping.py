"""Writes the receipts of a session: digests are found while bytes pass, and what they prove lies beside the outputs."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import PlanError, StorageError, listing
from ..execute.observers import Appearing, Observer, Pass
from ..execute.options import Options
from ..graph.roots import Assertion, Save, Symbolic
from ..hosts.peers import Peers
from ..language.plan import Plan
from ..language.writing import plan_text
from ..storage.files import check_new_file, write_whole
from ..storage.places.found import is_local, locate
from ..storage.proofs import RECEIPT, RECEIPT_SIGNATURE, SIGNATURE, TABLE
from .environment import versions
from .inputs import InputDigests, marks_of, names_of
from .passing import OutputDigests
from .receipt import Facts, comparable, is_left_table, table_path
from .reusing import TensorKeys, check_taken
from .rolling import FileDigest
from .signing import Signer
from .table import table_of, table_text
from .tree import kind_of

if TYPE_CHECKING:
    from ..io.outputs import Written
    from ..storage.publish import Staging

__all__ = ["Proof", "Receipts", "as_json", "placeless"]


@dataclass(eq=False)
class _ReceiptOutput:
    """One output that gets a receipt: in its directory, or at a path of its own."""

    save: Save
    number: int  # of the save among those of the plan
    staging: Staging
    digests: OutputDigests
    path: str | None  # of a receipt beside that in a directory
    texts: dict[str, bytes] = field(default_factory=dict)  # by path, of what is written when the output has appeared
    known: list[tuple[str, FileDigest, tuple[int, ...]]] = field(default_factory=list)  # its files, and their marks


@dataclass(frozen=True, eq=False)
class Proof:
    """What is known of one output that is complete: its table, the digests of inputs with the offsets of their marks,
    and the paths of inputs, by their names."""

    symbolic: Symbolic
    output: _ReceiptOutput
    table: dict[str, Any]
    inputs: Mapping[str, tuple[FileDigest, tuple[int, ...]]]
    paths: Mapping[str, str]


class Receipts(Observer):
    """Hears what is written, and writes a receipt for every output that is a directory, and for the output of the plan
    if a path for it is given. Of several processes each hears what it writes itself, and process 0 writes the receipts.
    `tell` is told what is written beside the outputs."""

    def __init__(self, options: Options, peers: Peers, tell: Callable[[Written], object]) -> None:
        """Raises PlanError: the options do not go together, or the key for signing cannot be used."""
        self._options = options
        self._kind = kind_of(options.digest)
        self._peers = peers
        self._tell = tell
        self._signer = Signer(options.sign) if options.sign and not peers.rank else None
        self._began = _now()
        self._outputs: dict[str, _ReceiptOutput] = {}  # by the place of each of its files
        self._plans: dict[int, list[_ReceiptOutput]] = {}  # by the identity of what was compiled
        self._settled: dict[int, tuple[bool, str]] = {}
        self._inputs = InputDigests()
        self._needs_device = False
        self._taken: dict[Save, tuple[str, Mapping[str, str]]] = {}
        self._made_by = ""

    @property
    def kind(self) -> str:
        """The kind of digests of tensors."""
        return self._kind

    def sums(self, symbolic: Symbolic) -> dict[str, str]:
        """The SHA-256 of every file that a plan reads, by path.

        Raises:
            StorageError: one cannot be read, or is not what it was.
        """
        self._inputs.begin(symbolic.identities, marks_of(symbolic))
        return {path: self._inputs.of(path).sha256 for path in symbolic.identities}

    def expect(self, save: Save, path: str, digests: Mapping[str, str], *, made_by: str) -> None:
        """Tensors of an output, by name, are taken over from an earlier one, where they have these digests; `made_by`
        are the devices, of kinds that are here too, that made those which may differ between processors."""
        if digests:
            self._taken[save] = path, digests
            self._made_by = self._made_by or made_by

    # -- while the bytes pass -----------------------------------------------------------------------------------

    def staged(self, plan: Appearing) -> None:
        symbolic = plan.symbolic
        found = []
        for number, (save, staging) in enumerate(zip(symbolic.saves, plan.stagings, strict=False)):
            path = self._options.receipt_path if number == len(symbolic.saves) - 1 else None
            if path is not None and not self._peers.rank:
                self._check_place(path, plan)
            if path is None and save not in self._taken and not self.wants(number, staging.plan.is_directory):
                continue
            specs = {name: node.spec for name, node in save.tensors}
            digests = OutputDigests(staging, specs, self._kind, self._peers.size)
            found.append(_ReceiptOutput(save, number, staging, digests, path))
        if self._options.sign:
            _check_signed(found)
        self._plans[id(symbolic)] = found
        self._outputs |= {place: output for output in found for place in output.digests.numbers}
        if found and not self._peers.rank:
            self._inputs.begin(symbolic.identities, marks_of(symbolic))

    def _check_place(self, path: str, plan: Appearing) -> None:
        """Whether a receipt can be written to a path of its own, and its table beside it.

        Raises:
            StorageError: they cannot, or would replace what the plan reads or writes.
        """
        taken = {os.path.realpath(read) for read in plan.symbolic.identities}
        outputs = [os.path.realpath(output) for output in plan.paths]
        for file in (path, table := str(table_path(locate(path)))):
            real = os.path.realpath(file)
            if real in taken or any(Path(real).is_relative_to(output) for output in outputs):
                raise StorageError(
                    "the receipt would replace what the plan reads or writes", where=file, hint="name another file"
                )
            # a run that was killed had written the table, and not yet the receipt
            is_left = self._options.resume and file == table and is_left_table(locate(path))
            check_new_file(file, self._options.overwrite or is_left)

    def pass_begins(self, work: Pass) -> None:
        self._needs_device |= work.schedule.program.needs_device

    def written(self, what: Written) -> None:
        output = self._outputs.get(what.place)
        if output is not None:
            output.digests.written(what)

    def encoding(self, what: Written) -> None:
        output = self._outputs.get(what.place)
        if output is not None:
            output.digests.raw(what)

    def gather(self) -> None:
        """Of several processes, process 0 learns what the others have heard; all call it once everything is written.

        Raises:
            SurgeryError: a file cannot be read, or another process failed.
        """
        if self._peers.size == 1:
            return
        for output in [output for outputs in self._plans.values() for output in outputs]:
            messages = self._peers.gather(output.digests.tell(self._peers.rank))
            for message in messages:
                output.digests.hear(message)

    def settled(self, assertion: Assertion, holds: bool, why: str) -> None:
        self._settled[id(assertion)] = holds, why

    # -- when all is there --------------------------------------------------------------------------------------

    def completed(self, plan: Appearing) -> None:
        for output in self._plans.get(id(plan.symbolic), ()):
            self._write(plan.symbolic, output)

    def _write(self, symbolic: Symbolic, output: _ReceiptOutput) -> None:
        if not output.staging.is_on_disk:
            self.sums(symbolic)  # before anything is read back, with which a file appears where an input may lie
        files = output.digests.files()
        output.known = [*output.digests.known()]
        tensors = output.digests.tensors() if self._kind != "none" else None
        if tensors is not None and output.save in self._taken:
            path, expected = self._taken[output.save]
            check_taken(expected, tensors, path)
        keys = TensorKeys(self.sums(symbolic))
        named = {name: keys.of(node) for name, node in output.save.tensors} if tensors is not None else {}
        inputs, paths = self._dependencies(symbolic)
        table = table_of(symbolic, output.save, self._kind, tensors, named, files, inputs, self._assertions(symbolic))
        self.keep(Proof(symbolic, output, table, inputs, paths))

    def wants(self, number: int, is_directory: bool) -> bool:
        """Whether an output gets a receipt although no path is given for it; `number` is that of its save."""
        return is_directory

    def keep(self, proof: Proof) -> None:
        """Put the receipt, its table and signatures beside an output, or keep what is written when it has appeared."""
        plan, output, text = proof.symbolic.plan, proof.output, table_text(proof.table)
        assert plan is not None
        name = locate(output.staging.plan.path).absolute().name
        sums = {file: found.sha256 for file, (found, _) in proof.inputs.items()}
        facts = Facts(
            name,
            {file: told["sha256"] for file, told in proof.table["files"].items()},
            self._definition(plan, proof),
            self._versions(),
            {"invocationId": uuid.uuid4().urn, "startedOn": self._began, "finishedOn": _now()},
            comparable(plan_text(placeless(plan)), sums, proof.table),
        )
        if output.path is not None:
            beside = table_path(locate(output.path))
            output.texts = {str(beside): text, output.path: facts.receipt(text, beside.name)}
        if output.staging.plan.is_directory:
            from ..io.outputs import Written  # with NumPy, which what only checks a plan does without

            receipt = facts.receipt(text, TABLE)
            added = {RECEIPT: receipt, TABLE: text}
            if self._signer is not None:
                added[SIGNATURE] = self._signer.sign_files(name, facts.files)
                added[RECEIPT_SIGNATURE] = self._signer.sign(receipt)
            for file, content in added.items():
                place = output.staging.add(file, content.decode())
                path = str(locate(output.staging.plan.path) / file)
                self._tell(Written(path, place, 0, len(content), content))

    def _versions(self) -> dict[str, str]:
        """Of what computed, here or before."""
        found = versions(with_devices=self._needs_device)
        return found if self._needs_device or not self._made_by else found | {"devices": self._made_by}

    def appeared(self, plan: Appearing) -> None:
        for output in self._plans.pop(id(plan.symbolic), ()):
            for path, text in output.texts.items():
                write_whole(path, text.decode())
            for path, digest, marks in output.known:
                self._inputs.remember(path, digest, marks)  # another plan may read it

    def end(self) -> None:
        """What was at work has ended, whatever came of it."""
        self._inputs.close()
        self._inputs = InputDigests(self._inputs)
        self._plans.clear()
        self._outputs.clear()
        self._settled.clear()
        self._taken.clear()

    # -- what the receipt says ----------------------------------------------------------------------------------

    def _assertions(self, symbolic: Symbolic) -> list[dict[str, Any]]:
        found = []
        for assertion in symbolic.assertions:
            holds, why = self._settled.get(id(assertion), (True, ""))
            found.append({"assertion": assertion.text, "holds": holds, "measured": why})
        return found

    def _dependencies(self, symbolic: Symbolic) -> tuple[dict[str, tuple[FileDigest, tuple[int, ...]]], dict[str, str]]:
        """The digests of the files of inputs with the offsets of their marks, and their paths, by name."""
        assert symbolic.plan is not None
        names, marks = names_of(symbolic.plan, symbolic.identities), marks_of(symbolic)
        found, paths = {}, {}
        for path in symbolic.identities:
            for name in names[path]:
                found[name] = self._inputs.of(path), marks.get(path, ())
                paths[name] = path
        return found, paths

    def _definition(self, plan: Plan, proof: Proof) -> dict[str, Any]:
        options, origin, expanded = self._options, plan.origin, plan_text(plan)
        dependencies = [
            _dependency(name, proof.paths[name], found.sha256, "input", found.size)
            for name, (found, _) in proof.inputs.items()
        ]
        for path, text in origin.files.items():
            raw = text.encode()
            dependencies.append(_dependency(path, path, sha256(raw).hexdigest(), "plan", len(raw)))
        return {
            "externalParameters": {
                "plan": dict(origin.files) or expanded,
                "overrides": list(origin.overrides),
                "parameters": as_json(origin.parameters),
            },
            "internalParameters": {
                "plan": expanded,
                "output": proof.output.number,
                "memory": options.memory,
                "deviceMemory": options.device_memory,
                "workers": options.num_workers,
                "devices": options.devices,
                "hosts": self._peers.size,
                "shardSize": options.shard_size,
                "numerics": "exact",
            },
            "resolvedDependencies": dependencies,
        }


def _check_signed(outputs: Sequence[_ReceiptOutput]) -> None:
    """Whether a manifest can tell all of what will lie in the outputs.

    Raises:
        PlanError: no output is a directory, or a symbolic link stays in one, which others refuse to verify.
        StorageError: a directory cannot be read.
    """
    directories = [output.staging for output in outputs if output.staging.plan.is_directory]
    if not directories:
        raise PlanError("signing needs an output that is a directory", hint="leave out --sign")
    for staging in directories:
        if links := staging.links():
            raise PlanError(
                "a signature covers no symbolic links, and some stay beside the output",
                where=staging.plan.path,
                found=listing(links),
                hint="put files in their place, or write to another directory",
            )


def _dependency(name: str, path: str, sha256: str, kind: str, size: int) -> dict[str, Any]:
    place = locate(path)
    uri = place.absolute().as_uri() if is_local(place) else path
    return {"name": name, "uri": uri, "digest": {"sha256": sha256}, "annotations": {"kind": kind, "size": size}}


def placeless(plan: Plan) -> Plan:
    """A plan whose inputs and output could be anywhere."""
    inputs = tuple(replace(entry, path=f"<{entry.alias}>") for entry in plan.inputs)
    return replace(plan, inputs=inputs, output=plan.output and replace(plan.output, path="<output>", shard=None))


def as_json(value: Any) -> Any:
    """A value of a parameter as JSON has it; what it has no word for is text."""
    if isinstance(value, Mapping):
        return {str(key): as_json(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    is_json = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_json else str(value)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
