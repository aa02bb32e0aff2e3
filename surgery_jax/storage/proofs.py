"""The files that prove what a checkpoint is: they lie beside it and go with it, and no reader takes them for a part."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

__all__ = ["GIT", "PROOFS", "RECEIPT", "RECEIPT_SIGNATURE", "SIGNATURE", "TABLE", "is_of_git", "proofs_in"]

RECEIPT = "surgery.receipt.json"
TABLE = "surgery.tensors.json"
SIGNATURE = "model.sig"
RECEIPT_SIGNATURE = "surgery.receipt.sig"
PROOFS = (RECEIPT, TABLE, SIGNATURE, RECEIPT_SIGNATURE)
GIT = (".git", ".gitattributes", ".github", ".gitignore")  # of a repository that holds a checkpoint, and no part of it


def proofs_in(directory: Path) -> list[Path]:
    """Those that lie in a directory."""
    return [path for path in (directory / name for name in PROOFS) if path.exists()]


def is_of_git(name: str) -> bool:
    """Whether a file of a directory, by its name in it, is that of a repository of git: signing leaves these out."""
    return PurePosixPath(name).parts[:1] in [(part,) for part in GIT]
