"""Key-value stores of TensorStore (OCDBT): a tree of keys whose values lie in any files, at any place of these.

TensorStore's own driver puts values where it likes, and so would have to be handed every byte. The format lets them be
anywhere: so the engine writes values like any other bytes, and only the tree is made here, as TensorStore's documents
describe it: https://google.github.io/tensorstore/kvstore/ocdbt/index.html#storage-format
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from .checksums import crc32c

__all__ = ["PlacedValue", "encode_store"]

_MANIFEST, _NODE = 0x0CDB3A2A, 0x0CDB20DE
_MAX_NODE, _MAX_INLINE = 100_000_000, 1024  # bytes, as Orbax has them
_ENTRIES = 4096  # of a node
_ARITY_LOG2 = 4  # of the tree of versions, which has but one
_TIME = 1  # of the only version, in nanoseconds: what is written depends on no clock


class PlacedValue(NamedTuple):
    """Where a value lies that is not in the tree itself."""

    file: str
    offset: int
    nbytes: int


class _TreeNode(NamedTuple):
    """A node in the file of nodes: its first key, and what is told of all that is below it."""

    key: bytes
    offset: int
    nbytes: int
    num_keys: int
    tree_bytes: int
    value_bytes: int


_NOWHERE = _TreeNode(b"", (1 << 64) - 1, (1 << 64) - 1, 0, 0, 0)  # the root of a tree without keys


def encode_store(entries: Mapping[str, bytes | PlacedValue], nodes: str) -> tuple[bytes, bytes]:
    """The manifest of a store, and the file of the nodes of its tree, which will be called `nodes`; that name and those
    of the values' files are relative to the store."""
    rows = sorted((key.encode("utf-8", "surrogateescape"), value) for key, value in entries.items())
    whole = bytearray()
    if not rows:
        return _manifest(_NOWHERE, 0, "", bytes(16)), b""
    level = [_leaf(rows[at : at + _ENTRIES], whole) for at in range(0, len(rows), _ENTRIES)]
    height = 0
    while len(level) > 1:
        height += 1
        level = [_branch(level[at : at + _ENTRIES], height, nodes, whole) for at in range(0, len(level), _ENTRIES)]
    return _manifest(level[0], height, nodes, hashlib.sha256(whole).digest()[:16]), bytes(whole)


def _leaf(rows: Sequence[tuple[bytes, bytes | PlacedValue]], whole: bytearray) -> _TreeNode:
    apart = [value for _, value in rows if isinstance(value, PlacedValue)]
    files = {name: number for number, name in enumerate(dict.fromkeys(value.file for value in apart))}
    lengths = [value.nbytes if isinstance(value, PlacedValue) else len(value) for _, value in rows]
    body = b"".join(
        [
            b"\0",  # its height
            _files(list(files)),
            _number(len(rows)),
            _texts([key for key, _ in rows]),
            _numbers(lengths),
            _numbers(int(isinstance(value, PlacedValue)) for _, value in rows),
            _numbers(files[value.file] for value in apart),
            _numbers(value.offset for value in apart),
            *(value for _, value in rows if not isinstance(value, PlacedValue)),
        ]
    )
    node = _framed(_NODE, body)
    found = _TreeNode(rows[0][0], len(whole), len(node), len(rows), len(node), sum(value.nbytes for value in apart))
    whole += node
    return found


def _branch(children: Sequence[_TreeNode], height: int, nodes: str, whole: bytearray) -> _TreeNode:
    keys = [child.key for child in children]
    body = b"".join(
        [
            bytes([height]),
            _files([nodes]),
            _number(len(children)),
            _texts(keys, [0] * len(keys)),  # keys below have no part in common that would be left out
            _numbers(0 for _ in children),  # the file
            _numbers(child.offset for child in children),
            _numbers(child.nbytes for child in children),
            *_statistics(children),
        ]
    )
    node = _framed(_NODE, body)
    num_keys, tree, values = (sum(row) for row in zip(*(child[3:] for child in children), strict=True))
    found = _TreeNode(keys[0], len(whole), len(node), num_keys, tree + len(node), values)
    whole += node
    return found


def _manifest(root: _TreeNode, height: int, nodes: str, uuid: bytes) -> bytes:
    config = [uuid, b"\0", _numbers([_MAX_INLINE, _MAX_NODE]), bytes([_ARITY_LOG2]), b"\0"]  # one file; no compression
    versions = [_number(1), _number(1), bytes([height]), b"\0", _numbers([root.offset, root.nbytes])]
    tail = [*_statistics([root]), _TIME.to_bytes(8, "little"), _number(0)]  # and no older versions
    return _framed(_MANIFEST, b"".join([*config, _files([nodes]), *versions, *tail]))


def _statistics(nodes: Sequence[_TreeNode]) -> list[bytes]:
    keys, tree = [node.num_keys for node in nodes], [node.tree_bytes for node in nodes]
    return [_numbers(keys), _numbers(tree), _numbers(node.value_bytes for node in nodes)]


def _framed(magic: int, body: bytes) -> bytes:
    """What every part begins and ends with; it is not compressed."""
    size = 4 + 8 + 2 + len(body) + 4
    whole = magic.to_bytes(4, "big") + size.to_bytes(8, "little") + b"\0\0" + body
    return whole + crc32c(whole).to_bytes(4, "little")


def _files(names: Sequence[str]) -> bytes:
    paths = [os.fsencode(name) for name in names]
    common, rest = _shared(paths)
    bases = _numbers(0 for _ in paths)
    return b"".join([_number(len(paths)), _numbers(common), _numbers(map(len, rest)), bases, *rest])


def _texts(keys: Sequence[bytes], common_below: Sequence[int] = ()) -> bytes:
    common, rest = _shared(keys)
    return b"".join([_numbers(common), _numbers(map(len, rest)), _numbers(common_below), *rest])


def _shared(texts: Sequence[bytes]) -> tuple[list[int], list[bytes]]:
    """How many bytes each text but the first begins with that the one before has too, and the rest of every text."""
    common = []
    for one, other in pairwise(texts):
        differs = (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
        common.append(next(differs, min(len(one), len(other))))
    return common, [text[skip:] for text, skip in zip(texts, [0, *common], strict=False)]


def _numbers(values: Iterable[int]) -> bytes:
    return b"".join(map(_number, values))


def _number(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last byte have their highest bit set."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)
