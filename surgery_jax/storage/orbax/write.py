"""The tables that Orbax has beside the arrays, as `StandardCheckpointer` writes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence

from ...core.errors import StorageError
from ...core.specs import Spec
from ..keys import nest, split_name
from ..shards import is_name
from .options import Settings
from .tree import COMMIT, KEYS, OWN, SHARDING, STEP, STRINGS, TREE, TreeNote

__all__ = ["WrittenTree"]


class WrittenTree:
    """The tree that is written: rows of its table, and the directory of each tensor."""

    def __init__(self, where: str, tensors: Sequence[tuple[str, Spec]], note: TreeNote) -> None:
        """Raises StorageError for a name or a dtype that Orbax cannot hold."""
        nest(((name, spec) for name, spec in tensors), where)  # no name may be the beginning of another
        self.note = note
        self.specs = dict(tensors)
        self.keys = {name: split_name(name) for name in self.specs}
        self.stored: dict[str, str] = {}
        holder: dict[str, str] = {}
        for name, spec in tensors:
            stored = self.stored[name] = ".".join(self.keys[name])
            other = holder.setdefault(stored, name)
            if other != name:
                raise StorageError(
                    f"Orbax would store {name!r} and {other!r} in one directory",
                    where=where,
                    hint="rename one of them with the step move",
                )
            _check_directory_name(where, name, stored)
            if not spec.dtype.array:
                raise StorageError(f"Orbax cannot hold {spec.dtype}", where=where, found=f"{name!r} is {spec}")
        branches = {keys[:at] for keys in self.keys.values() for at in range(len(keys))}
        # what is no tensor stays where there is still a branch for it
        self.others = {
            name: split_name(name)
            for name in [*note.empty, *note.texts]
            if split_name(name)[:-1] in branches and name not in self.specs and split_name(name) not in branches
        }
        self.lists = self._lists()

    def _lists(self) -> set[tuple[str, ...]]:
        """The branches that are still lists: their keys count from 0 on."""
        wanted = {split_name(name) for name in self.note.lists}
        below: dict[tuple[str, ...], set[str]] = {}
        for keys in [*self.keys.values(), *self.others.values()]:
            for at in range(len(keys)):
                if keys[:at] in wanted:
                    below.setdefault(keys[:at], set()).add(keys[at])
        return {keys for keys, found in below.items() if found == set(map(str, range(len(found))))}

    def tables(self, metadata: Mapping[str, str], settings: Settings) -> dict[str, bytes]:
        """The files that are no arrays, by name; the mark of a finished checkpoint is the last. Those of an item of a
        step are in a directory of its name, and what tells of the step beside that."""
        content = {name: json.dumps(table).encode() for name, table in self._item(settings).items()} | {COMMIT: _DONE}
        step = {STEP[0]: json.dumps(self._step(metadata, settings)).encode()}
        if not settings.item:
            return step | content
        return step | {f"{settings.item}/{name}": held for name, held in content.items()} | {COMMIT: _DONE}

    def _step(self, metadata: Mapping[str, str], settings: Settings) -> dict[str, object]:
        """What is told of the whole step; nothing of it depends on a clock."""
        return {
            "item_handlers": {settings.item: _HANDLER} if settings.item else _HANDLER,
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": None,
            "commit_timestamp_nsecs": None,
            "custom_metadata": {**dict(sorted(metadata.items())), **self.note.step, **(settings.metadata or {})},
        }

    def _item(self, settings: Settings) -> dict[str, object]:
        """The tables of the tree."""
        note = self.note
        rows = {}
        for name, keys in [*self.keys.items(), *self.others.items()]:
            parts = [{"key": key, "key_type": 1 if keys[:at] in self.lists else 2} for at, key in enumerate(keys)]
            rows[str(keys)] = {"key_metadata": parts, "value_metadata": self._value(name)}
        tree = {
            "tree_metadata": rows,
            "use_ocdbt": settings.is_together,
            "use_zarr3": settings.zarr == 3,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": note.custom,
        }
        found: dict[str, object] = {TREE: tree}
        if texts := {".".join(self.others[name]): text for name, text in note.texts.items() if name in self.others}:
            found[STRINGS] = texts
        if random := [name for name in self.specs if name in note.random]:
            sharding = json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"})
            coded = {name: base64.b64encode(self.stored[name].encode()).decode() for name in random}
            found[SHARDING] = {coded[name]: sharding for name in random}
            found[f"{KEYS}/process_0"] = {"array_metadatas": [self._random(name) for name in random]}
        return found

    def _value(self, name: str) -> dict[str, object]:
        """The kind of a leaf. Arrays are of the host: these are restored on any machine, and onto any devices that
        the caller asks for, while for a jax.Array the devices would have to be told here."""
        note = self.note
        if name in self.others:
            return {"value_type": note.empty.get(name, "string"), "skip_deserialize": name in note.empty}
        spec = self.specs[name]
        if name in note.random:
            return {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": list(spec.shape)}
        is_scalar = note.kinds.get(name) == "scalar" and not spec.shape
        return {"value_type": "scalar" if is_scalar else "np.ndarray", "skip_deserialize": False}

    def _random(self, name: str) -> dict[str, object]:
        shape = list(self.specs[name].shape)
        kind = {"random_key_impl": self.note.random[name]}
        row = {"param_name": self.stored[name], "write_shape": shape, "chunk_shape": shape, "ext_metadata": kind}
        return {"array_metadata": row}


_DONE = b"The checkpoint is whole\n"  # not all stores take objects without a byte
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def _check_directory_name(where: str, name: str, stored: str) -> None:
    """The name of an array's directory is the joined path of keys, so not every name is one."""
    problem = None
    if not stored or stored in (".", "..") or "/" in stored or not is_name(stored):
        problem = "it cannot be the name of a directory"
    elif len(stored.encode("utf-8", "surrogatepass")) > 255:
        problem = "it is longer than the name of a directory can be"
    elif stored in OWN or stored.startswith("ocdbt.process_"):
        problem = "a file of Orbax has that name"
    if problem is not None:
        raise StorageError(
            f"Orbax cannot store a tensor named {name[:80]!r}: {problem}",
            where=where,
            hint="rename it with the step move",
        )
