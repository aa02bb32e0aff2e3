"""Digests of what a run writes, found while its bytes pass: of every tensor, and of every file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import StorageError
from ..core.ranges import ranges
from ..core.specs import Spec
from ..storage.base import Layout
from ..storage.files import storage_error
from ..storage.formats import open_checkpoint
from ..storage.places.base import fill
from ..storage.places.found import place_of
from ..storage.proofs import is_of_git
from ..storage.stored import blocks_of
from .leaves import Leaves
from .rereading import blocks, read_back
from .rolling import (
    THREADS,
    FileDigest,
    FileFacts,
    Held,
    Rolling,
    TimeToWait,
    digest_of,
    gaps,
    thinned,
)
from .tree import LEAF, Hash, hash_of, root_of, tensor_digest

if TYPE_CHECKING:
    from ..io.outputs import Origin, Written
    from ..storage.publish import Staging

__all__ = ["OutputDigests"]

EARLY = 32 << 20  # bytes that are kept until it is their turn, of files, and as much of leaves
MOST_COPIED = 1 << 14  # leaves of inputs that are remembered: copies of a tensor lie near each other
_LEAF = struct.Struct("<IQ")  # of what processes tell each other: number of the tensor, of the leaf; its hash follows


class OutputDigests:
    """Of one staged output: told every range that is written to its files, by several threads. Of several processes
    each is told what it writes itself; then `hear` brings together what they `tell`.

    Bytes that are not seen, as the kernel copied them, are read back at once, while they are in the page cache; what is
    still missing at the end is read from the finished files. `numbers` are those of its files in the layout, by their
    places.
    """

    def __init__(self, staging: Staging, specs: Mapping[str, Spec], kind: str, num_processes: int = 1) -> None:
        """`kind`: the hash of tensors, `none` if they are left out. Of several processes none sees a whole file, so
        that each reads some of them in the end."""
        self.staging = staging
        self._num_processes = num_processes
        self._held = Held(EARLY), Held(EARLY)
        self._kind = kind
        self._begin: Callable[[bytes | memoryview], Hash] = hash_of(kind) if kind != "none" else hashlib.sha256
        known = specs.items() if kind != "none" else ()
        self._tensors = {name: Leaves(spec, self._begin, self._held[1]) for name, spec in known}
        self._segments = _segments(staging.layout, specs)
        self._starts = [[start for start, *_ in entries] for entries in self._segments]
        self.numbers = {staging.place(index): index for index in range(len(staging.layout.files))}
        # what a format completes in the end, such as checksums, may lie in bytes that were told before
        self._is_completed = staging.layout.finish is not None
        self._is_sent = not staging.is_on_disk  # no process can read it before all of them have sent their parts
        turned = () if self._is_completed or num_processes > 1 else self.numbers
        self._patience = TimeToWait()
        self._rolling = {place: self._new(place, self.marks(place)) for place in turned}
        self._known: dict[str, FileDigest] = {}  # of files that this or another process has read, by place
        self._copied: dict[tuple[str, int, int], bytes] = {}  # by file, offset and length: digests of leaves there
        self._lock = threading.Lock()

    def _new(self, place: str, marks: Sequence[int]) -> Rolling:
        return Rolling(place, self._held[0], self._patience, marks)

    def marks(self, place: str) -> tuple[int, ...]:
        """The offsets at which tensors begin and end in a file, as far as it holds them as they are."""
        number = self.numbers.get(place)
        if number is None or not self.staging.layout.files[number].is_plain:
            return ()
        return thinned(sorted({end for at, nbytes, *_ in self._segments[number] for end in (at, at + nbytes)}))

    def written(self, what: Written) -> None:
        """A range of bytes is in its place.

        Raises:
            StorageError: bytes that were not seen cannot be read back.
        """
        number, rolling = self.numbers[what.place], self._rolling.get(what.place)
        is_raw = self.staging.layout.files[number].encode is None
        try:
            if what.data is not None:
                data = memoryview(what.data).cast("B")
                self._show(what.offset, data, number if is_raw else None, rolling, what.origin)
            elif rolling is not None or (is_raw and self._tensors):
                self._read_back(what, number, rolling)
        except OSError as error:
            raise storage_error(error, what.path, "read it back") from None

    def raw(self, what: Written) -> None:
        """Bytes of tensors are about to be encoded."""
        assert what.data is not None
        self._show(what.offset, memoryview(what.data).cast("B"), self.numbers[what.place], None)

    def _show(
        self, offset: int, data: memoryview, number: int | None, rolling: Rolling | None, origin: Origin | None = None
    ) -> None:
        """Bytes of a file, or of those that it is made of; to be taken for tensors if `number` says of which file."""
        if number is not None and self._tensors:
            for start, nbytes, name, begin in self._overlapping(number, offset, data.nbytes):
                at = start - offset
                source = None if origin is None else (origin[0], origin[1] + at)
                self._see(self._tensors[name], begin, data[at : at + nbytes], source)
        if rolling is not None:
            rolling.add(offset, data.nbytes, data, origin)  # which may have to wait

    def _read_back(self, what: Written, number: int, rolling: Rolling | None) -> None:
        """Blocks that end where leaves do, so that none is kept in part but the first and the last."""
        turn = rolling if rolling is not None and rolling.comes(what.offset, what.nbytes) else None
        if turn is not None or self._tensors:
            writer = place_of(what.place).target(what.place)
            try:
                buffer = memoryview(bytearray(min(what.nbytes, LEAF)))
                for at, nbytes in self._cut(number, what.offset, what.nbytes):
                    part = buffer[:nbytes]
                    fill(writer, at, part)
                    source = None if what.origin is None else (what.origin[0], what.origin[1] + at - what.offset)
                    self._show(at, part, number, turn, source)
            finally:
                writer.close()
        if rolling is not None and turn is None:
            rolling.add(what.offset, what.nbytes, None)

    def _cut(self, number: int, offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
        at, end = offset, offset + nbytes
        for start, length, _, begin in self._overlapping(number, offset, nbytes):
            yield from blocks(at, start - at, LEAF)
            first = min(-begin % LEAF, length)
            yield from blocks(start, first, LEAF)
            yield from blocks(start + first, length - first, LEAF)
            at = start + length
        yield from blocks(at, end - at, LEAF)

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

    def _see(self, leaves: Leaves, begin: int, data: memoryview, origin: Origin | None) -> None:
        for leaf, at, part in leaves.see(begin, data):
            if origin is None:
                leaves.found[leaf] = self._begin(part).digest()
            else:
                leaves.found[leaf] = self._of_copy(origin[0], origin[1] + at, part)

    def _of_copy(self, path: str, offset: int, part: memoryview) -> bytes:
        """The digest of a leaf that is copied from there, maybe not for the first time: inputs do not change."""
        key = path, offset, part.nbytes
        found = self._copied.get(key)
        if found is None:
            found = self._begin(part).digest()
            with self._lock:
                self._copied[key] = found
                while len(self._copied) > MOST_COPIED:
                    del self._copied[next(iter(self._copied))]
        return found

    # -- of several processes -----------------------------------------------------------------------------------

    def tell(self, rank: int) -> bytes:
        """What process number `rank` knows, now that all bytes are in their places: the leaves that it has seen, and
        the digests of its share of the files, which it reads now.

        Raises:
            StorageError: one cannot be read.
        """
        files = [] if self._is_completed or self._is_sent else [*self.numbers][rank :: self._num_processes]
        sums = {self.numbers[place]: self._digest(place, self.marks(place)) for place in files}
        head = json.dumps(sums).encode()
        parts = [len(head).to_bytes(8, "little"), head]
        for number, leaves in enumerate(self._tensors.values()):
            for leaf, found in enumerate(leaves.found):
                if found is not None:
                    parts += (_LEAF.pack(number, leaf), found)
        return b"".join(parts)

    def hear(self, said: bytes) -> None:
        """What another process knows."""
        begin = 8 + int.from_bytes(said[:8], "little")
        for number, (sha256, size, marks) in json.loads(said[8:begin]).items():
            self._known[self.staging.place(int(number))] = FileDigest(sha256, size, tuple(marks))
        tensors, length = [*self._tensors.values()], _LEAF.size + self._begin(b"").digest_size
        for at in range(begin, len(said), length):
            number, leaf = _LEAF.unpack_from(said, at)
            tensors[number].found[leaf] = said[at + _LEAF.size : at + length]

    def _digest(self, place: str, marks: Sequence[int]) -> FileDigest:
        try:
            status = place_of(place).stat(place)
            if status is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
            rolling = self._rolling.get(place) or self._new(place, marks)
            return rolling.finish(status.size)
        except OSError as error:
            raise storage_error(error, place, "read it back") from None

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
            found[name] = root_of(leaves.spec, [leaf for leaf in leaves.found if leaf is not None], self._kind)
        if unknown:
            found |= _decoded(self.staging.root, unknown, self._kind)
        return found

    def _read(self, layout: Layout, name: str, leaf: int, length: int) -> bytes:
        file, offset = layout.places[name]
        whole = self._begin(b"")
        for number, at, nbytes in ranges(file, offset, layout.rest.get(name, ()), leaf * LEAF, length):
            place = self.staging.place(number)
            try:
                read_back(place, at, nbytes, whole.update)
            except OSError as error:
                raise storage_error(error, place, "read it back") from None
        return whole.digest()

    def files(self) -> dict[str, FileFacts]:
        """What every file of the output is, and every file that stays beside it but those of git, by name; a file alone
        is called `.`.

        Raises:
            StorageError: one cannot be read.
        """
        finished = self.staging.finished_files().items()
        named = {os.path.relpath(path, self.staging.plan.path): str(place) for path, place in finished}
        made = {name: place for name, place in named.items() if not is_of_git(name)}
        with ThreadPoolExecutor(THREADS) as pool:
            found = dict(zip(made, pool.map(self._facts, made.values()), strict=True))
        for name, place in self.staging.staying().items():
            if not is_of_git(name):
                found[name] = FileFacts(*digest_of(str(place))[:2])
        return found

    def _facts(self, place: str) -> FileFacts:
        number = self.numbers.get(place)
        digest = self._known.get(place) or self._digest(place, self.marks(place))
        self._known[place] = digest
        is_raw = number is not None and self.staging.layout.files[number].is_plain
        if number is None or not is_raw or not self._tensors or not self._segments[number]:
            return FileFacts(*digest[:2])
        rest = hashlib.sha256()
        try:
            for at, nbytes in gaps(((at, nbytes) for at, nbytes, *_ in self._segments[number]), digest.size):
                read_back(place, at, nbytes, rest.update)
        except OSError as error:
            raise storage_error(error, place, "read it back") from None
        return FileFacts(*digest[:2], rest.hexdigest())

    def known(self) -> Iterator[tuple[str, FileDigest, tuple[int, ...]]]:
        """The files of the finished output by the path that they get, with their digests and the offsets of marks."""
        for path, place in self.staging.finished_files().items():
            if str(place) in self._known:
                yield path, self._known[str(place)], self.marks(str(place))


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


def _decoded(root: Path, names: list[str], kind: str) -> dict[str, str]:
    """The digests of tensors of a finished output whose format must be decoded."""
    entries = open_checkpoint(str(root)).entries
    absent = [name for name in names if name not in entries]
    if absent:
        raise StorageError(f"the output has no tensor {absent[0]!r} now that it is complete", where=str(root))
    return {name: tensor_digest(entries[name].spec, blocks_of(entries[name]), kind) for name in names}
