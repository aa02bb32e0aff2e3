"""Clearing away what runs that did not come to their end have left, and putting back what they were replacing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..core.specs import format_bytes
from .continued import discard_uploads
from .files import storage_error
from .places.found import is_local
from .renames import put_back, rename_new
from .stages import (
    NEW,
    OLD,
    Stage,
    all_left,
    is_at_work,
    is_stage,
    names_in,
    open_lock,
    parsed,
    remove_stage,
    stages_in,
    stages_of,
    try_lock,
)
from .targets import final_place

__all__ = ["Cleared", "clear", "cleared"]


def clear(target: Path, *, remove: bool, mend: bool = False) -> list[str]:
    """Name the dead stages of an output, a sentence each. With `mend` put back what a run was replacing when it was
    killed, where nothing is in its place; with `remove` also remove the stages that nobody can miss."""
    found = stages_of(target) if is_local(target) else ()  # elsewhere nobody can tell whether a writer lives
    return [told for stage in found if (told := clear_stage(stage, target, remove=remove, mend=mend or remove))]


class Cleared(NamedTuple):
    """What became of a stage: a sentence, and whether it is gone."""

    told: str
    is_removed: bool


def cleared(path: str) -> Iterator[Cleared]:
    """Remove the dead stages of an output, or of all outputs in a folder, or the one that lies there itself. At other
    places all that runs have begun of an output is removed: nobody can tell whether a writer lives.

    Raises:
        StorageError: it is no path, or the store refuses.
    """
    place = final_place(path)
    if not is_local(place):
        try:
            yield from (Cleared(told, True) for told in discard_uploads(path))
        except OSError as error:
            raise storage_error(error, path, "remove what is begun there") from None
        return
    itself = {place: None} if is_stage(place.name) else {}
    for stage, target in {
        **itself,
        **dict.fromkeys(stages_in(place)),
        **dict.fromkeys(stages_of(place), place),
    }.items():
        told = clear_stage(stage, target, remove=True, mend=True)
        if told is not None or os.path.lexists(stage):
            told = told or (
                f"{stage}: a run is at work there" if is_at_work(stage) else f"{stage}: is of another output"
            )
            yield Cleared(told, not os.path.lexists(stage))


def clear_stage(stage: Path, target: Path | None, *, remove: bool, mend: bool) -> str | None:
    """As `clear` for one stage: of this output, or if None of the one that it names itself."""
    try:
        descriptor = open_lock(stage)
    except OSError:
        if mend:  # its process was killed when it began, or has not come further
            with suppress(OSError):
                stage.rmdir()
                return f"{stage}: empty, removed, left by a run that was killed when it began"
        return f"{stage}: cannot be told to be dead; remove it if no run is at work there" if stage.exists() else None
    try:
        locked = try_lock(descriptor)
        said, _, more = os.read(descriptor, 1 << 16).partition(b"\n")
        told = parsed(said)
        name = told.get("target")
        if target is None:
            target = _target_of(stage, name)
        if locked is False or not isinstance(name, str | None) or (name or target.name) != target.name:
            return None
        if locked is None or told.get("host", socket.gethostname()) != socket.gethostname():
            host = f", made on {told['host']}" if isinstance(told.get("host"), str) else ""
            return f"{stage}: cannot be told to be dead{host}; remove it if no run is at work there"
        if not all_left(Stage(stage)):
            return None
        return _clear_dead(stage, target, parsed(more), remove, mend)
    except OSError as error:
        return f"{stage}: cannot be looked at: {error.strerror}"
    finally:
        os.close(descriptor)


def _target_of(stage: Path, name: object) -> Path:
    """The output of a stage, by the name that it says; one in its output has the name of where it lies."""
    if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
        name = stage.name[1:].rpartition(".surgery-")[0]
    return stage.parent if stage.parent.name == name else stage.parent / name


def _clear_dead(stage: Path, target: Path, facts: Mapping[str, object], remove: bool, mend: bool) -> str:
    old, new = stage / OLD, stage / NEW
    if os.path.lexists(old) and not os.path.lexists(target):
        if mend:
            rename_new(old, target)
        if remove:
            remove_stage(stage)
        return f"{old}: what was in {target}, left by a run that was killed while it replaced it; run puts it back"
    if stage.parent == target and _has_entries(old) and _has_entries(new):
        if mend:
            put_back(target, old, new, names_in(facts))
        if remove:
            remove_stage(stage)
        return f"{old}: files of {target}, left by a run that was killed while it replaced them; run puts them back"
    is_old_here = os.path.lexists(old) or (os.path.lexists(new) and new.lstat().st_ino != facts.get("node"))
    if facts.get("together") and is_old_here:
        return (
            f"{stage}: left by a run that was killed while its outputs appeared, not all of which may be new; "
            f"it may hold what was in {target}"
        )
    size = format_bytes(sum(_size(path) for path in stage.rglob("*")))
    if remove or (mend and not Stage(stage).read_head()):  # without a head nobody can go on with it
        remove_stage(stage)
        return f"{stage}: removed, {size} left by a run that did not come to its end"
    ways = f"surgery-jax clean {target} removes it"
    if Stage(stage).has_finished and Stage(stage).is_whole:
        ways = f"--resume goes on with it, {ways}"
    return f"{stage}: {size} left by a run that did not come to its end; {ways}"


def _has_entries(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_blocks * 512
    return 0
