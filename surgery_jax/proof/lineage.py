"""Where a checkpoint comes from: the chain of receipts, as far as they lie beside the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..core.errors import StorageError
from ..storage.places.found import locate, places
from ..storage.proofs import RECEIPT
from .beside import find_receipt, paths_of, receipts_beside
from .receipt import Receipt, read_receipt
from .signing import Verifier

__all__ = ["Ancestor", "lineage"]

DEEPEST = 100  # receipts in a chain


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint of a chain. alias: what its child calls it. root: the digest of its files, where a receipt tells.
    end: why the chain ends here, empty where it goes on. signed: with the key that was given."""

    path: str
    alias: str
    root: str | None
    made: str
    end: str
    signed: bool
    parents: tuple[Ancestor, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        told = {name: getattr(self, name) for name in ("path", "alias", "root", "made", "end", "signed")}
        return told | {"parents": [parent.as_json() for parent in self.parents]}


def lineage(path: str, public_key: str | None = None) -> Ancestor:
    """The chain of a checkpoint, by the receipt beside it. Each link is proven: the digests that a receipt has of its
    inputs are those that the receipt beside them has of its output. With `public_key` each must be signed.

    Raises:
        StorageError: the first receipt cannot be read, or one is not signed with that key.
        PlanError: the key cannot be used.
    """
    verifier = Verifier(public_key) if public_key is not None else None
    receipt = find_receipt(path)
    return _told(receipt, path if locate(path).is_dir() else str(receipt.output), "", verifier, ())


def _told(receipt: Receipt, path: str, alias: str, verifier: Verifier | None, below: tuple[bytes, ...]) -> Ancestor:
    if verifier is not None:
        verifier.check_receipt(receipt)
    below = (*below, receipt.raw)
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, entry in receipt.inputs.items():
        groups.setdefault(name.partition("/")[0] if not name.startswith("/") else name, {})[name] = entry
    parents = tuple(_parent(name, entries, verifier, below) for name, entries in groups.items())
    return Ancestor(path, alias, receipt.root, receipt.finished, "", verifier is not None, parents)


def _parent(
    alias: str, entries: Mapping[str, Mapping[str, Any]], verifier: Verifier | None, below: tuple[bytes, ...]
) -> Ancestor:
    """What lies where an input was."""
    known = {_path(entry["uri"]): entry["digest"]["sha256"] for entry in entries.values()}
    folder = min((locate(path).parent for path in known if path), key=lambda path: len(path.parts), default=None)
    if folder is None:
        return Ancestor(next(iter(entries.values()))["uri"], alias, None, "", "no place is known for it", False)
    path, receipts = str(folder), []
    file = _path(entries[alias]["uri"]) if alias in entries else ""
    if file and (found := [*receipts_beside(locate(file))]):
        path, receipts, known = file, found, {file: known[file]}
    try:
        if not receipts and not (folder / RECEIPT).is_file():
            path = file or path
            end = "no receipt lies beside it" if locate(path).exists() else "it is not there any more"
            return Ancestor(path, alias, None, "", end, False)
        receipts = receipts or [read_receipt(path)]
        others = [_other(known, receipt) for receipt in receipts]
    except StorageError as error:
        end = f"{Path(str(error.where)).name}: {error.problem}"  # of the receipt, or of its table
        return Ancestor(path, alias, None, "", end, False)
    # of several receipts of a file, which was made again and again, one may be of what was read
    receipt, other = min(zip(receipts, others, strict=True), key=lambda told: told[1])
    if other:
        end = f"its receipt is of another {Path(other).name} than this one was made of"
        return Ancestor(path, alias, receipt.root, receipt.finished, end, False)
    if receipt.raw in below or len(below) >= DEEPEST:
        return Ancestor(path, alias, receipt.root, receipt.finished, "the chain turns back", False)
    return _told(receipt, path, alias, verifier, below)


def _other(known: Mapping[str, str], receipt: Receipt) -> str:
    """The first of these files, with their digests, that is not as a receipt says; empty if all are.

    Raises:
        StorageError: the receipt is of an output that is elsewhere.
    """
    told = paths_of(receipt)
    return min((path for path, digest in known.items() if told.get(path) != digest), default="")


def _path(uri: str) -> str:
    """The path of a file, empty if it is at no place that is known."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return ""
    if parts.scheme in places():
        return uri
    path = unquote(parts.path)
    return path if parts.scheme == "file" and "\0" not in path else ""
