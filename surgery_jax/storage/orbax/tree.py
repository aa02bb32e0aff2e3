"""The tree of an Orbax checkpoint: its leaves, and what travels beside them.

What a tree of named tensors cannot say (lists, kinds of leaves, texts, empty containers, kinds of random keys) is a
`TreeNote`: one text in the metadata of the checkpoint, so that writing it again gives the same tree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import StorageError
from ...core.strict_json import at, read_json
from ..bounds import Allowance, TooLarge
from ..files import File, parse_json
from ..keys import MAX_DEPTH, join_keys

__all__ = [
    "COMMIT",
    "DATA",
    "KEYS",
    "MANIFEST",
    "NOTE",
    "OWN",
    "SHARDING",
    "STEP",
    "STRINGS",
    "TREE",
    "Leaf",
    "TreeNote",
    "read_random_kinds",
    "read_table",
    "read_tree",
]

TREE = "_METADATA"
STEP = ("_CHECKPOINT_METADATA", "orbax.checkpoint")  # what a finished step, or a checkpoint by itself, has
COMMIT = "commit_success.txt"
STRINGS = "_strings.json"
MANIFEST = "manifest.ocdbt"
KEYS = "array_metadatas"
DATA = "d"  # of the key-value store
SHARDING = "_sharding"  # of every array that lay on devices
OWN = (TREE, *STEP, COMMIT, STRINGS, SHARDING, KEYS, MANIFEST, DATA)
NOTE = "orbax"  # the key of the metadata of a checkpoint
_MAX_TABLE = 1 << 28  # bytes; the table of a million leaves has as many
_COSTS = {b"{": 184, b"[": 64, b",": 32}  # bytes of memory that a mark of JSON stands for


@dataclass
class TreeNote:
    """What the tree has beside tensors, by name: the text that travels as metadata."""

    lists: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)  # of leaves that are no arrays, such as scalars
    texts: dict[str, str] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)  # containers without leaves, and None
    random: dict[str, str] = field(default_factory=dict)  # implementations of random keys
    custom: object = None  # what the user of Orbax put beside the tree
    step: dict[str, object] = field(default_factory=dict)  # the same of the step, as far as it is no text

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> TreeNote:
        """The note that a checkpoint carries; an empty one if it carries none, or something else under its key."""
        try:
            held = read_json(metadata.get(NOTE, "{}"))
        except ValueError:
            return cls()
        note = cls()
        for key, value in held.items() if isinstance(held, dict) else ():
            if key in _TYPES and isinstance(value, _TYPES[key]):
                setattr(note, key, value)
        return note

    def below(self, prefix: str) -> TreeNote:
        """The note of a branch of the tree."""
        start = f"{prefix}."

        def kept(table: Mapping[str, str]) -> dict[str, str]:
            return {name[len(start) :]: word for name, word in table.items() if name.startswith(start)}

        lists = [name[len(start) :] for name in self.lists if name.startswith(start)]
        return TreeNote(lists, kept(self.kinds), kept(self.texts), kept(self.empty), kept(self.random))

    def metadata(self) -> dict[str, str]:
        """Nothing for a tree of nested dictionaries of arrays."""
        held = {key: value for key, value in vars(self).items() if value}
        return {NOTE: json.dumps(held, separators=(",", ":"), sort_keys=True)} if held else {}


_TYPES: dict[str, type[object]] = {
    "lists": list,
    "kinds": dict,
    "texts": dict,
    "empty": dict,
    "random": dict,
    "custom": object,
    "step": dict,
}


class Leaf:
    """An array of the tree: its name here and that of its directory."""

    __slots__ = ("name", "stored")

    def __init__(self, name: str, stored: str) -> None:
        self.name = name
        self.stored = stored


def read_table(path: Path, what: str) -> object:
    """The value of a file of JSON; `what` names it in errors.

    Raises:
        StorageError: it cannot be read, or says more than is sound.
    """
    with File(path) as file:
        if file.size > _MAX_TABLE:
            raise StorageError(
                f"{what} is too long", where=str(path), expected=f"at most {_MAX_TABLE} bytes", found=str(file.size)
            )
        raw = file.at(0, file.size)
    try:
        Allowance(len(raw)).spend(sum(raw.count(mark) * cost for mark, cost in _COSTS.items()))
    except TooLarge as error:
        raise StorageError(f"{what} holds too much", where=str(path), found=str(error)) from None
    return parse_json(raw, path, what)


def read_tree(where: Path, table: object, start: str) -> tuple[list[Leaf], TreeNote]:
    """The leaves and all that is no leaf, from the table of a checkpoint, as far as names begin with `start`."""
    note = TreeNote()
    leaves: list[Leaf] = []
    rows = table.get("tree_metadata") if isinstance(table, dict) else None
    if not isinstance(rows, dict):
        raise StorageError("the table of the tree is not one", where=str(where), expected="an object 'tree_metadata'")
    note.custom = table.get("custom_metadata") if isinstance(table, dict) else None
    seen: dict[str, str] = {}
    lists: dict[str, None] = {}
    for shown, row in rows.items():
        try:
            keys = [(part["key"], part["key_type"]) for part in row["key_metadata"]]
            kind, is_empty = row["value_metadata"]["value_type"], row["value_metadata"]["skip_deserialize"]
        except (KeyError, TypeError):
            raise _refusal(where, shown, "a row of the tree is not complete", repr(row)) from None
        if not all(type(key) is str and word in (1, 2) for key, word in keys) or type(kind) is not str:
            raise _refusal(where, shown, "a row of the tree is not understood", repr(row))
        if not 1 <= len(keys) <= MAX_DEPTH:
            raise _refusal(where, shown, "a leaf without a name, or too deep", f"{len(keys)} keys")
        words = [key for key, _ in keys]
        name, stored = join_keys(words), ".".join(words)
        if not name.startswith(start):
            continue
        if seen.setdefault(stored, shown) != shown or name in note.empty:
            raise StorageError(
                "two leaves have the same name when their keys are joined",
                where=str(where),
                found=f"{seen[stored]} and {shown}",
            )
        lists.update({join_keys(words[:at]): None for at, (_, word) in enumerate(keys) if word == 1 and at})
        if is_empty:
            note.empty[name] = kind
        elif kind == "string":
            note.texts[name] = stored
        else:
            leaves.append(Leaf(name, stored))
            if kind not in ("jax.Array", "np.ndarray"):  # which are written alike
                note.kinds[name] = kind
    note.lists = list(lists)
    return leaves, note


def _refusal(where: Path, shown: str, problem: str, found: str) -> StorageError:
    return StorageError(f"{problem}: {shown[:120]}", where=str(where), found=found[:120])


def read_random_kinds(item: Path) -> dict[str, str]:
    """The implementations of random keys, which are stored as plain numbers, by the name of their directory."""
    found: dict[str, str] = {}
    for path in sorted((item / KEYS).glob("process_*")):
        table = read_table(path, "the table of arrays")
        try:
            rows = at(table, "array_metadatas")
            if not isinstance(rows, list):
                raise TypeError("no list of arrays")
            for row in rows:
                if at(row, "array_metadata", "ext_metadata"):
                    kind = at(row, "array_metadata", "ext_metadata", "random_key_impl")
                    found[str(at(row, "array_metadata", "param_name"))] = str(kind)
        except (KeyError, TypeError) as error:
            raise StorageError("the table of arrays is not one", where=str(path), found=repr(error)[:120]) from None
    return found
