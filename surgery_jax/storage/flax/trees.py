"""Trees of arrays in memory as checkpoints, and checkpoints as such trees, without copying elements."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.dtypes import by_numpy
from ...core.errors import StorageError
from ...core.specs import Spec
from ..base import Blocks, Checkpoint, Entry
from ..files import File
from ..formats import open_checkpoint
from ..identity import remembering
from ..keys import MAX_DEPTH, Plain, describe_leaves, join_keys, nest, told_leaves
from ..places.found import locate

if TYPE_CHECKING:
    import numpy

__all__ = ["MEMORY", "from_flax", "held", "to_flax"]

MEMORY = "memory"  # the format of a checkpoint whose arrays lie in memory
_BLOCK = 4 << 20  # bytes in which arrays are handed out: several workers can be at one array
_WHERE = "the tree"


def from_flax(tree: object) -> Checkpoint:
    """A checkpoint of the arrays of a tree: nested mappings, `flax.nnx` states, and what `flax.serialization` knows,
    such as lists and train states.

    Its names are the paths of keys joined by dots, a dot within a key written `\\.`. NumPy arrays and JAX arrays on the
    CPU are looked at where they are, so they must not change while the checkpoint is used.

    Raises:
        StorageError: a leaf is no array, number, text or None; there are no arrays.
    """
    gathered = _Gathered()
    gathered.add((), tree)
    if not gathered.entries:
        raise StorageError("the tree holds no arrays", where=_WHERE)
    metadata = describe_leaves(gathered.entries, gathered.scalars, gathered.others)
    return Checkpoint(MEMORY, MEMORY, gathered.entries, metadata)


class _Gathered:
    """The leaves of a tree by name."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.scalars: list[str] = []
        self.others: dict[str, object] = {}

    def add(self, keys: tuple[str, ...], node: object) -> None:
        """A node at a path, and all below it."""
        if isinstance(node, Mapping):
            self._add_mapping(keys, node)
            return
        if not keys:
            self.add(keys, _state_dict(keys, node))
            return
        name = join_keys(keys)
        if node is None or isinstance(node, str | complex):
            self.others[name] = node
        elif isinstance(node, bool | int | float) or (hasattr(node, "shape") and hasattr(node, "dtype")):
            self.entries[name] = _entry(name, node)
            if not hasattr(node, "shape") or _is_scalar(node):
                self.scalars.append(name)
        else:
            self.add(keys, _state_dict(keys, node))

    def _add_mapping(self, keys: tuple[str, ...], node: Mapping[str, object]) -> None:
        if not node and keys:
            self.others[join_keys(keys)] = {}
        if len(keys) == MAX_DEPTH:
            raise StorageError("the tree nests too deep", where=_WHERE, expected=f"at most {MAX_DEPTH} levels")
        words = [str(key) for key in node]
        if len(set(words)) < len(words) or not all(isinstance(key, str | int) for key in node):
            raise StorageError(
                "the keys of a branch are no different texts",
                where=_WHERE,
                expected="texts, or the numbers of a list",
                found=f"{list(node)!r}"[:120],
            )
        for word, child in zip(words, node.values(), strict=True):
            self.add((*keys, word), child)


def _is_scalar(node: object) -> bool:
    import numpy as np

    return isinstance(node, np.generic)


def _state_dict(keys: tuple[str, ...], node: object) -> Mapping[str, object]:
    """What Flax would store of a container that is no mapping."""
    from flax.serialization import to_state_dict

    found = to_state_dict(node)
    if not isinstance(found, Mapping):
        raise StorageError(
            f"{join_keys(keys)!r} is no array" if keys else "not a tree of arrays",
            where=_WHERE,
            expected="arrays and numbers in nested mappings",
            found=type(node).__name__,
        )
    return found


def _entry(name: str, node: object) -> Entry:
    import numpy as np

    try:
        array = np.asarray(node)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        dtype = by_numpy(array.dtype)
    except Exception as error:  # of whatever claims to be an array: keys, arrays on other hosts, deleted ones
        raise StorageError(f"{name!r} cannot be looked at", where=_WHERE, found=str(error)[:200]) from None
    if dtype is None:
        raise StorageError(f"{name!r} has a dtype of its own", where=_WHERE, found=f"{array.dtype}"[:120])
    return held(array, Spec(array.shape, dtype))


def held(array: numpy.ndarray, spec: Spec) -> Entry:
    """The entry of an array in memory."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        length = max(min(_BLOCK // spec.dtype.itemsize, spec.size), 1)
        return Entry(
            spec, blocks=Blocks(length, max(spec.size, 1), lambda first, count: flat[first : first + count], 0)
        )
    return Entry(spec, blocks=Blocks.whole(spec, lambda: array.reshape(-1)))


def to_flax(source: Checkpoint | str | Path) -> dict[str, object]:
    """Nested dictionaries of the arrays of a checkpoint, which may be a path.

    What `from_flax` looked at is given back as it is; arrays of files are views of them, read when they are used, and
    cannot be written to. Leaves that are no tensors are again what they were; Python's numbers are NumPy's.

    Raises:
        StorageError: it cannot be read, its names make no tree, or it has dtypes that arrays do not have.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(str(source))
    maps: dict[str, mmap.mmap] = {}
    names = list(checkpoint.entries)
    scalars, others = told_leaves(checkpoint.metadata, names, checkpoint.path)
    leaves: list[tuple[str, object]] = []
    with remembering(dict(checkpoint.identities)):
        for name, entry in checkpoint.entries.items():
            array = _array(checkpoint.path, name, entry, maps)
            leaves.append((name, Plain(array[()] if name in scalars and not array.shape else array)))
    return _opened(nest([*leaves, *others.items()], checkpoint.path))


def _opened(tree: dict[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, child in tree.items():
        assert isinstance(child, dict | Plain)
        found[key] = child.value if isinstance(child, Plain) else _opened(child)
    return found


def _array(where: str, name: str, entry: Entry, maps: dict[str, mmap.mmap]) -> numpy.ndarray:
    import numpy as np

    spec = entry.spec
    if not spec.dtype.array:
        raise StorageError(f"arrays cannot hold {spec.dtype}", where=where, found=f"{name!r} is {spec}")
    if not spec.size:
        return np.zeros(spec.shape, spec.dtype.numpy)
    if entry.extent is None:
        return entry.read()
    parts = []
    for path, offset, count in entry.extent.ranges(0, spec.nbytes):
        if path not in maps:
            with File(locate(path)) as file:
                maps[path] = file.view()
        parts.append(np.frombuffer(maps[path], np.uint8, count, offset))
    flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return flat.view(spec.dtype.numpy).reshape(spec.shape)
