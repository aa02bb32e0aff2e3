"""Finding the receipt of a checkpoint: in its directory, or beside a file, under whatever name that was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..core.errors import StorageError
from ..storage.places.found import is_local, locate
from ..storage.proofs import RECEIPT
from .receipt import STATEMENT_TYPE, Receipt, read_receipt

__all__ = ["find_receipt", "paths_of", "receipts_beside"]

_HEAD = 256  # bytes, in which a receipt says that it is a statement


def find_receipt(path: str) -> Receipt:
    """The receipt at a path, or that of the checkpoint there: in its directory; of a file the last one that was made
    of those beside it which name it, or else that of the directory in which it lies.

    Raises:
        StorageError: there is none, or it cannot be read.
    """
    place = locate(path)
    if not place.is_file() or (is_local(place) and _is_statement(place)):
        return read_receipt(path)
    found = max(receipts_beside(place), key=lambda receipt: receipt.finished, default=None)
    if found is None and not (place.parent / RECEIPT).exists():
        raise StorageError(
            "it is no receipt, and none lies beside it",
            where=path,
            hint="a receipt lies in the directory that it is of, or where --receipt wrote it",
        )
    return found if found is not None else read_receipt(str(place.parent))


def receipts_beside(file: Path) -> Iterator[Receipt]:
    """The receipts in the folder of a file that are of this file."""
    if not is_local(file):
        return
    with suppress(OSError):
        for path in sorted(file.absolute().parent.glob("*.json")):
            if path.name != RECEIPT and _is_statement(path):
                with suppress(StorageError):  # somebody else's, or without its table
                    receipt = read_receipt(str(path))
                    if receipt.name == file.name and set(receipt.table["files"]) == {"."}:
                        yield receipt


def paths_of(receipt: Receipt) -> dict[str, str]:
    """The SHA-256 of the files of an output, by path, if neither it nor its receipt was moved.

    Raises:
        StorageError: the receipt gives the output a name that leads elsewhere.
    """
    output, files = receipt.output, receipt.table["files"]
    return {str(output if name == "." else output / name): facts["sha256"] for name, facts in files.items()}


def _is_statement(path: Path) -> bool:
    """Whether a file begins as a statement of in-toto does, so that not every JSON file is read as a whole."""
    try:
        with path.open("rb") as stream:
            return STATEMENT_TYPE.encode() in stream.read(_HEAD)
    except OSError:
        return False
