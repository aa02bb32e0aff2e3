"""The digest of a tensor: the same whatever file, shard or format holds it, and in whatever order its bytes come.

The bytes are those of the elements in row-major order, little-endian, packed. They are cut into leaves of `LEAF` bytes,
the last one shorter; the digest is the SHA-256 of a line that says dtype and shape, and of the SHA-256 of every leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ..core.specs import Spec

__all__ = ["LEAF", "num_leaves", "root_of", "tensor_digest"]

LEAF = 1 << 20  # bytes


def num_leaves(nbytes: int) -> int:
    """How many leaves so many bytes have."""
    return -(-nbytes // LEAF)


def root_of(spec: Spec, leaves: Sequence[bytes]) -> str:
    """The digest of a tensor, in hexadecimal digits, by the SHA-256 of its leaves."""
    head = f"surgery_jax tensor 1 {spec.dtype.name} {','.join(map(str, spec.shape))}\n"
    return hashlib.sha256(head.encode() + b"".join(leaves)).hexdigest()


def tensor_digest(spec: Spec, blocks: Iterable[bytes | memoryview]) -> str:
    """The digest of a tensor whose bytes come in order, in blocks of any length."""
    leaves: list[bytes] = []
    leaf, missing = hashlib.sha256(), LEAF
    for block in blocks:
        rest = memoryview(block)
        while rest.nbytes:
            part, rest = rest[:missing], rest[missing:]
            leaf.update(part)
            missing -= part.nbytes
            if not missing:
                leaves.append(leaf.digest())
                leaf, missing = hashlib.sha256(), LEAF
    if missing < LEAF:
        leaves.append(leaf.digest())
    return root_of(spec, leaves)
