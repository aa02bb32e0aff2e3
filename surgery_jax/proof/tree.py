"""The digest of a tensor: the same whatever file, shard or format holds it, and in whatever order its bytes come.

The bytes are those of the elements in row-major order, little-endian, packed. They are cut into leaves of `LEAF` bytes,
the last one shorter; the digest is the hash of a line that says dtype and shape, and of the hash of every leaf. Hashes
are those of BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) or SHA-256, the same for both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Protocol

from ..core.errors import PlanError
from ..core.specs import Spec

__all__ = ["KINDS", "LEAF", "Hash", "hash_of", "kind_of", "num_leaves", "root_of", "tensor_digest"]

LEAF = 1 << 20  # bytes
KINDS = ("blake3", "sha256")


class Hash(Protocol):
    """A hash of bytes that come in order."""

    @property
    def digest_size(self) -> int:
        """Bytes of the digest."""

    def update(self, data: memoryview, /) -> object:
        """The next bytes."""

    def digest(self) -> bytes:
        """Of all so far."""

    def hexdigest(self) -> str:
        """The same in hexadecimal digits."""


def kind_of(wanted: str) -> str:
    """The kind of hash that an option stands for: `auto` is BLAKE3 where its package is there, which it is if this one
    was installed with what it needs.

    Raises:
        PlanError: there is no such kind.
    """
    if wanted == "auto":
        return "blake3" if find_spec("blake3") is not None else "sha256"
    if wanted not in (*KINDS, "none"):
        raise PlanError(
            f"unknown digest {wanted!r}", expected=f"auto, {', '.join(KINDS)}, or none to leave out those of tensors"
        )
    return wanted


def hash_of(kind: str) -> Callable[[bytes | memoryview], Hash]:
    """What begins a hash of this kind with some bytes.

    Raises:
        PlanError: its package is not installed.
    """
    if kind == "sha256":
        return hashlib.sha256
    try:
        from blake3 import blake3
    except ImportError:
        raise PlanError("the package blake3 is not installed", hint="pip install blake3, or --digest sha256") from None
    return blake3


def num_leaves(nbytes: int) -> int:
    """How many leaves so many bytes have."""
    return -(-nbytes // LEAF)


def root_of(spec: Spec, leaves: Sequence[bytes], kind: str) -> str:
    """The digest of a tensor, in hexadecimal digits, by the hashes of its leaves."""
    head = f"surgery_jax tensor 1 {spec.dtype.name} {','.join(map(str, spec.shape))}\n"
    return hash_of(kind)(head.encode() + b"".join(leaves)).hexdigest()


def tensor_digest(spec: Spec, blocks: Iterable[bytes | memoryview], kind: str) -> str:
    """The digest of a tensor whose bytes come in order, in blocks of any length."""
    begin = hash_of(kind)
    leaves: list[bytes] = []
    leaf, missing = begin(b""), LEAF
    for block in blocks:
        rest = memoryview(block)
        while rest.nbytes:
            part, rest = rest[:missing], rest[missing:]
            leaf.update(part)
            missing -= part.nbytes
            if not missing:
                leaves.append(leaf.digest())
                leaf, missing = begin(b""), LEAF
    if missing < LEAF:
        leaves.append(leaf.digest())
    return root_of(spec, leaves, kind)
