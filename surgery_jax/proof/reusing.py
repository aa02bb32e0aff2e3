"""What an earlier output holds that a plan would make again: known by keys of what made its tensors and of what."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..compile.keys import ComputationKeys
from ..core.digests import digest, encoded
from ..core.errors import StorageError
from ..core.specs import format_bytes
from ..graph.node import Node, Source
from ..graph.roots import Symbolic
from ..storage.base import Checkpoint
from ..storage.formats import open_checkpoint, place_of_input
from ..storage.identity import Changed
from ..storage.places.found import is_local
from .environment import PACKAGES, device_kinds, kinds_told, versions
from .receipt import Receipt, read_receipt

__all__ = ["Earlier", "TakenOver", "TensorKeys", "check_taken", "read_earlier"]


class TensorKeys:
    """Keys of tensors: the operations that make each of them, with all their numbers, and the bytes of inputs that
    these start from, whatever their names and places are. `sums` are the SHA-256 of the files of inputs by path.

    What is made of no file, such as an array in memory, has another key each time, as has what is drawn without a seed.
    """

    def __init__(self, sums: Mapping[str, str]) -> None:
        self._sums = sums
        self._computations = ComputationKeys(self._stored)

    def of(self, node: Node) -> str:
        """The key of a version, in hexadecimal digits."""
        return self._computations.of(node).hex()

    def _stored(self, source: Source) -> bytes:
        extent, known = source.entry.extent, self._sums
        if extent is not None:
            ranges = list(extent.ranges(0, source.entry.spec.nbytes))
            if all(path in known for path, *_ in ranges):
                return digest(b"bytes", *(encoded((known[path], at, nbytes)) for path, at, nbytes in ranges))
        elif source.path and (files := sorted(self._files(place_of_input(source.path)))):
            return digest(b"decoded", encoded(source.name), encoded(files))
        return secrets.token_bytes(16)

    def _files(self, place: str) -> Iterator[tuple[str, str]]:
        """The files of a checkpoint, by their names in it."""
        for path, found in self._sums.items():
            if Path(path).is_relative_to(place):
                yield os.path.relpath(path, place), found


@dataclass(frozen=True)
class TakenOver:
    """What of a plan an earlier output has: for every save the names there of its tensors, by their own. `devices` made
    those of them that may differ between processors; empty if there are none."""

    names: Sequence[Mapping[str, str]]
    told: str
    devices: str = ""


@dataclass(frozen=True, eq=False)
class Earlier:
    """An earlier output and its receipt."""

    path: str
    receipt: Receipt
    checkpoint: Checkpoint

    @cached_property
    def _names(self) -> dict[str, str]:
        """The names of its tensors by their keys."""
        table = self.receipt.table["tensors"]
        return {
            facts["key"]: name
            for name, facts in table.items()
            if isinstance(facts.get("key"), str) and name in self.checkpoint.entries and self.digest(name)
        }

    def digest(self, name: str) -> str:
        """The digest of a tensor by its receipt; empty if that has none."""
        found = self.receipt.table["tensors"][name].get("digest")
        return found if isinstance(found, str) else ""

    def find(self, symbolic: Symbolic, sums: Mapping[str, str], kind: str) -> TakenOver:
        """Which tensors of a plan it has, of those that are not just copied from where they are stored. `kind` is that
        of the digests by which they will be proven."""
        why = self._unfit(kind)
        if why:
            return TakenOver([{} for _ in symbolic.saves], f"nothing is taken over from {self.path}: {why}")
        keys = TensorKeys(sums)
        wanted = nbytes = elsewhere = 0
        is_bound = False
        names: list[dict[str, str]] = []
        for save in symbolic.saves:
            names.append({})
            for name, node in save.tensors:
                if _is_copied(node):
                    continue
                wanted += 1
                there = self._names.get(keys.of(node), "")
                if not there or self.checkpoint.entries[there].spec != node.spec or not _is_ours(node):
                    continue
                varies = _varies(node)
                if varies and not self._is_same_machine:
                    elsewhere += 1
                    continue
                is_bound |= varies
                names[-1][name] = there
                nbytes += node.spec.nbytes
        count = f"{sum(map(len, names))} of {wanted} computed tensors"
        told = f"taken over from {self.path}: {count}, {format_bytes(nbytes)}"
        more = f"; {elsewhere} more may differ between processors, and another one made them" if elsewhere else ""
        return TakenOver(names, told + more, self.receipt.versions["devices"] if is_bound else "")

    def _unfit(self, kind: str) -> str:
        """Why nothing of it can be taken over; empty if something can."""
        now = versions(with_devices=False)
        unlike = [name for name in PACKAGES if self.receipt.versions.get(name) != now.get(name)]
        if unlike:
            return f"other versions of {', '.join(unlike)} made it"
        known = self.receipt.table["digest"]
        if known != kind and known != "none":
            return f"its receipt has digests of the kind {known}, and this one {kind}; --digest {known} takes over"
        return "" if self._names else "its receipt has no keys of tensors"

    @cached_property
    def _is_same_machine(self) -> bool:
        """Whether processor, kinds of devices and libraries of linear algebra are those that made it."""
        then, now = self.receipt.versions, versions(with_devices=False)

        def libraries(told: str) -> dict[str, str]:
            return dict(part.partition(": ")[::2] for part in told.split(", "))

        blas = libraries(now["blas"])
        return (
            then.get("processor") == now["processor"]
            and kinds_told(then.get("devices", "")) == device_kinds()
            and all(blas.get(name, found) == found for name, found in libraries(then.get("blas", "")).items())
        )


def _is_copied(node: Node) -> bool:
    """Whether a tensor is copied as it is from a file that is as near as an earlier output, so there is no gain."""
    if not isinstance(node.op, Source):
        return not node.spec.nbytes
    extent = node.op.entry.extent
    return extent is not None and all(map(is_local, {path for path, *_ in extent.ranges(0, node.spec.nbytes)}))


def _operations(node: Node) -> Iterator[object]:
    """All that a version comes from."""
    seen: set[Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current not in seen and not isinstance(current.op, Source):
            seen.add(current)
            stack += current.operands
            yield current.op


def _is_ours(node: Node) -> bool:
    """Whether all operations are of this package: of others a receipt says no versions."""
    return all(type(op).__module__.partition(".")[0] == __name__.partition(".")[0] for op in _operations(node))


def _varies(node: Node) -> bool:
    return any(getattr(op, "varies", None) is not None for op in _operations(node))


def read_earlier(path: str) -> Earlier:
    """An earlier output: a directory with its receipt, or a file, by the path of the receipt that lies beside it.

    Raises:
        StorageError: one of them cannot be read, or is not there.
    """
    receipt = read_receipt(path)
    if not receipt.output.exists():
        raise StorageError("the output of the receipt does not lie beside it", where=path, expected=str(receipt.output))
    return Earlier(path, receipt, open_checkpoint(str(receipt.output)))


def check_taken(expected: Mapping[str, str], found: Mapping[str, str], path: str) -> None:
    """Whether the tensors that were taken over from a path have the digests that its receipt says.

    Raises:
        Changed: one has not.
    """
    wrong = [name for name, known in expected.items() if found[name] != known]
    if wrong:
        raise Changed(
            f"{len(wrong)} of the tensors that were taken over are not what the receipt says",
            where=path,
            found=", ".join(wrong[:12]),
            hint=f"surgery-jax verify {path} tells more; run without --reuse",
        )
