"""Whether a checkpoint is what a receipt describes: every tensor, whatever stores it, and every file as it was."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.cores import usable_cores
from ..core.errors import PlanError, StorageError, SurgeryError
from ..core.interrupts import check_interrupted
from ..storage.base import Checkpoint, Entry
from ..storage.files import check_exists
from ..storage.formats import open_checkpoint
from ..storage.identity import check_all
from ..storage.places.base import MARKER
from ..storage.places.found import locate
from ..storage.proofs import PROOFS, SIGNATURE, is_of_git
from ..storage.stages import is_stage
from ..storage.stored import Readers, blocks_of
from .beside import find_receipt
from .receipt import Receipt, read_receipt
from .rolling import digest_of, gaps
from .signing import Verifier, manifest_files
from .tree import LEAF, hash_of, num_leaves, root_of, tensor_digest

__all__ = ["Verification", "verify"]

BATCH = 64  # leaves that a thread takes at once


@dataclass(frozen=True)
class Verification:
    """What a checkpoint has in common with a receipt. Names of tensors and of files that differ from it, that it has
    and the checkpoint has not, and that only the checkpoint has. Files are compared if most of their bytes lie in
    files as they did (`same_files`). `signed`: whether a key was given, and is that of the signatures."""

    path: str
    receipt: str
    num_tensors: int
    num_files: int
    same_files: bool
    signed: bool
    tensors_differing: tuple[str, ...] = ()
    tensors_missing: tuple[str, ...] = ()
    tensors_extra: tuple[str, ...] = ()
    files_differing: tuple[str, ...] = ()
    files_missing: tuple[str, ...] = ()
    files_extra: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        lists = ("differing", "missing", "extra")
        return not any(getattr(self, f"{what}_{kind}") for what in ("tensors", "files") for kind in lists)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"holds": self.holds}


def verify(
    path: str,
    receipt: str | None = None,
    public_key: str | None = None,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Compare a checkpoint with the receipt beside it or another one, and signatures with a public key.

    Raises:
        StorageError: one of them cannot be read, or is not signed with that key.
        PlanError: the receipt has no digests of tensors, and its files are not there; the key cannot be used; or the
            path is that of a receipt.
    """
    verifier = Verifier(public_key) if public_key is not None else None
    place = locate(path)
    try:
        known = read_receipt(receipt) if receipt is not None else find_receipt(path)
    except StorageError:
        check_exists(place)
        raise
    if known.path == place:
        raise PlanError(
            "this is a receipt, and no checkpoint",
            where=path,
            expected="the checkpoint that it is of",
            hint=f"surgery-jax verify {known.output} --receipt {path}",
        )
    if verifier is not None:
        _check_signed(known, verifier, has_files=_lies_in(known, place))
    root = place if place.is_dir() else place.parent
    alone = set(known.table["files"]) == {"."}
    there = {name: place if alone else root / name for name in known.table["files"]}
    same_files = place.is_dir() != alone and _is_cut_alike(known, place, there)
    found: dict[str, tuple[str, ...]] = {}
    unreadable: StorageError | None = None
    has_tensors = known.digest != "none"
    if not has_tensors and not same_files:
        raise PlanError(
            "the receipt knows no tensors, and the files that it knows are not all there",
            where=str(known.path),
            hint="receipts that are written without --digest none can be compared with any copy",
        )
    by_file = set(known.table["files"]) if not has_tensors else set()
    if has_tensors:
        try:
            parts = [open_checkpoint(path)]
        except StorageError:
            if not same_files and not _lies_in(known, place):
                raise
            same_files = True
            parts = [*_parts(there.values())]
        by_file = set(known.table["files"])
        if parts:
            found, unreadable = _compare_tensors(parts, known.table, workers or usable_cores(), progress)
            same_files = same_files or (unreadable is not None and _lies_in(known, place))
            if same_files:
                found |= _compare_rest(parts, known.table, there)
                by_file = {name for name, facts in known.table["files"].items() if "rest" not in facts}
    if same_files:
        found = _compare_files(known.table, there, by_file, found)
        found["files_extra"] = () if alone else tuple(_extra(root, known.table["files"], verifier is not None))
    if unreadable is not None and not (found.get("files_differing") or found.get("files_missing")):
        raise unreadable  # the files are as they were, or nobody knows: it is not they that differ
    num_files = len(there) if same_files else 0
    num_tensors = len(known.table["tensors"])
    return Verification(path, str(known.path), num_tensors, num_files, same_files, verifier is not None, **found)


def _is_cut_alike(known: Receipt, place: Path, there: Mapping[str, Path]) -> bool:
    """Whether most of the bytes of a checkpoint lie in files of the names that they had, so that what else is there or
    not can be held against it. Of a copy, which may be in another format, these must have their lengths, too."""
    beside = known.path.absolute().parent
    is_own = _lies_in(known, place) or (beside == place.absolute().parent and known.name == place.name)
    files, documents = known.table["files"], known.table["documents"]
    sizes: dict[str, int] = {name: facts["size"] for name, facts in files.items() if name not in documents}
    kept = (name for name in sizes if there[name].is_file())
    alike = sum(sizes[name] for name in kept if is_own or there[name].stat().st_size == sizes[name])
    return bool(2 * alike >= sum(sizes.values()))


def _lies_in(known: Receipt, place: Path) -> bool:
    """Whether a receipt is that in a directory."""
    return known.path.absolute().parent == place.absolute()


def _check_signed(known: Receipt, verifier: Verifier, *, has_files: bool) -> None:
    """Whether the receipt and the manifest beside it are signed, and say the same. A receipt that lies elsewhere than
    the files (`has_files`) needs no manifest beside it.

    Raises:
        StorageError: they are not, or do not.
    """
    verifier.check_receipt(known)
    manifest = known.path.with_name(SIGNATURE)
    if has_files and not manifest.exists():
        raise StorageError(
            "the files are not signed, although the receipt is", where=str(manifest.parent), expected=SIGNATURE
        )
    if manifest.exists():
        files = {name: facts["sha256"] for name, facts in known.table["files"].items()}
        if manifest_files(verifier.verify(manifest), manifest) != files:
            raise StorageError("the files that were signed are not those of the receipt", where=str(manifest))


# ---------------------------------------------------------------------------------------------------------- tensors


def _parts(files: Iterable[Path]) -> Iterator[Checkpoint]:
    """What can be read of a checkpoint that cannot be read as a whole: files that are checkpoints by themselves."""
    for file in files:
        with suppress(SurgeryError):
            if file.is_file():
                yield open_checkpoint(str(file))


def _compare_tensors(
    parts: Sequence[Checkpoint],
    table: Mapping[str, Any],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, tuple[str, ...]], StorageError | None]:
    """Names of tensors that differ, are missing and are extra. One that cannot be read differs; and why it cannot."""
    known = table["tensors"]
    entries = {name: entry for part in parts for name, entry in part.entries.items()}
    differing = [name for name, facts in known.items() if name in entries and not _is_spec(entries[name], facts)]
    same = {name: entries[name] for name in known if name in entries and name not in set(differing)}
    digests = _Digests(same, table["digest"], progress)
    digests.find(workers)
    for part in parts:
        check_all(part.identities)
    differing += [name for name in same if digests.found[name] != known[name].get("digest")]
    order = {name: number for number, name in enumerate(known)}
    names = {
        "tensors_differing": tuple(sorted(differing, key=order.__getitem__)),
        "tensors_missing": tuple(name for name in known if name not in entries),
        "tensors_extra": tuple(name for name in entries if name not in known),
    }
    return names, next(iter(digests.unreadable.values()), None)


def _is_spec(entry: Entry, facts: Mapping[str, Any]) -> bool:
    return bool(entry.spec.dtype.name == facts["dtype"] and list(entry.spec.shape) == facts["shape"])


class _Digests:
    """Digests of stored tensors, found by several threads that take some leaves after the other."""

    def __init__(self, entries: Mapping[str, Entry], kind: str, progress: Callable[[int, int], None] | None) -> None:
        self._kind = kind
        self._begin = hash_of(kind)
        self.found: dict[str, str] = {}
        self.unreadable: dict[str, StorageError] = {}
        self._entries = entries
        self._leaves = {name: [b""] * num_leaves(entry.spec.nbytes) for name, entry in entries.items()}
        self._show = progress
        self._total = sum(entry.spec.nbytes for entry in entries.values())
        self._done = 0
        self._failed: BaseException | None = None
        self._lock = threading.Lock()

    def find(self, workers: int) -> None:
        """Find all of them, but for those that are `unreadable`, which have an empty one."""
        pending = self._portions()
        threads = [threading.Thread(target=self._work, args=(pending,), daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
                    check_interrupted()
                    if self._show is not None:
                        self._show(self._done, self._total)
        except BaseException as error:
            self._failed = self._failed or error
            raise
        if self._failed is not None:
            raise self._failed
        self.found |= dict.fromkeys(self.unreadable, "")
        for name, entry in self._entries.items():
            if name not in self.found:
                self.found[name] = root_of(entry.spec, self._leaves[name], self._kind)

    def _portions(self) -> Iterator[list[tuple[str, int, int]]]:
        """Leaves that are taken together: of one large tensor, or of many small ones."""
        portion: list[tuple[str, int, int]] = []
        room = BATCH
        for name, entry in self._entries.items():
            if entry.extent is None:
                yield [(name, 0, 0)]
                continue
            count = len(self._leaves[name])
            for first in range(0, count, BATCH):
                portion.append((name, first, min(count, first + BATCH)))
                room -= min(BATCH, count - first)
                if room <= 0 or len(portion) > 1000:
                    yield portion
                    portion, room = [], BATCH
        if portion:
            yield portion

    def _work(self, pending: Iterator[list[tuple[str, int, int]]]) -> None:
        try:
            with Readers() as readers:
                while self._failed is None:
                    with self._lock:
                        portion = next(pending, None)
                    if portion is None:
                        return
                    for name, first, end in portion:
                        try:
                            self._take(self._entries[name], name, first, end, readers)
                        except StorageError as error:
                            self.unreadable.setdefault(name, error)
        except BaseException as error:
            self._failed = self._failed or error

    def _take(self, entry: Entry, name: str, first: int, end: int, readers: Readers) -> None:
        if entry.extent is None:
            self.found[name] = tensor_digest(entry.spec, blocks_of(entry), self._kind)
            nbytes = entry.spec.nbytes
        else:
            nbytes = 0
            for leaf in range(first, end):
                length = min(LEAF, entry.spec.nbytes - leaf * LEAF)
                digest = self._begin(b"")
                for block in blocks_of(entry, leaf * LEAF, length, readers):
                    digest.update(block)
                self._leaves[name][leaf] = digest.digest()
                nbytes += length
        with self._lock:
            self._done += nbytes


# ------------------------------------------------------------------------------------------------------------ files


def _compare_rest(parts: Sequence[Checkpoint], table: Mapping[str, Any], there: Mapping[str, Path]) -> dict[str, Any]:
    """Files that hold tensors as they are, but for these: headers, and what lies between."""
    taken: dict[str, list[tuple[int, int]]] = {}
    for entry in (entry for part in parts for entry in part.entries.values()):
        if entry.extent is not None and entry.spec.nbytes:
            for path, offset, nbytes in entry.extent.ranges(0, entry.spec.nbytes):
                taken.setdefault(os.path.realpath(path), []).append((offset, nbytes))
    differing = []
    with Readers() as readers:
        for name, facts in table["files"].items():
            if "rest" not in facts or not there[name].is_file():
                continue
            file = readers.of(str(there[name]))
            rest = hashlib.sha256()
            for offset, nbytes in gaps(taken.get(os.path.realpath(there[name]), ()), file.size):
                for block in file.blocks(offset, nbytes):
                    rest.update(block)
            if file.size != facts["size"] or rest.hexdigest() != facts["rest"]:
                differing.append(name)
    return {"files_differing": tuple(differing)}


def _compare_files(
    table: Mapping[str, Any], there: Mapping[str, Path], names: set[str], found: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """With what is found already, the files of these names as a whole, and which of all are missing."""
    missing = [name for name in table["files"] if not there[name].is_file()]
    present = [name for name in table["files"] if name in names and name not in missing]

    def differs(name: str) -> bool:
        facts = table["files"][name]
        return (
            bool(there[name].stat().st_size != facts["size"]) or digest_of(str(there[name])).sha256 != facts["sha256"]
        )

    with ThreadPoolExecutor(usable_cores()) as pool:
        differing = [name for name, is_other in zip(present, pool.map(differs, present), strict=True) if is_other]
    return {
        **found,
        "files_differing": (*found.get("files_differing", ()), *differing),
        "files_missing": tuple(sorted(missing)),
    }


def _extra(root: Path, known: Sequence[str] | Mapping[str, Any], is_signed: bool) -> Iterator[str]:
    """Files of a directory that are not known; where it is signed also what leads out of it or is no file, which may
    have been beside another output before, but never beside one that was signed."""
    for entry in sorted(root.rglob("*")):
        name = entry.relative_to(root)
        is_part = entry.is_file() or (is_signed and (entry.is_symlink() or not entry.is_dir()))
        if is_part and name.as_posix() not in known and name.as_posix() not in (*PROOFS, MARKER):
            if not is_stage(name.parts[0]) and not is_of_git(name.as_posix()):
                yield name.as_posix()
