"""The tables of tensors in a torch file: nested dictionaries and lists become dotted names.

Training programs put much into one file: the weights under a key of their own, the state of the optimizer, numbers,
arguments. Tensors are found wherever they are; what is none is left out, and told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import StorageError, listing
from ..base import Checkpoint, Entry, no_part
from ..bounds import Allowance, TooLarge
from ..keys import MAX_DEPTH
from ..leftovers import in_words
from .tensors import Tensor, describe, entry_of, read_file

__all__ = ["Table", "read_table"]

_STATE = "state_dict"  # whatever lies beside it, this is the model
_WRAPPERS = (  # what else programs call the table of a model; it is taken for one if it has all tensors of the file
    *("model", "module", "model_state_dict", "model_state", "net", "network", "weights", "generator"),
    *("params", "params_ema", "ema", "ema_state_dict", "model_ema", "state_dict_ema"),
)
_MAX_PICKLE = 1 << 26


@dataclass(frozen=True)
class Table:
    """All tensors of a file by their dotted names, what else is there in words, and the key of the model's table
    (empty: the names are those of the model)."""

    path: Path
    tensors: tuple[tuple[str, Tensor], ...]
    others: tuple[tuple[str, str], ...]
    model: str

    def checkpoint(self, format: str, may_be_empty: bool = False) -> Checkpoint:
        """The checkpoint that the file is.

        Raises:
            StorageError: there are no tensors, two have one name, or one cannot be read.
        """
        if not self.tensors and not may_be_empty:
            raise StorageError(
                "the torch file holds no tensors",
                where=str(self.path),
                expected="a dictionary from names to tensors, or tables of them",
                found=listing((f"{name[:80]} ({word})" for name, word in self.others), 12),
                hint="if an object of it is a model, save the model's state_dict()" if self.others else None,
            )
        if not self.model:
            return self._below("", format, ())
        start = f"{self.model}."
        outside = [name for name, _ in self.tensors if not name.startswith(start)]
        tops = list(dict.fromkeys(name.split(".")[0] for name in outside))
        told = [f"tensors, read with a part such as #{tops[0]}: {listing(tops, 12)}"] if tops else []
        told += in_words((name, word) for name, word in self.others if not name.startswith(start))
        return self._below(start, format, told)

    def part(self, prefix: str, format: str) -> Checkpoint:
        """The tensors whose names begin with `prefix` and a dot: in the model's table, or else in the whole file.

        Raises:
            StorageError: there are none, or see `checkpoint`.
        """
        for start in dict.fromkeys([f"{self.model}.{prefix}." if self.model else "", f"{prefix}."]):
            if start and any(name.startswith(start) for name, _ in self.tensors):
                return self._below(start, format, ())
        raise no_part(str(self.path), prefix, (name for name, _ in self.tensors))

    def _below(self, start: str, format: str, told: Iterable[str]) -> Checkpoint:
        entries: dict[str, Entry] = {}
        for full, tensor in self.tensors:
            if full.startswith(start):
                name = full[len(start) :]
                if name in entries:
                    raise StorageError(
                        f"two tensors are named {name!r} when the keys above them are joined",
                        where=str(self.path),
                        hint="choose a part of the file by its first key: PATH#KEY",
                    )
                entries[name] = entry_of(tensor, repr(name))
        others = [(name[len(start) :], word) for name, word in self.others if name.startswith(start)]
        where = str(self.path)
        return Checkpoint(where, format, entries, {}, (where,), left_out=(*in_words(others), *told))


def read_table(path: Path) -> Table:
    """The tensors of a file that `torch.save` wrote.

    Raises:
        StorageError: it cannot be read, or is no dictionary.
    """
    value = read_file(path)
    if not isinstance(value, dict):
        raise StorageError(
            "the torch file holds no table of tensors",
            where=str(path),
            expected="a dictionary from names to tensors",
            found=describe(value),
            hint="load it under a name: load: {path: ..., to: ...}" if isinstance(value, Tensor) else None,
        )
    walk = _Walk(Allowance(min(path.stat().st_size, _MAX_PICKLE)))
    try:
        walk.table("", value)
    except TooLarge as error:
        raise StorageError("the torch file holds too many values", where=str(path), found=str(error)) from None
    return Table(path, tuple(walk.tensors), tuple(walk.others), _model(value, walk.tensors))


def _model(value: dict[object, object], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The key of the table that is the model, if the keys at the top tell."""
    holders = {key for key in (_STATE, *_WRAPPERS) if isinstance(value.get(key), dict)}
    tops = {name.split(".")[0] for name, _ in tensors}
    if _STATE in holders & tops:
        return _STATE
    return next(iter(tops)) if len(tops) == 1 and tops <= holders else ""


class _Walk:
    """Goes over nested tables, and bounds what it finds: a table may be in another many times."""

    def __init__(self, allowance: Allowance) -> None:
        self.tensors: list[tuple[str, Tensor]] = []
        self.others: list[tuple[str, str]] = []
        self._spend = allowance.spend
        self._above: set[int] = set()  # the tables that hold the one at hand

    def table(self, name: str, table: dict[object, object] | list[object] | tuple[object, ...]) -> bool:
        """Whether a table has tensors; if it has none, it is one value."""
        start = len(self.others)
        self._above.add(id(table))
        found = False
        for key, value in table.items() if isinstance(table, dict) else enumerate(table):
            if type(key) is str or type(key) is int:
                found |= self.value(f"{name}.{key}" if name else str(key), value)
            else:
                self.others.append((name or "the file", f"a value under {describe(key)} as a key"))
        self._above.remove(id(table))
        if not found and name:
            self.others[start:] = [(name, "a table without tensors")]
        return found

    def value(self, name: str, value: object) -> bool:
        """Whether a value is a tensor or has some."""
        self._spend(100 + len(name))
        if isinstance(value, Tensor):
            self.tensors.append((name, value))
            return True
        if (type(value) is dict or type(value) is list or type(value) is tuple) and value:
            if id(value) in self._above:
                self.others.append((name, "a table that is in itself"))
                return False
            if len(self._above) >= MAX_DEPTH:
                self.others.append((name, f"a table below {MAX_DEPTH} others"))
                return False
            return self.table(name, value)
        self.others.append((name, describe(value)))
        return False
