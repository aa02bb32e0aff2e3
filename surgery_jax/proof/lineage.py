"""Where a checkpoint comes from: the chain of receipts, as far as they lie beside the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..core.errors import StorageError
from ..storage.places.found import locate, places
from ..storage.proofs import RECEIPT, RECEIPT_SIGNATURE
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
    place = locate(path)
    return _told(read_receipt(path), str(place if place.is_dir() else place.parent), "", verifier, ())


def _told(receipt: Receipt, path: str, alias: str, verifier: Verifier | None, below: tuple[bytes, ...]) -> Ancestor:
    if verifier is not None and verifier.verify(receipt.path.with_name(RECEIPT_SIGNATURE)) != receipt.raw:
        raise StorageError("the receipt is not the one that was signed", where=str(receipt.path))
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
    try:
        if not (folder / RECEIPT).is_file():
            return Ancestor(str(folder), alias, None, "", "no receipt lies beside it", False)
        receipt = read_receipt(str(folder))
    except StorageError as error:
        return Ancestor(str(folder), alias, None, "", str(error.problem), False)
    told = {str(folder / name): facts["sha256"] for name, facts in receipt.table["files"].items()}
    other = sorted(path for path, digest in known.items() if told.get(path) != digest)
    if other:
        end = f"its receipt is of another {Path(other[0]).name} than this one was made of"
        return Ancestor(str(folder), alias, receipt.root, receipt.finished, end, False)
    if receipt.raw in below or len(below) >= DEEPEST:
        return Ancestor(str(folder), alias, receipt.root, receipt.finished, "the chain turns back", False)
    return _told(receipt, str(folder), alias, verifier, below)


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
