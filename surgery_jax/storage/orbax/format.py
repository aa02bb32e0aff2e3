"""Orbax checkpoints: a directory with a table of the tree, and one zarr array per leaf, in files of its own or together
in a key-value store (OCDBT).

The tree is read from `_METADATA`, shapes and places from the metadata of the arrays.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ...core.errors import StorageError, listing
from ...core.specs import Spec
from ..base import Checkpoint, Format, Layout, no_part
from ..documents import documents_beside
from ..files import storage_error
from ..leftovers import in_words
from ..places.base import MARKER
from ..places.found import is_local, place_of
from ..proofs import is_of_git, proofs_in
from .arrays import entries_apart, entries_together
from .chunks import ChunkGrid, chunk_of, divided
from .laid import ArraysApart, ArraysTogether, LaidArray, LaidArrays
from .options import OPTIONS, Settings
from .tree import (
    COMMIT,
    DATA,
    MANIFEST,
    NOTE,
    OWN,
    SHARDING,
    STEP,
    STRINGS,
    TREE,
    TreeNote,
    read_random_kinds,
    read_table,
    read_tree,
)
from .write import WrittenTree
from .zarr import METADATA

__all__ = ["OrbaxFormat"]

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a directory that is being written


class OrbaxFormat(Format):
    """Directories that Orbax writes: `StandardCheckpointer`, `CheckpointManager`, `ocp.save`."""

    name = "orbax"
    writes_files = False
    writes_directories = True
    options: ClassVar[Mapping[str, str]] = OPTIONS

    def __init__(self, settings: Settings | None = None) -> None:
        """As the options say."""
        self.settings = settings or Settings()

    def configured(self, options: Mapping[str, str]) -> OrbaxFormat:
        """With the sizes and words of a plan."""
        super().configured(options)
        return OrbaxFormat(Settings.of(options))

    def probe_directory(self, path: Path) -> bool:
        """Whether it is a checkpoint or a step, or holds nothing but steps."""
        if any((path / name).is_file() for name in (TREE, *STEP)):
            return True
        names = [entry for entry in path.iterdir() if entry.name[0] not in "._"]
        return bool(names) and all(entry.is_dir() for entry in names) and bool(_choices(path))

    def is_document(self, name: str) -> bool:
        """Without the tables, which are part of the checkpoint."""
        return name not in OWN and super().is_document(name)

    def stale(self, path: Path) -> list[Path]:
        """The tables and arrays of a checkpoint that is the directory itself, or the items of a step."""
        is_item = (path / TREE).is_file()
        if not is_item and not any((path / name).is_file() for name in STEP):
            return []
        own = [path / name for name in OWN if name != DATA]
        if (path / MANIFEST).is_file():
            own += [path / DATA, *sorted(path.glob("ocdbt.process_*"))]
        if is_item:
            with suppress(StorageError):  # a broken table is replaced like a sound one; it names nothing to remove
                leaves, _ = read_tree(path / TREE, read_table(path / TREE, "the table of the tree"), "")
                own += [path / leaf.stored for leaf in leaves if _is_array(path, leaf.stored)]
        else:
            own += [entry for entry in sorted(path.iterdir()) if (entry / TREE).is_file()]
        return [entry for entry in dict.fromkeys(own) if entry.exists()]

    def read_header(self, path: Path) -> Checkpoint:
        """The tree of the only item of the only step, or of the one that the path names."""
        return self._read(path, "")

    def read_part(self, path: Path, prefix: str) -> Checkpoint:
        """Of the leaves of the part alone."""
        return self.part(self._read(path, prefix), prefix)

    def _read(self, path: Path, prefix: str) -> Checkpoint:
        if not path.is_dir():
            raise StorageError("an Orbax checkpoint is a directory", where=str(path))
        try:
            _check_name(path, path.resolve())
            item = _find(path)
            _check_committed(item)
            return _read_item(path, item, prefix)
        except OSError as error:
            raise storage_error(error, path, "read it") from None

    def layout(
        self,
        path: Path,
        tensors: Sequence[tuple[str, Spec]],
        *,
        is_directory: bool,
        shard_bytes: int | None,
        metadata: Mapping[str, str],
    ) -> Layout:
        """As `StandardCheckpointer` writes it, or with an item of a step, as `CheckpointManager` does."""
        _check_no_steps(path)
        settings = self.settings
        written = WrittenTree(str(path), tensors, TreeNote.of(metadata))
        shards = settings.shardings.shards(tensors) if settings.shardings is not None else {}
        arrays: LaidArrays = ArraysTogether() if settings.is_together else ArraysApart()
        for name, spec in tensors:
            limit = settings.chunk_bytes
            chunk = divided(spec, shards[name], limit) if name in shards else chunk_of(spec, limit)
            arrays.add(
                name, LaidArray(written.stored[name], ChunkGrid(spec, chunk), settings.zarr, settings.compression)
            )
        tables = written.tables({key: value for key, value in metadata.items() if key != NOTE}, settings)
        above = f"{settings.item}/" if settings.item else ""
        files = tuple(replace(file, name=above + file.name) for file in arrays.files())

        def finish(root: Path) -> Iterator[tuple[str, bytes]]:
            for name, content in arrays.finish(root / settings.item):
                yield above + name, content
            yield from tables.items()

        return Layout(files, arrays.places, True, finish, arrays.rest)

    def part(self, checkpoint: Checkpoint, prefix: str) -> Checkpoint:
        """Also what the tree has there beside tensors."""
        found = super().part(checkpoint, prefix)
        return replace(found, metadata=TreeNote.of(checkpoint.metadata).below(prefix).metadata())


# ------------------------------------------------------------------------------------------------ steps and items


def _find(path: Path) -> Path:
    if (path / TREE).is_file():
        return path
    found = _choices(path)
    if len(found) == 1:
        return found[0]
    if found:
        names = [str(choice.relative_to(path)) for choice in found]
        raise StorageError(
            "the directory holds several checkpoints",
            where=str(path),
            expected="one of them",
            found=listing(names, 12),
            hint=f"say which: {path / names[-1]}",
        )
    unfinished = [entry.name for entry in path.iterdir() if _UNFINISHED in entry.name]
    raise StorageError(
        "the directory holds no finished checkpoint" if unfinished else "the checkpoint has no table of its tree",
        where=str(path),
        expected=f"a file {TREE}, in it or in a directory of a step or an item",
        found=listing(unfinished or sorted(entry.name for entry in path.iterdir())),
    )


def _choices(path: Path) -> list[Path]:
    """The items in a directory, or if there are none those of the steps in it."""
    below = _finished(path)
    items = [entry for entry in below if (entry / TREE).is_file()]
    if not items:
        steps = [entry for entry in below if any((entry / name).is_file() for name in STEP)]
        items = [item for step in steps for item in _finished(step) if (item / TREE).is_file()]
    return sorted(items, key=_by_number)


def _finished(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if _UNFINISHED not in entry.name and entry.is_dir()]


def _check_no_steps(path: Path) -> None:
    """A checkpoint beside others, such as the steps of a `CheckpointManager`, would hide them."""
    if not path.is_dir() or any((path / name).is_file() for name in (TREE, *STEP)):
        return
    if choices := _choices(path):
        is_managed = choices[0].parent != path
        raise StorageError(
            "the directory holds steps of a CheckpointManager" if is_managed else "the directory holds checkpoints",
            where=str(path),
            found=listing(str(choice.relative_to(path)) for choice in choices),
            hint=f"name a step or an item, such as {choices[-1]}, or another directory",
        )


def _is_array(path: Path, stored: str) -> bool:
    """Whether there is an array under a name of the table, right in the directory."""
    return Path(stored).name == stored and any((path / stored / name).is_file() for name in METADATA)


def _by_number(path: Path) -> tuple[int, str]:
    """Steps in the order of their numbers: `ckpt_9/items` before `ckpt_10/items`."""
    digits = "".join(character for character in path.parent.name + path.name if character.isdigit())
    return (int(digits[:18] or 0), str(path))


def _check_name(item: Path, place: Path) -> None:
    """On a disk Orbax renames a directory last, and so judges by its name."""
    if _UNFINISHED in place.name:
        final = place.name.split(_UNFINISHED)[0]
        raise StorageError(
            "the checkpoint was never finished: its directory has the name of a temporary one",
            where=str(item),
            expected=f"{final}, the name that Orbax gives it last, and {COMMIT} in it by newer releases",
            found=f"{place.name}, {'with' if (place / COMMIT).is_file() else 'without'} {COMMIT}",
            hint=f"take another step; if you know that it is complete, rename it to {final}",
        )


def _check_committed(item: Path) -> None:
    """Whether Orbax finished it. What was written in place, as in a bucket, has its last name from the beginning: there
    the marker counts, or that the time of the end is told."""
    absolute = item.resolve()
    places = [absolute, absolute.parent]
    for place in places:
        _check_name(item, place)
    has_marker = any((place / COMMIT).is_file() for place in places)
    step = next((place for place in places if (place / STEP[0]).is_file()), None)
    if has_marker or step is None:
        return
    table = read_table(step / STEP[0], "the table of the step")
    if isinstance(table, dict) and table.get("init_timestamp_nsecs") and not table.get("commit_timestamp_nsecs"):
        raise StorageError(
            "the checkpoint was begun and never finished, or not copied as a whole",
            where=str(item),
            expected=f"a file {COMMIT}, or a time 'commit_timestamp_nsecs' in {STEP[0]}",
            found="neither",
            hint=f"fetch it again; if you know that it is complete, make an empty file {step / COMMIT}",
        )


# ---------------------------------------------------------------------------------------------------------- reading


def _read_item(path: Path, item: Path, prefix: str) -> Checkpoint:
    """The checkpoint of an item, or of the branch `prefix` of its tree, under full names."""
    table = read_table(item / TREE, "the table of the tree")
    if (item / SHARDING).is_file():
        read_table(item / SHARDING, "the table of shardings")
    leaves, note = read_tree(item / TREE, table, f"{prefix}." if prefix else "")
    if prefix and not leaves:
        raise no_part(str(path), prefix, (leaf.name for leaf in read_tree(item / TREE, table, "")[0]))
    metadata, note.step = _step_metadata(item)
    texts = read_table(item / STRINGS, "the table of texts") if (item / STRINGS).is_file() else {}
    for name, stored in note.texts.items():
        text = texts.get(stored) if isinstance(texts, dict) else None
        if not isinstance(text, str):
            raise StorageError(f"the text of {name!r} is missing", where=str(item / STRINGS))
        note.texts[name] = text
    by_stored = {leaf.stored: leaf.name for leaf in leaves}
    note.random = {by_stored[key]: kind for key, kind in read_random_kinds(item).items() if key in by_stored}
    has_holes = not (isinstance(table, dict) and table.get("store_array_data_equal_to_fill_value") is True)
    is_together = (item / MANIFEST).is_file()
    others: list[tuple[str, str]] = []
    read = entries_together if is_together else entries_apart
    used: set[str] = set()
    entries = read(item, leaves, has_holes, others, used)
    told = in_words((name[len(prefix) + 1 :] if prefix else name, word) for name, word in others)
    if not entries:
        raise StorageError("the checkpoint holds no tensors", where=str(path), found="; ".join(told) or None)
    beside = {*documents_beside(item, OrbaxFormat(), ()).values(), *map(str, proofs_in(item))}
    files = tuple(
        file for file in _files(item, used) if file not in beside and not is_of_git(file[len(str(item)) + 1 :])
    )
    return Checkpoint(str(path), OrbaxFormat.name, entries, metadata | note.metadata(), files, left_out=told)


def _files(item: Path, used: Collection[str]) -> list[str]:
    """All files of an item, in the order of their names; `used` are those of its arrays."""
    place = place_of(str(item))
    if is_local(item):
        return _files_below(str(item))
    if place.lists:
        names = {f"{item}/{name}" for name in place.below(str(item)) if name != MARKER}
    else:
        names = {*used, *(str(item / name) for name in OWN if (item / name).is_file())}
    return sorted(names)


def _files_below(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        found = sorted((entry.path, entry.is_dir()) for entry in entries)
    return [path for place, is_folder in found for path in (_files_below(place) if is_folder else [place])]


def _step_metadata(item: Path) -> tuple[dict[str, str], dict[str, object]]:
    """What the user put beside the whole checkpoint: texts by name, and what is none."""
    for place in (item, item.parent):
        if (place / STEP[0]).is_file():
            table = read_table(place / STEP[0], "the table of the step")
            found = table.get("custom_metadata") if isinstance(table, dict) else None
            told = {key: value for key, value in found.items() if key != NOTE} if isinstance(found, dict) else {}
            texts = {key: value for key, value in told.items() if isinstance(value, str)}
            return texts, {key: value for key, value in told.items() if key not in texts}
    return {}, {}
