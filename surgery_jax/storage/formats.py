"""Which format a path is: on the way in by what lies there, on the way out by how a plan spells it.

Formats are found, not listed: every module of this package that defines a `Format` counts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ..core.discover import check_single, import_all, subclasses
from ..core.errors import PlanError, StorageError, listing, nearest
from ..core.notes import note
from ..core.specs import Spec, parse_size
from .base import Checkpoint, Format, Layout, Single
from .choice import Choice, choose, choose_matching, is_pattern, of_index
from .documents import documents_beside
from .files import check_exists, check_regular, storage_error
from .identity import identities_of, remembering
from .places.base import MARKER, WHOLE
from .places.found import check_writable, is_local, locate
from .places.looking import looking
from .shards import read_index, read_parts
from .stages import kept_copy

__all__ = [
    "OutputPlan",
    "as_directory",
    "formats",
    "is_one_file",
    "is_whole",
    "open_checkpoint",
    "open_single",
    "place_of_input",
    "resolve_output",
    "resolve_save",
    "resolve_save_tensor",
    "split_part",
]

_DEFAULT = "safetensors"  # what is written where nothing else is said
_FALLBACK = "torch"  # what a single tensor is read as where its suffix says nothing


@lru_cache(maxsize=1)
def formats() -> Mapping[str, Format]:
    """All formats by name: those of this package, and those that entry points name."""
    given = import_all("surgery_jax.storage", "surgery_jax.formats", but="surgery_jax.storage.places")
    found: dict[str, Format] = {}
    for kind in sorted(subclasses(Format), key=lambda kind: kind.__module__):
        if kind.__module__.startswith("surgery_jax.storage.") or kind.__module__ in given:
            known = found.setdefault(kind.name, kind())
            check_single("formats", kind.name, type(known), kind)
    return found


def _by_suffix(suffix: str) -> Format | None:
    return next((format for format in formats().values() if suffix.lower() in format.suffixes), None)


def as_directory(path: str) -> str:
    """The path for an output that is a directory by its kind, whatever follows a dot in its name; that of a file of a
    known format stays one."""
    suffix = _suffix(path)
    return path if not suffix or _by_suffix(suffix) is not None or path.endswith("/") else f"{path}/"


# ---------------------------------------------------------------------------------------------------------- reading


def open_checkpoint(path: str) -> Checkpoint:
    """The headers of the checkpoint at a path, whatever its format.

    `path#a.b` is the part of it whose names begin with `a.b.`, under the rest of their names; `directory/pattern` are
    the files that match, an index means what it describes, and `torch:path` is what is there of one format.

    Raises:
        StorageError: there is none, it is not clear which, or it cannot be read.
    """
    place, part = split_part(path)
    allowed, place = _split_format(place)
    target = locate(place)
    try:
        with looking(), remembering() as opened:
            checkpoint = _open(target, allowed, part)
            format = formats()[checkpoint.format]
            checkpoint = replace(checkpoint, path=str(target), identities=identities_of(checkpoint.files, opened))
            checkpoint = replace(checkpoint, documents=documents_beside(target, format, checkpoint.files))
    except StorageError as error:
        error.hint = kept_copy(target) or error.hint
        raise
    for sentence in checkpoint.left_out:
        note(f"{path}: left out: {sentence}")
    return checkpoint


def place_of_input(path: str) -> str:
    """The file or directory that a path of an input means, without the part of it and the format that it names."""
    return str(locate(_split_format(split_part(path)[0])[1]))


def split_part(path: str) -> tuple[str, str]:
    """The path of a checkpoint, and the part of it that is meant; empty for all of it."""
    place, separator, part = path.rpartition("#")
    return (place, part) if separator and not os.path.lexists(path) else (path, "")


def is_one_file(place: str) -> bool:
    """Whether a path of a checkpoint is that of the only file of it."""
    return locate(place).is_file() and not _is_index(locate(place))


def _is_index(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _open(target: Path, allowed: Sequence[Format], part: str) -> Checkpoint:
    if is_pattern(str(target)) and not os.path.lexists(target):
        check_exists(target.parent)
        _check_marker(target.parent)
        try:
            choice = choose_matching(target.parent, target.name, _folder_formats(allowed))
            return _read_choice(target.parent, choice, part)
        except OSError as error:
            raise storage_error(error, target.parent, "read the directory") from None
    if stat.S_ISDIR(check_exists(target).st_mode):
        _check_marker(target)
        return _read_directory(target, allowed, part)
    check_regular(target)
    if _is_index(target):
        _check_marker(target.parent)
        return _read_choice(target.parent, of_index(target, _folder_formats(allowed)), part)
    return _read(_file_format(target) if len(allowed) > 1 else allowed[0], target, part)


def _check_marker(directory: Path) -> None:
    """Where files appear one by one, a directory says that it is not whole.

    Raises:
        StorageError: it does.
    """
    if not is_whole(directory):
        marker = directory / MARKER
        raise StorageError(
            "the checkpoint is not whole: it is being written, or its writer was stopped",
            where=str(directory),
            hint=f"wait for the writer, or write it again with --overwrite; if you know better, remove {marker}",
        )


def is_whole(directory: Path) -> bool:
    """Whether a directory does not say that something is missing from it."""
    marker = directory / MARKER
    return is_local(directory) or not marker.exists() or marker.stat().st_size <= len(WHOLE)


def _read(format: Format, path: Path, part: str) -> Checkpoint:
    return format.read_part(path, part) if part else format.read_header(path)


def _split_format(place: str) -> tuple[Sequence[Format], str]:
    """The formats that a path allows: all, or the one whose name stands before it; and the path itself."""
    name, _, rest = place.partition(":")
    if rest and name in formats() and not os.path.lexists(place):
        return [formats()[name]], rest
    return list(formats().values()), place


def _folder_formats(allowed: Iterable[Format]) -> list[Format]:
    """The formats whose checkpoints may be directories of plain files, those first that are preferred."""
    found = [(format.folder_rank, format) for format in allowed if format.folder_rank is not None]
    return [format for _, format in sorted(found, key=lambda row: row[0])]


def _read_choice(directory: Path, choice: Choice, part: str) -> Checkpoint:
    """The headers of the files of a directory that are its checkpoint; tells what is left out."""
    index = None
    if choice.index is not None:
        index = {choice.format.indexed_name(name): value for name, value in read_index(choice.index).items()}
    format = choice.format
    if part and index is None and len(choice.files) == 1:
        checkpoint = format.read_part(choice.files[0], part)
    else:
        checkpoint = read_parts(directory, choice.files, format.read_file, index, format.name)
        checkpoint = format.part(checkpoint, part) if part else checkpoint
    _tell_left_out(directory, choice.left_out)
    return checkpoint


def _tell_left_out(directory: Path, names: Sequence[str]) -> None:
    if names:
        note(f"{directory}: not a part of the checkpoint and left out: {listing(names)}")


def _read_directory(path: Path, allowed: Sequence[Format], part: str) -> Checkpoint:
    folders = _folder_formats(allowed)
    try:
        names = sorted(entry.name for entry in path.iterdir())
        found = [format for format in allowed if format.folder_rank is None and format.probe_directory(path)]
        found = [format for format in found if format.owns_directories] or found
        plain = [format for format in folders if format.weights(path)]
        if len(found) == 1 and (found[0].owns_directories or not plain):
            checkpoint = _read(found[0], path, part)
            rest = {str(file) for format in plain for file in format.weights(path)}.difference(checkpoint.files)
            _tell_left_out(path, sorted(Path(file).name for file in rest))
            return checkpoint
        if found:
            raise _several_formats(path, found if len(found) > 1 else [*found, *plain])
        choice = choose(path, folders)
        if choice is not None:
            return _read_choice(path, choice, part)
    except OSError as error:
        raise storage_error(error, path, "read the directory") from None
    raise StorageError(
        "the directory holds no checkpoint" + (f" of the format {allowed[0].name}" if len(allowed) == 1 else ""),
        where=str(path),
        expected="files " + " ".join(f"*{suffix}" for format in allowed for suffix in format.suffixes),
        found=listing(names),
    )


def _several_formats(path: Path, found: Iterable[Format]) -> StorageError:
    names = [format.name for format in found]
    return StorageError(
        "the directory holds checkpoints of several formats",
        where=str(path),
        expected="files of one format",
        found=" and ".join(names),
        hint="say which: " + " or ".join(f"{name}:{path}" for name in names),
    )


def _file_format(path: Path) -> Format:
    """By suffix; by content where the suffix says nothing, or something that is not so."""
    named = _by_suffix(path.suffix)
    try:
        if named is not None and named.probe_file(path):
            return named
        probed = next((format for format in formats().values() if format.probe_file(path)), None)
    except OSError as error:
        raise storage_error(error, path, "read it") from None
    if named is not None:
        if probed is not None:
            raise StorageError(
                f"the file is named like {named.name}, but holds {probed.name}",
                where=str(path),
                hint=f"rename it to {path.with_suffix(probed.suffixes[0]).name}, or write {probed.name}:{path}",
            )
        return named  # its reader says best what is wrong
    if probed is None:
        raise StorageError(
            "not a checkpoint",
            where=str(path),
            expected="a file " + ", ".join(f"*{suffix}" for format in formats().values() for suffix in format.suffixes),
            found=f"suffix {path.suffix!r} and unknown content",
        )
    return probed


def open_single(path: str, format: str) -> Single:
    """The one tensor of a file; `format` is a word of the step `load`.

    Raises:
        PlanError: no such format.
        StorageError: the file does not hold exactly one tensor, or cannot be read.
    """
    target = locate(path)
    words = {name: known for name, known in formats().items() if known.suffixes}
    if format == "auto":
        check_regular(target)
        chosen = _by_suffix(target.suffix) or words[_FALLBACK]
    else:
        chosen = _known(format, words, "auto")
        check_regular(target)
    with looking(), remembering() as opened:
        name, entry = chosen.read_single(target)
    return Single(name, entry, identities_of([path], opened))


# ---------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Where and how a checkpoint, or with `single` one tensor, will be written."""

    path: str
    format: Format
    is_directory: bool = False
    shard_bytes: int | None = None
    single: bool = False

    def layout(self, tensors: Sequence[tuple[str, Spec]], metadata: Mapping[str, str]) -> Layout:
        """Where every byte belongs.

        Raises:
            StorageError: the format cannot hold these tensors.
        """
        if self.single:
            ((name, spec),) = tensors
            return self.format.layout_single(locate(self.path), name, spec, metadata=metadata)
        return self.format.layout(
            locate(self.path),
            tensors,
            is_directory=self.is_directory,
            shard_bytes=self.shard_bytes,
            metadata=metadata,
        )


def resolve_output(
    path: str, format: str | None, shard: str | None, default_shard: str, options: Mapping[str, str] | None = None
) -> OutputPlan:
    """What the `output` of a plan means: the suffix decides what the plan leaves open.

    Raises:
        PlanError: words or a suffix that do not go together.
        StorageError: the place can only be read.
    """
    check_writable(path)
    words = {name: known for name, known in formats().items() if known.writes_files or known.writes_directories}
    suffix = _suffix(path)
    named = _by_suffix(suffix)
    if format is None:
        chosen = named if named is not None and named.writes_files else words[_DEFAULT]
    else:
        chosen = _known(format, words)
    is_named, chosen = named is chosen, chosen.configured(options or {})
    if chosen.writes_files and is_named and not (locate(path).is_dir() and format is not None):
        _check_no_shard(shard, f"the file {path}")
        return OutputPlan(path, chosen)
    if not chosen.writes_directories:
        raise PlanError(
            f"the format {chosen.name} is written to files",
            expected=f"a path ending in {' or '.join(chosen.suffixes)}",
            found=repr(path),
        )
    if not _may_be_directory(path, suffix):
        raise _bad_suffix(path, suffix, chosen if format is not None else None)
    if not chosen.takes_shards:
        _check_no_shard(shard, f"the format {chosen.name}")
        return OutputPlan(path, chosen, True)
    return OutputPlan(path, chosen, True, parse_size(default_shard if shard is None else shard))


def resolve_save(
    path: str, format: str | None, shard: str | None, options: Mapping[str, str] | None = None
) -> OutputPlan:
    """What the step `save` of a whole alias means: here the suffix decides nothing.

    Raises:
        PlanError: words that do not go together.
    """
    check_writable(path)
    words = {name: known for name, known in formats().items() if known.writes_files or known.writes_directories}
    chosen = (words[_DEFAULT] if format is None else _known(format, words)).configured(options or {})
    limit = None if shard is None else parse_size(shard)
    if not chosen.takes_shards:
        _check_no_shard(shard, f"the format {chosen.name}")
    if chosen.writes_files and limit is None:
        return OutputPlan(path, chosen)
    if not _may_be_directory(path, _suffix(path)):
        raise PlanError(
            f"{'shards are' if limit else f'the format {chosen.name} is'} written to a directory",
            expected="an existing directory, or a path without a suffix",
            found=repr(path),
        )
    return OutputPlan(path, chosen, True, limit)


def resolve_save_tensor(path: str, format: str | None, options: Mapping[str, str] | None = None) -> OutputPlan:
    """What the step `save` of one tensor means.

    Raises:
        PlanError: no such format.
    """
    check_writable(path)
    words = {name: known for name, known in formats().items() if known.writes_tensors}
    chosen = (words[_DEFAULT] if format is None else _known(format, words)).configured(options or {})
    return OutputPlan(chosen.single_path(path), chosen, single=True)


def _known(word: str, words: Mapping[str, Format], *more: str) -> Format:
    if word not in words:
        near = nearest(word.lower(), words)
        raise PlanError(
            f"unknown format {word!r}",
            expected="one of " + ", ".join([*more, *words]),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return words[word]


def _check_no_shard(shard: str | None, what: str) -> None:
    if shard is not None and parse_size(shard) is not None:
        raise PlanError(
            f"{what} cannot be cut into shards",
            expected="no 'shard', or 'shard: none'",
            found=f"shard: {shard}",
            hint="give a directory and the format safetensors",
        )


def _suffix(path: str) -> str:
    suffix = Path(path).suffix
    return "" if suffix == "." else suffix


def _may_be_directory(path: str, suffix: str) -> bool:
    """`runs/v1.5` is a directory, `out.txt` is a mistake."""
    versioned = any(character.isdigit() for character in suffix)
    return not suffix or locate(path).is_dir() or (_by_suffix(suffix) is None and (path.endswith("/") or versioned))


def _bad_suffix(path: str, suffix: str, chosen: Format | None) -> PlanError:
    wanted = [known for known in formats().values() if known.writes_files and chosen in (None, known)]
    files = " ".join(end for known in wanted for end in known.suffixes)
    return PlanError(
        f"the suffix {suffix!r} does not say what to write",
        expected=f"{files + ', or ' if files else ''}a directory: no suffix, or one that exists",
        found=repr(path),
        hint=f"for a directory of that name, write {path}/" if _by_suffix(suffix) is None else None,
    )
