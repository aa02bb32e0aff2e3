"""Whether an output may be written to its place, before any work is done."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core.errors import StorageError, listing
from ..core.model_config import CONFIG
from ..core.notes import note
from ..core.specs import format_bytes
from .base import Format, Layout
from .documents import documents_beside
from .files import storage_error
from .formats import OutputPlan, formats
from .places.found import is_local, locate
from .proofs import proofs_in

__all__ = ["MODEL_FILES", "check_space", "check_target", "final_place", "tell_kept"]

MODEL_FILES = ("model.safetensors", "pytorch_model.bin")  # that are taken with the documents that lie beside them


def check_target(plan: OutputPlan, overwrite: bool, documents: Sequence[str] = ()) -> None:
    """Whether an output may and can be written to its place, before any work is done; `documents` are the names of
    files that it has beside its tensors.

    Raises:
        StorageError: something is in the way, or the place cannot be written.
    """
    final = final_place(plan.path)
    try:
        if final.is_symlink():
            _check_link(plan, final, overwrite)
        mode = final.stat().st_mode if final.exists() else None
        if mode is not None and stat.S_ISDIR(mode):
            _check_directory(plan, final, overwrite)
            _check_documents(plan, final, overwrite, documents)
            _check_proofs(plan, final, overwrite)
        elif mode is not None:
            _check_file(plan, final, stat.S_ISREG(mode), overwrite)
        if not is_local(final):
            return
        above = next(parent for parent in final.parents if parent.exists())
        if not above.is_dir():
            raise StorageError("a file is where a directory is needed", where=plan.path, found=f"the file {above}")
        place = above if os.access(above, os.W_OK | os.X_OK) or not final.is_dir() else final
        if not os.access(place, os.W_OK | os.X_OK):
            raise StorageError("the directory cannot be written", where=plan.path, found=f"no permission for {place}")
    except OSError as error:
        raise storage_error(error, plan.path, "write there") from None


def _check_link(plan: OutputPlan, final: Path, overwrite: bool) -> None:
    """A link can give way to a file; writing never follows it."""
    leads = str(final.readlink())
    if plan.is_directory or final.is_dir():
        raise StorageError(
            "a link is where the output would be, and writing follows none",
            where=plan.path,
            found=f"a link to {leads}",
            hint=f"name the directory that it leads to: {os.path.realpath(final)}",
        )
    if not overwrite:
        raise StorageError(
            "a link is there already",
            where=plan.path,
            found=f"a link to {leads}",
            hint="add --overwrite to replace the link; what it leads to stays",
        )


def _check_directory(plan: OutputPlan, final: Path, overwrite: bool) -> None:
    if not plan.is_directory:
        raise StorageError(
            "a directory is where the file would be",
            where=plan.path,
            hint="give the name of a file in it, or a 'shard' size to write a directory",
        )
    for format in formats().values():
        # Beside the new checkpoint, these would be read instead of it or make it unclear. They are not ours to delete.
        own = set(plan.format.stale(final)) if plan.format.owns_directories else set()
        is_other = format.name != plan.format.name and format.probe_directory(final)
        if is_other and not (own and own.issuperset(_weights(format, final))):
            raise StorageError(
                f"the directory holds a {format.name} checkpoint",
                where=plan.path,
                found=listing(str(path.relative_to(final)) for path in _weights(format, final)),
                hint="choose another directory, or remove these files",
            )
    if not overwrite and (plan.format.stale(final) or plan.format.probe_directory(final)):
        raise StorageError(
            "the directory holds a checkpoint already",
            where=plan.path,
            found=listing(str(path.relative_to(final)) for path in _weights(plan.format, final)),
            hint="add --overwrite to replace it; other files in the directory stay",
        )


def _check_documents(plan: OutputPlan, final: Path, overwrite: bool, documents: Sequence[str]) -> None:
    """Documents are replaced as tensors are: only if that is asked for."""
    in_the_way = [name for name in documents if (final / name).exists() or (final / name).is_symlink()]
    if in_the_way and not overwrite:
        raise StorageError(
            "the directory holds documents already",
            where=plan.path,
            found=listing(in_the_way),
            hint="add --overwrite to replace them, or leave them as they are with documents: none",
        )


def _check_proofs(plan: OutputPlan, final: Path, overwrite: bool) -> None:
    """A receipt belongs to the checkpoint beside it: it goes with it, and not otherwise."""
    found = [path.name for path in proofs_in(final)]
    if found and not overwrite:
        raise StorageError(
            "the directory holds the receipt of another checkpoint",
            where=plan.path,
            found=listing(found),
            hint="add --overwrite to replace it, or choose another directory",
        )


def tell_kept(plan: OutputPlan, documents: Sequence[str]) -> None:
    """Tell which documents of a model that is replaced stay, since the new one has none of that name."""
    final = final_place(plan.path)
    if plan.is_directory:
        own = {str(path) for path in plan.format.stale(final)} if final.is_dir() else set()
        is_model = bool(own) or (final / CONFIG).is_file()
    else:
        own, is_model = {str(final)}, final.is_file() and final.name in MODEL_FILES
    if is_model:
        kept = [name for name in documents_beside(final, plan.format, own) if name not in documents]
        if kept:
            note(f"{plan.path}: kept, although the model there is replaced: {listing(kept)}")


def _weights(format: Format, final: Path) -> list[Path]:
    """The files of a checkpoint in a directory; if nobody can tell which they are, all that may be."""
    return format.stale(final) or sorted(path for path in final.iterdir() if path.suffix in format.suffixes)


def _check_file(plan: OutputPlan, final: Path, is_regular: bool, overwrite: bool) -> None:
    if plan.is_directory:
        raise StorageError("a file is where the directory would be", where=plan.path)
    if not is_regular:
        raise StorageError("this is neither a file nor a directory", where=plan.path, expected="a file to write")
    if not overwrite:
        raise StorageError("the file exists already", where=plan.path, hint="add --overwrite to replace it")


def check_space(outputs: Iterable[tuple[OutputPlan, Layout]]) -> None:
    """Whether the disks have room for all outputs beside what is there now.

    Raises:
        StorageError: a disk has not.
    """
    need: dict[int, int] = {}
    place: dict[int, tuple[str, Path]] = {}
    for plan, layout in outputs:
        final = final_place(plan.path)
        if not is_local(final):  # there is no telling how much room there is
            continue
        above = next(parent for parent in final.parents if parent.is_dir())
        disk = above.stat().st_dev
        need[disk] = need.get(disk, 0) + sum(file.size for file in layout.files)
        place[disk] = plan.path, above
    for disk, count in need.items():
        path, above = place[disk]
        status = os.statvfs(above)
        free = status.f_bavail * status.f_frsize
        if count > free:
            raise StorageError(
                "not enough room on the disk",
                where=path,
                expected=f"needs {format_bytes(count)}",
                found=f"has {format_bytes(free)}",
                hint="free some space, or write to another disk",
            )


def final_place(path: str) -> Path:
    """The real place: links that lead to its directory are followed, so that renames stay on one disk; a link at the
    place itself is not, since what it leads to may be somebody else's.

    Raises:
        StorageError: it is no path, or the root of the file system, beside which nothing can be built.
    """
    if not is_local(path):
        return locate(path)
    if "\0" in path:
        raise StorageError("not a path: it has a NUL", where=repr(path))
    above, name = os.path.split(path.rstrip("/") or path)
    if name in ("", ".", ".."):
        final = Path(os.path.realpath(path))
    else:
        final = Path(os.path.realpath(above)) / name
    if final == final.parent:
        raise StorageError(
            "the root of the file system is no place for an output", where=path, hint="name a directory in it"
        )
    return final
