"""The files that prove what a checkpoint is: they lie beside it and go with it, and no reader takes them for a part."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PROOFS", "RECEIPT", "RECEIPT_SIGNATURE", "SIGNATURE", "TABLE", "proofs_in"]

RECEIPT = "surgery.receipt.json"
TABLE = "surgery.tensors.json"
SIGNATURE = "model.sig"
RECEIPT_SIGNATURE = "surgery.receipt.sig"
PROOFS = (RECEIPT, TABLE, SIGNATURE, RECEIPT_SIGNATURE)


def proofs_in(directory: Path) -> list[Path]:
    """Those that lie in a directory."""
    return [path for path in (directory / name for name in PROOFS) if path.exists()]
