"""Digests of the files that a plan reads, found beside its work, and what they are called in receipts."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ..core.errors import StorageError, listing
from ..graph.node import Node, Source
from ..graph.roots import Symbolic
from ..language.plan import Plan
from ..storage.formats import place_of_input
from ..storage.identity import Identity, remembering
from ..storage.places.found import place_of
from .receipt import Receipt
from .remembered import Remembered
from .rolling import MOST_MARKS, THREADS, FileDigest, digest_of, thinned

__all__ = ["InputDigests", "check_inputs", "marks_of", "names_of"]


class InputDigests:
    """Hashes files in threads of its own, once each; those that were hashed before are remembered: on the disk, and in
    memory those of the one `before`."""

    def __init__(self, before: InputDigests | None = None) -> None:
        self._remembered: Remembered = Remembered() if before is None else before._remembered
        self._known: dict[tuple[str, Identity, tuple[int, ...]], FileDigest] = {} if before is None else before._known
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="surgery-digest")
        self._found: dict[str, Future[FileDigest]] = {}
        self._stopped = threading.Event()

    def begin(self, identities: Mapping[str, Identity], marks: Mapping[str, tuple[int, ...]]) -> None:
        """Find the digests of these files."""
        for path, identity in identities.items():
            if path not in self._found:
                self._found[path] = self._pool.submit(self._find, path, identity, marks.get(path, ()))

    def of(self, path: str) -> FileDigest:
        """The digest of a file that was begun with, once it is there.

        Raises:
            StorageError: it cannot be read, or is not what it was.
        """
        return self._found[path].result()

    def remember(self, path: str, digest: FileDigest, marks: tuple[int, ...]) -> None:
        """A file was just written, and has this digest."""
        with suppress(OSError):  # it is gone already
            self._remembered.put(place_of(path).identity(path), digest, marks)

    def close(self) -> None:
        """Nobody asks any more."""
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def _find(self, path: str, identity: Identity, marks: tuple[int, ...]) -> FileDigest:
        found = self._known.get((path, identity, marks)) or self._remembered.get(identity, marks)
        if found is None:
            with remembering({path: identity}):
                found = digest_of(path, marks, self._tick)
            self._remembered.put(identity, found, marks)
        self._known[path, identity, marks] = found
        return found

    def _tick(self) -> None:
        if self._stopped.is_set():
            raise StorageError("nobody waits for this digest any more")


def names_of(plan: Plan, paths: Iterable[str]) -> dict[str, list[str]]:
    """What files are called, whatever the path of an input is: `ALIAS` for an input that is one file, `ALIAS/name` for
    the others, and their path where no input has them. A file of several inputs has several names."""
    places = [(entry.alias, place_of_input(entry.path)) for entry in plan.inputs]
    folders = [(alias, place if Path(place).is_dir() else str(Path(place).parent)) for alias, place in places]
    found: dict[str, list[str]] = {}
    for path in paths:
        whole = [alias for alias, place in places if place == path]
        above = [(alias, folder) for alias, folder in folders if Path(path).is_relative_to(folder)]
        nearest = max((len(folder) for _, folder in above), default=0)
        within = [f"{alias}/{os.path.relpath(path, folder)}" for alias, folder in above if len(folder) == nearest]
        found[path] = whole or within or [path]
    return found


def check_inputs(known: Receipt, symbolic: Symbolic, hint: str) -> None:
    """Whether the files that a plan reads are those of a receipt. `hint` says what to try if not.

    Raises:
        StorageError: they are not: which files, and which tensors in them, as far as the marks of the receipt tell.
    """
    assert symbolic.plan is not None
    names = {name: path for path, all in names_of(symbolic.plan, symbolic.identities).items() for name in all}
    problems = [*_other_names([entry.alias for entry in symbolic.plan.inputs], known.inputs, names)]
    digests = InputDigests()
    try:
        marks: dict[str, dict[int, str]] = {}
        for name, path in names.items():
            marks.setdefault(path, {}).update(_marks(known, name))
        digests.begin(symbolic.identities, {path: tuple(sorted(found)) for path, found in marks.items()})
        for name, path in names.items():
            if name in known.inputs and digests.of(path).sha256 != known.inputs[name]["digest"]["sha256"]:
                problems.append(f"{name}: {_where(marks[path], digests.of(path), symbolic, path)}")
    finally:
        digests.close()
    if problems:
        raise StorageError(
            "the inputs are not those of the receipt",
            where=str(known.path),
            found="; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else ""),
            hint=hint,
        )


def _other_names(aliases: Iterable[str], then: Collection[str], now: Collection[str]) -> Iterator[str]:
    """What is wrong where files are not called as they were."""
    kinds = {alias: [_is_file(alias, names) for names in (then, now)] for alias in aliases}
    other = {alias: was for alias, (was, found) in kinds.items() if None not in (was, found) and was != found}
    yield from (
        f"{alias}: a {'file' if was else 'directory'} then, and a {'directory' if was else 'file'} now"
        for alias, was in other.items()
    )
    yield from (
        f"{name}: the receipt has no such file" for name in now if name not in then and _alias(name) not in other
    )
    yield from (
        f"{name}: the plan reads no such file" for name in then if name not in now and _alias(name) not in other
    )


def _is_file(alias: str, names: Collection[str]) -> bool | None:
    """Whether an input is one file, and no directory, by the names of all files; None if it has none."""
    return True if alias in names else False if any(_alias(name) == alias for name in names) else None


def _alias(name: str) -> str:
    return name.partition("/")[0]


def _marks(known: Receipt, name: str) -> dict[int, str]:
    """The marks of an input by offset, in the order of these."""
    told = known.table["inputs"].get(name, {"marks": []})["marks"]
    marks = {row[0]: row[1] for row in told if len(row) == 2 and isinstance(row[0], int) and isinstance(row[1], str)}
    size = known.inputs[name]["annotations"]["size"] if name in known.inputs else 0
    return {at: marks[at] for at in sorted(marks)[:MOST_MARKS] if 0 <= at <= size}


def _where(marks: Mapping[int, str], found: FileDigest, symbolic: Symbolic, path: str) -> str:
    """Where a file differs from what it was."""
    begin = 0
    for (at, mark), now in zip(sorted(marks.items()), found.marks, strict=False):
        if not now.startswith(mark):
            names = [
                name
                for nodes in symbolic.given.values()
                for name, node in nodes.items()
                if any(p == path and o < at and o + n > begin for p, o, n in _ranges(node))
            ]
            rest = "" if at == max(marks) else "; what comes after it may differ too"
            return f"tensor {listing(names)} differs{rest}" if names else "its header differs"
        begin = at
    return "it differs"


def marks_of(symbolic: Symbolic) -> dict[str, tuple[int, ...]]:
    """The offsets at which tensors begin and end in the files of inputs: a digest of what comes before each tells where
    two files begin to differ."""
    ends: dict[str, set[int]] = {}
    for nodes in symbolic.given.values():
        for node in nodes.values():
            for path, offset, nbytes in _ranges(node):
                ends.setdefault(path, set()).update((offset, offset + nbytes))
    return {path: thinned(sorted(found)) for path, found in ends.items()}


def _ranges(node: Node) -> Iterable[tuple[str, int, int]]:
    assert isinstance(node.op, Source)
    entry = node.op.entry
    extent = entry.extent
    return extent.ranges(0, entry.spec.nbytes) if extent is not None and entry.spec.nbytes else ()
