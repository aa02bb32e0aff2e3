"""Which files of a directory are the checkpoint: one rule for all formats whose checkpoints are plain files.

1. What the path says: a pattern such as `llama/*.fp16.safetensors` means exactly the files that match it, an index the
   files that it names.
2. Else one family: the files of an index, or those whose names differ in the number of the shard only. Names that
   libraries give to whole models come first, in the order of `_KNOWN`; of one name the plain one before a variant such
   as `fp16`, and of one family safetensors before the others.
3. Without such names all files of the one format that is there.

Half a checkpoint is an error; what is left out is known, so that it can be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import NamedTuple

from ..core.errors import StorageError, listing
from .base import Format
from .shards import read_index

__all__ = ["Choice", "choose", "choose_matching", "is_pattern", "of_index"]

_KNOWN = ("model", "diffusion_pytorch_model", "pytorch_model", "flax_model", "adapter_model", "consolidated")
_INDEX = re.compile(r"(?P<stem>.+?)\.(?P<suffix>[^.]+)\.index(\.(?P<variant>[^.]+))?\.json")
_SHARD = re.compile(r"(?P<stem>.+?)[-_](?P<number>\d+)[-_]of[-_](?P<total>\d+)(?P<variant>\.[^.]+)?")
_NUMBER = re.compile(r"\d+(?=[-_]of[-_])|(?<=^consolidated\.)\d+")
_PART = re.compile(r"(?P<stem>consolidated)\.(?P<number>\d+)")


class Family(NamedTuple):
    """What the names of files that belong together have in common."""

    stem: str
    variant: str
    format: str

    @property
    def label(self) -> str:
        """The beginning of the names of its files."""
        return f"{self.stem}.{self.variant}" if self.variant else self.stem

    @property
    def rank(self) -> tuple[int, bool]:
        """Families with a lower one come first."""
        return (_KNOWN.index(self.stem) if self.stem in _KNOWN else len(_KNOWN), bool(self.variant))


class Shard(NamedTuple):
    """A file of a directory: its family, and which of how many shards it is; 0 of 0 if it is none."""

    name: str
    family: Family
    number: int = 0
    total: int = 0


@dataclass(frozen=True)
class Choice:
    """The files that are a checkpoint, the index that names them if there is one, and files that are no part of it."""

    format: Format
    files: tuple[Path, ...]
    index: Path | None = None
    left_out: tuple[str, ...] = ()


def is_pattern(path: str) -> bool:
    """Whether the last part of a path has wildcards."""
    return not {"*", "?", "["}.isdisjoint(PurePath(path).name)


def of_index(index: Path, formats: Sequence[Format]) -> Choice:
    """The files that an index names.

    Raises:
        StorageError: it is no index, or names files of another kind.
    """
    files = sorted({index.parent / name for name in read_index(index).values()})
    for format in formats:
        if all(file.suffix.lower() in format.suffixes for file in files):
            return Choice(format, tuple(files), index)
    raise StorageError(
        "the index does not name files of one format",
        where=str(index),
        expected=_suffixes(formats),
        found=listing(file.name for file in files),
    )


def choose_matching(directory: Path, pattern: str, formats: Sequence[Format]) -> Choice:
    """All files of a directory whose names match a pattern.

    Raises:
        StorageError: there are none, they are of several formats, or a shard is missing.
    """
    shards = _shards(directory, formats)
    found = [shard for shard in shards if fnmatchcase(shard.name, pattern)]
    where = f"{directory}/{pattern}"
    if not found:
        raise StorageError(
            "no file of a checkpoint matches",
            where=where,
            expected=f"{_suffixes(formats)} in {directory}",
            found=listing(shard.name for shard in shards) or "none",
        )
    kinds = dict.fromkeys(shard.family.format for shard in found)
    if len(kinds) > 1:
        raise StorageError(
            "files of several formats match",
            where=where,
            expected="files of one format",
            found=" and ".join(kinds),
            hint=f"say which: {' or '.join(_example(directory, shard) for shard in _one_each(found))}",
        )
    _check_whole(directory, found, shards)
    return _chosen(directory, found, formats)


def choose(directory: Path, formats: Sequence[Format]) -> Choice | None:
    """The checkpoint of a directory; None if there is none.

    Raises:
        StorageError: it is not clear which, or a shard is missing.
    """
    shards = _shards(directory, formats)
    indices = _indices(directory, formats)
    families = {shard.family for shard in shards} | set(indices)
    if not families:
        return None
    best = min(family.rank for family in families)
    if best[0] == len(_KNOWN) and not indices:
        return _all_of_one_format(directory, shards, formats)
    first = [family for family in families if family.rank == best]
    if best[0] == len(_KNOWN):
        first = [family for family in first if family in indices]
    if len({family.label for family in first}) > 1:
        raise _unclear(directory, [shard for shard in shards if shard.family in first])
    order = [format.name for format in formats]
    family = min(first, key=lambda family: order.index(family.format))
    if family in indices:
        return _beside_index(directory, indices[family], shards, formats)
    found = [shard for shard in shards if shard.family == family]
    _check_whole(directory, found, shards)
    return _chosen(directory, found, formats, _others(found, shards))


def _beside_index(directory: Path, index: Path, shards: Sequence[Shard], formats: Sequence[Format]) -> Choice:
    """What an index names, if that is all of its series."""
    choice = of_index(index, formats)
    named = [shard for shard in shards if directory / shard.name in choice.files]
    series = {(shard.family, shard.total) for shard in named if shard.total}
    rest = [shard for shard in shards if shard not in named]
    forgotten = [shard.name for shard in rest if (shard.family, shard.total) in series]
    if forgotten:
        raise StorageError(
            "the index does not name all shards",
            where=str(index),
            expected="an index of all shards that lie beside it",
            found=f"not in it: {listing(forgotten)}",
            hint=f"fetch the index again; or read what it names: {index}",
        )
    return replace(choice, left_out=_others(named, shards))


def _all_of_one_format(directory: Path, shards: Sequence[Shard], formats: Sequence[Format]) -> Choice:
    """Files whose names say nothing: all of them, unless they are of several formats."""
    kinds = dict.fromkeys(shard.family.format for shard in shards)
    first = next(format.name for format in formats if format.name in kinds)
    found = [shard for shard in shards if shard.family.format == first]
    if {shard.family.label for shard in shards} != {shard.family.label for shard in found}:
        raise _unclear(directory, shards)
    _check_whole(directory, found, shards)
    return _chosen(directory, found, formats, _others(found, shards))


# --------------------------------------------------------------------------------------------------------- names


def _shards(directory: Path, formats: Sequence[Format]) -> list[Shard]:
    """The files of a directory that may be of a checkpoint, in the order of formats and names."""
    return [
        _shard(path.name, path.name[: -len(path.suffix)], format.name)
        for format in formats
        for path in format.weights(directory)
    ]


def _shard(name: str, stem: str, format: str) -> Shard:
    found = _SHARD.fullmatch(stem) or _PART.fullmatch(stem)
    if found is None:
        return Shard(name, _family(stem, "", format))
    groups = found.groupdict()
    family = _family(groups["stem"], (groups.get("variant") or "")[1:], format)
    return Shard(name, family, int(groups["number"]), int(groups.get("total") or 0))


def _family(stem: str, variant: str, format: str) -> Family:
    """`model.fp16` is a variant of `model`, while other names with dots are just names."""
    base, _, rest = stem.partition(".")
    if base in _KNOWN and rest:
        stem, variant = base, f"{rest}.{variant}" if variant else rest
    return Family(stem, variant, format)


def _indices(directory: Path, formats: Sequence[Format]) -> dict[Family, Path]:
    found: dict[Family, Path] = {}
    for path in sorted(directory.glob("*.index*.json")):
        name = _INDEX.fullmatch(path.name)
        format = next((format for format in formats if name and f".{name['suffix']}" in format.suffixes), None)
        if name is not None and format is not None and path.is_file():
            found.setdefault(_family(name["stem"], name["variant"] or "", format.name), path)
    return found


def _check_whole(directory: Path, found: Iterable[Shard], there: Iterable[Shard]) -> None:
    """All shards of the series that is read must be there.

    Raises:
        StorageError: one is missing, or there are shards of several ways to cut.
    """
    for family in dict.fromkeys(shard.family for shard in found if shard.total):
        totals = {shard.total for shard in found if shard.family == family}
        if len(totals) > 1:
            raise StorageError(
                "the directory holds shards of several checkpoints",
                where=str(directory),
                expected=f"one number of shards of {family.label}",
                found=listing(shard.name for shard in found if shard.family == family),
                hint=f"say which: {directory}/{family.label}*-of-*{max(totals)}*",
            )
        (total,) = totals
        numbers = {shard.number for shard in there if (shard.family, shard.total) == (family, total)}
        wanted = range(total) if 0 in numbers else range(1, total + 1)
        if missing := [number for number in wanted if number not in numbers]:
            raise StorageError(
                "the checkpoint is not whole: a shard is missing",
                where=str(directory),
                expected=f"{total} shards of {family.label}",
                found=f"no number {listing(map(str, missing))}",
                hint="fetch the missing files; to read one shard alone, give its file",
            )


def _others(found: Iterable[Shard], shards: Iterable[Shard]) -> tuple[str, ...]:
    used = {shard.name for shard in found}
    return tuple(sorted(shard.name for shard in shards if shard.name not in used))


def _chosen(
    directory: Path, found: Sequence[Shard], formats: Iterable[Format], left_out: tuple[str, ...] = ()
) -> Choice:
    format = next(format for format in formats if format.name == found[0].family.format)
    return Choice(format, tuple(directory / shard.name for shard in found), left_out=left_out)


def _unclear(directory: Path, shards: Sequence[Shard]) -> StorageError:
    return StorageError(
        "the directory holds several checkpoints",
        where=str(directory),
        expected="one of them",
        found=listing(shard.name for shard in _one_each(shards)),
        hint=f"say which: {' or '.join(_example(directory, shard) for shard in _one_each(shards)[:3])}",
    )


def _one_each(shards: Iterable[Shard]) -> list[Shard]:
    """The first file of every family."""
    first: dict[Family, Shard] = {}
    for shard in shards:
        first.setdefault(shard.family, shard)
    return list(first.values())


def _example(directory: Path, shard: Shard) -> str:
    """A pattern for the files that belong together with one."""
    return f"{directory}/{_NUMBER.sub('*', shard.name)}"


def _suffixes(formats: Iterable[Format]) -> str:
    return " ".join(f"*{suffix}" for format in formats for suffix in format.suffixes)
