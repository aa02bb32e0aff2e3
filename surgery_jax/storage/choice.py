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
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple

from ..core.errors import StorageError, listing
from .base import Format
from .shards import read_index

__all__ = ["Choice", "check_first", "choose", "choose_matching", "is_pattern", "of_index"]

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
    files = sorted(index.parent / name for name in set(read_index(index).values()))
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
            hint=f"say which: {' or '.join(_examples(directory, found))}",
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
        indexed = [str(indices[family]) for family in first if family in indices]
        others = [shard for shard in shards if shard.family in first and shard.family not in indices]
        raise _unclear(directory, indexed + _examples(directory, others))
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
    files = set(choice.files)
    named = [shard for shard in shards if directory / shard.name in files]
    series = {(shard.family, shard.total) for shard in named if shard.total}
    names = _others(named, shards)
    forgotten = [shard.name for shard in shards if shard.name in names and (shard.family, shard.total) in series]
    if forgotten:
        raise StorageError(
            "the index does not name all shards",
            where=str(index),
            expected="an index of all shards that lie beside it",
            found=f"not in it: {listing(forgotten)}",
            hint=f"fetch the index again; or read what it names: {index}",
        )
    return replace(choice, left_out=names)


def _all_of_one_format(directory: Path, shards: Sequence[Shard], formats: Sequence[Format]) -> Choice:
    """Files whose names say nothing: all of them, unless they are of several formats."""
    kinds = dict.fromkeys(shard.family.format for shard in shards)
    first = next(format.name for format in formats if format.name in kinds)
    found = [shard for shard in shards if shard.family.format == first]
    if {shard.family.label for shard in shards} != {shard.family.label for shard in found}:
        raise _unclear(directory, _examples(directory, shards))
    _check_whole(directory, found, shards)
    return _chosen(directory, found, formats, _others(found, shards))


def check_first(directory: Path, stem: str, stay: Iterable[Path]) -> None:
    """Whether a checkpoint of the name `stem` is what a reader takes, beside files that stay in a directory.

    Raises:
        StorageError: others would be read in its place, or as a part of it.
    """
    own = Family(stem, "", "").rank
    others = sorted(path.name for path in stay if _shard(path.name, path.stem, "").family.rank <= own)
    if others:
        raise StorageError(
            "other files in the directory would be read as the checkpoint",
            where=str(directory),
            found=listing(others),
            hint="remove them, or choose another directory",
        )


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
        if name is not None and format is not None and not path.is_dir():
            found.setdefault(_family(name["stem"], name["variant"] or "", format.name), path)
    return found


def _check_whole(directory: Path, found: Iterable[Shard], there: Iterable[Shard]) -> None:
    """All shards of the series that is read must be there, each once.

    Raises:
        StorageError: they are not, or there are shards of several ways to cut.
    """
    for family in dict.fromkeys(shard.family for shard in found if shard.total):
        own = [shard for shard in found if shard.family == family]
        totals = {shard.total for shard in own}
        if len(totals) > 1:
            raise StorageError(
                f"the directory holds {family.label} more than once: whole, or cut into shards",
                where=str(directory),
                expected="one of them",
                found=listing(shard.name for shard in own),
                hint=f"say which: {' or '.join(_examples(directory, own)[:3])}",
            )
        (total,) = totals
        series = [shard for shard in there if (shard.family, shard.total) == (family, total)]
        numbers = {shard.number for shard in series}
        first = 0 if 0 in numbers else 1
        absent = (number for number in range(first, first + total) if number not in numbers)
        if missing := list(islice(absent, 12)):  # the total may be any number
            raise StorageError(
                "the checkpoint is not whole: a shard is missing",
                where=str(directory),
                expected=f"{total} shards of {family.label}",
                found=f"{len(series)} of them; no number {', '.join(map(str, missing))}",
                hint="fetch the missing files; to read one shard alone, give its file",
            )
        if len(series) != total:
            raise StorageError(
                "the checkpoint has too many shards",
                where=str(directory),
                expected=f"{total} shards of {family.label}",
                found=f"{len(series)}: {listing(shard.name for shard in series)}",
                hint="remove those that do not belong to it",
            )


def _others(found: Iterable[Shard], shards: Iterable[Shard]) -> tuple[str, ...]:
    used = {shard.name for shard in found}
    return tuple(sorted(shard.name for shard in shards if shard.name not in used))


def _chosen(
    directory: Path, found: Sequence[Shard], formats: Iterable[Format], left_out: tuple[str, ...] = ()
) -> Choice:
    format = next(format for format in formats if format.name == found[0].family.format)
    return Choice(format, tuple(directory / shard.name for shard in found), left_out=left_out)


def _unclear(directory: Path, examples: Sequence[str]) -> StorageError:
    return StorageError(
        "the directory holds several checkpoints, and their names do not say which is meant",
        where=str(directory),
        expected="one of them",
        found=listing(PurePath(example).name for example in examples),
        hint=f"say which: {' or '.join(examples[:3])}",
    )


def _examples(directory: Path, shards: Iterable[Shard]) -> list[str]:
    """For every family, and every way in which it is cut, a path that means its files."""
    first: dict[tuple[Family, int], Shard] = {}
    for shard in shards:
        first.setdefault((shard.family, shard.total), shard)
    return [f"{directory}/{_NUMBER.sub('*', shard.name)}" for shard in first.values()]


def _suffixes(formats: Iterable[Format]) -> str:
    return " ".join(f"*{suffix}" for format in formats for suffix in format.suffixes)
