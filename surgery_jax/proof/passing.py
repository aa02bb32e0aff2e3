"""Digests of what a run writes, found while its bytes pass: of every tensor, and of every file."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import StorageError
from ..core.ranges import ranges
from ..core.specs import Spec
from ..storage.base import Layout
from ..storage.files import storage_error
from ..storage.formats import open_checkpoint
from ..storage.places.found import place_of
from ..storage.stored import blocks_of
from .rolling import FileFacts, Held, Rolling, digest_of, gaps, read_back
from .tree import LEAF, num_leaves, root_of, tensor_digest

if TYPE_CHECKING:
    from ..io.outputs import Written
    from ..storage.publish import Staging

__all__ = ["OutputDigests"]

EARLY = 32 << 20  # bytes that are kept until it is their turn, of files, and as much of leaves


class _Leaves:
    """The leaves of one tensor as far as they are known, and parts of those that are not."""

    __slots__ = ("found", "parts", "spec")

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.found: list[bytes | None] = [None] * num_leaves(spec.nbytes)
        self.parts: dict[int, dict[int, bytes]] = {}  # by leaf, by first byte in it

    def length(self, leaf: int) -> int:
        return min(LEAF, self.spec.nbytes - leaf * LEAF)


class OutputDigests:
    """Of one staged output: told every range that is written to its files, by several threads.

    Bytes that are not seen, as the kernel copied them, are read back at once, while they are in the page cache; what is
    still missing at the end is read from the finished files. `numbers` are those of its files in the layout, by their
    places.
    """

    def __init__(self, staging: Staging, specs: Mapping[str, Spec], *, with_tensors: bool) -> None:
        self.staging = staging
        self._held = Held(EARLY), Held(EARLY)
        self._tensors = {name: _Leaves(spec) for name, spec in specs.items()} if with_tensors else {}
        self._segments = _segments(staging.layout, specs if with_tensors else {})
        self._starts = [[start for start, *_ in entries] for entries in self._segments]
        self.numbers = {staging.place(index): index for index in range(len(staging.layout.files))}
        # what a format completes in the end, such as checksums, may lie in bytes that were told before
        turned = () if staging.layout.finish is not None else self.numbers
        self._rolling = {place: Rolling(place, self._held[0]) for place in turned}
        self._lock = threading.Lock()

    def written(self, what: Written) -> None:
        """A range of bytes is in its place.

        Raises:
            StorageError: bytes that were not seen cannot be read back.
        """
        number = self.numbers[what.place]
        try:
            if what.place in self._rolling:
                self._rolling[what.place].add(what.offset, what.nbytes, what.data)
            if self.staging.layout.files[number].encode is None:
                self.raw(what)
        except OSError as error:
            raise storage_error(error, what.path, "read it back") from None

    def raw(self, what: Written) -> None:
        """Bytes of tensors are in a file, or will be once they are encoded.

        Raises:
            OSError: bytes that were not seen cannot be read back.
        """
        number = self.numbers[what.place]
        for start, nbytes, name, begin in self._overlapping(number, what.offset, what.nbytes):
            leaves = self._tensors[name]
            if what.data is not None:
                at = start - what.offset
                self._see(leaves, begin, memoryview(what.data).cast("B")[at : at + nbytes])
            else:
                self._see_back(leaves, begin, what.place, start, nbytes)

    def _overlapping(self, number: int, offset: int, nbytes: int) -> Iterator[tuple[int, int, str, int]]:
        """(offset in the file, bytes, tensor, byte of the tensor) of what tensors have in a range of a file."""
        entries, end = self._segments[number], offset + nbytes
        at = max(bisect_right(self._starts[number], offset) - 1, 0)
        while at < len(entries) and entries[at][0] < end:
            start, length, name, begin = entries[at]
            first, stop = max(start, offset), min(start + length, end)
            if first < stop:
                yield first, stop - first, name, begin + first - start
            at += 1

    def _see(self, leaves: _Leaves, begin: int, data: memoryview) -> None:
        while data.nbytes:
            leaf, inside = divmod(begin, LEAF)
            part = data[: leaves.length(leaf) - inside]
            if part.nbytes == leaves.length(leaf):
                leaves.found[leaf] = hashlib.sha256(part).digest()
            else:
                self._keep(leaves, leaf, inside, part)
            begin, data = begin + part.nbytes, data[part.nbytes :]

    def _see_back(self, leaves: _Leaves, begin: int, place: str, offset: int, nbytes: int) -> None:
        """Blocks that end where leaves do, so that none is kept in part but the first and the last."""
        while nbytes:
            count = min(LEAF - begin % LEAF, nbytes)

            def see(part: memoryview, at: int = begin) -> None:
                self._see(leaves, at, part)

            read_back(place, offset, count, see)
            begin, offset, nbytes = begin + count, offset + count, nbytes - count

    def _keep(self, leaves: _Leaves, leaf: int, inside: int, part: memoryview) -> None:
        """A part of a leaf, whose others come from other tasks."""
        if not self._held[1].take(part.nbytes):
            return
        with self._lock:
            parts = leaves.parts.setdefault(leaf, {})
            parts[inside] = bytes(part)
            if sum(map(len, parts.values())) < leaves.length(leaf):
                return
            del leaves.parts[leaf]
        whole = hashlib.sha256()
        for _, kept in sorted(parts.items()):
            whole.update(kept)
        self._held[1].give(leaves.length(leaf))
        leaves.found[leaf] = whole.digest()

    # -- when all is there --------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, str]:
        """The digest of every tensor by name.

        Raises:
            StorageError: what is missing cannot be read.
        """
        layout = self.staging.layout
        is_encoded = any(file.encode is not None for file in layout.files)
        found, unknown = {}, []
        for name, leaves in self._tensors.items():
            if None in leaves.found and is_encoded:
                unknown.append(name)
                continue
            for leaf, known in enumerate(leaves.found):
                if known is None:
                    leaves.found[leaf] = self._read(layout, name, leaf, leaves.length(leaf))
            found[name] = root_of(leaves.spec, [leaf for leaf in leaves.found if leaf is not None])
        if unknown:
            found |= _decoded(self.staging.root, unknown)
        return found

    def _read(self, layout: Layout, name: str, leaf: int, length: int) -> bytes:
        file, offset = layout.places[name]
        whole = hashlib.sha256()
        for number, at, nbytes in ranges(file, offset, layout.rest.get(name, ()), leaf * LEAF, length):
            place = self.staging.place(number)
            try:
                read_back(place, at, nbytes, whole.update)
            except OSError as error:
                raise storage_error(error, place, "read it back") from None
        return whole.digest()

    def files(self) -> dict[str, FileFacts]:
        """What every file of the output is, and every file that stays beside it, by name; a file alone is called `.`.

        Raises:
            StorageError: one cannot be read.
        """
        found = {}
        for path, place in self.staging.finished_files().items():
            name = os.path.relpath(path, self.staging.plan.path)
            try:
                found[name] = self._facts(str(place))
            except OSError as error:
                raise storage_error(error, place, "read it back") from None
        for name, place in self.staging.staying().items():
            found[name] = FileFacts(*digest_of(str(place))[:2])
        return found

    def _facts(self, place: str) -> FileFacts:
        status = place_of(place).stat(place)
        number = self.numbers.get(place)
        if status is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        rolling = self._rolling.get(place) or Rolling(place, self._held[0])
        sha256, size, _ = rolling.finish(status.size)
        if number is None or not self._segments[number] or self.staging.layout.files[number].encode is not None:
            return FileFacts(sha256, size)
        rest = hashlib.sha256()
        for at, nbytes in gaps(((at, nbytes) for at, nbytes, *_ in self._segments[number]), size):
            read_back(place, at, nbytes, rest.update)
        return FileFacts(sha256, size, rest.hexdigest())


def _segments(layout: Layout, specs: Mapping[str, Spec]) -> list[list[tuple[int, int, str, int]]]:
    """By file, in order: (offset, bytes, tensor, byte of the tensor)."""
    found: list[list[tuple[int, int, str, int]]] = [[] for _ in layout.files]
    for name, spec in specs.items():
        if not spec.nbytes:
            continue
        file, offset = layout.places[name]
        begin = 0
        for number, at, nbytes in ranges(file, offset, layout.rest.get(name, ()), 0, spec.nbytes):
            found[number].append((at, nbytes, name, begin))
            begin += nbytes
    for entries in found:
        entries.sort()
    return found


def _decoded(root: Path, names: list[str]) -> dict[str, str]:
    """The digests of tensors of a finished output whose format must be decoded."""
    entries = open_checkpoint(str(root)).entries
    absent = [name for name in names if name not in entries]
    if absent:
        raise StorageError(f"the output has no tensor {absent[0]!r} now that it is complete", where=str(root))
    return {name: tensor_digest(entries[name].spec, blocks_of(entries[name])) for name in names}
