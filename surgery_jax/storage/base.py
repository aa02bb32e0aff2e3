"""What every storage format offers: headers on the way in, a byte layout on the way out.

A format is one file of this package with one `Format` subclass. Reading gives a `Checkpoint`: names, shapes, dtypes and
where the bytes lie. Writing gives a `Layout`: which files, how long, which bytes are fixed, and where each tensor's
bytes belong; the execute layer moves and computes the bytes in any order, `storage.publish` makes them appear at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ..core.errors import PlanError, StorageError, listing, nearest
from ..core.ranges import Parts, ranges
from ..core.specs import Spec
from .identity import Identity
from .proofs import PROOFS

if TYPE_CHECKING:
    import numpy

__all__ = ["Blocks", "Checkpoint", "Entry", "Extent", "Format", "LaidFile", "Layout", "Single", "no_part"]


class Extent(NamedTuple):
    """Where the packed row-major little-endian bytes of a tensor begin in a file.

    They follow one another, except where `rest` says that they go on at another place.
    """

    path: str
    offset: int
    rest: Parts[str] = ()

    def ranges(self, start: int, nbytes: int) -> Sequence[tuple[str, int, int]]:
        """(path, offset, length) of the bytes from number `start` on."""
        return ranges(self.path, self.offset, self.rest, start, nbytes)


class Blocks(NamedTuple):
    """How a tensor that must be decoded is read: in blocks of consecutive elements, each decoded as a whole.

    Every `period` elements are cut into blocks of `length` and a shorter last one. `read(first, count)` decodes
    consecutive elements of one period into an array of any shape, packed; meanwhile it takes `factor` times the memory
    of what it returns.
    """

    length: int
    period: int
    read: Callable[[int, int], numpy.ndarray]
    factor: int = 2

    @classmethod
    def whole(cls, spec: Spec, read: Callable[[], numpy.ndarray]) -> Blocks:
        """A tensor that can only be read at once."""
        return cls(spec.size, spec.size, lambda first, count: read())

    def around(self, element: int) -> tuple[int, int]:
        """The first element and the number of elements of the block that holds an element."""
        begin = element // self.period * self.period
        first = begin + (element - begin) // self.length * self.length
        return first, min(self.length, begin + self.period - first)


class Entry(NamedTuple):  # tuples are made four times as fast as frozen dataclasses, and headers have 100 000 of these
    """One stored tensor. Either `extent` says where its raw bytes lie, or `blocks` how they are decoded."""

    spec: Spec
    extent: Extent | None = None
    blocks: Blocks | None = None

    def read(self) -> numpy.ndarray:
        """The whole array of a tensor that must be decoded."""
        assert self.blocks is not None
        return self.blocks.read(0, self.spec.size).reshape(self.spec.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The headers of one checkpoint: nothing of a tensor has been read.

    `entries` is in order of arrival: data order within a file, files in index or name order. `metadata` is the text
    metadata of the (first) file. `files` are all files that belong to it; `documents` the paths of the small files
    beside them that tell of the model, by name (`Format.is_document`). `identities` has what these files and others
    that were read with the headers, such as an index, were then; a document is known once it is read. `left_out` tells
    in short sentences, each with at most a dozen names, what lies there and is not read.
    """

    path: str
    format: str
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    identities: Mapping[str, Identity] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


class Single(NamedTuple):
    """The only tensor of a file, its name if it has one, and what the file was."""

    name: str | None
    entry: Entry
    identities: Mapping[str, Identity]


@dataclass(frozen=True, slots=True)
class LaidFile:
    """One file to be written: name relative to the output directory (empty: the output itself is this file), its
    final length in bytes, and the bytes that are known beforehand as (offset, bytes).

    What `is_revised` is read and written again when all bytes of tensors are there.

    Of one that is `indirect`, whoever reads the tensors is not told where in it their bytes lie.

    With `encode` it holds bytes of tensors only, and becomes what `encode` makes of them once all are there; that takes
    `workspace` bytes of memory beside them, result included. With `source` it is a copy of the file at that path.
    """

    name: str
    size: int
    fixed: tuple[tuple[int, bytes], ...] = ()
    encode: Callable[[numpy.ndarray], bytes | memoryview] | None = None
    workspace: int = 0
    source: str | None = None
    indirect: bool = False
    is_revised: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the bytes of its tensors are in it as they are, where whoever reads them is told."""
        return self.encode is None and not self.indirect


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole output before its first tensor byte: files, and for each tensor (index of file, offset of its bytes).

    `rest` has the tensors whose bytes go on at other places, as in `Extent`.

    `documents` are the names of files that hold no tensors and tell of the model.

    `finish(root)` runs when all bytes are in place and before anything is published; `root` is the staged directory, or
    the staged file of a single-file layout. It gives the files that are there as well, each with what it holds, in the
    order in which they should appear.
    """

    files: tuple[LaidFile, ...]
    places: Mapping[str, tuple[int, int]]
    is_directory: bool
    finish: Callable[[Path], Iterable[tuple[str, bytes]]] | None = None
    rest: Mapping[str, Parts[int]] = field(default_factory=dict)
    documents: tuple[str, ...] = ()


_DOCUMENT = re.compile(  # what model hubs hold beside the weights
    r"[^.].*\.(json|txt|md|py|jinja|model|tiktoken|spm|bpe|vocab)|(LICEN[CS]E|NOTICE|COPYING|README|USE_POLICY)([-_.].*)?",
    re.IGNORECASE | re.DOTALL,
)
_NO_DOCUMENT = re.compile(
    r".*\.index(\.[^.]+)?\.json|trainer_state\.json|(all|train|eval)_results\.json", re.IGNORECASE | re.DOTALL
)


def no_part(path: str, prefix: str, names: Iterable[str]) -> StorageError:
    """The error for a part that no name begins with."""
    tops = dict.fromkeys(name.split(".")[0] for name in names)
    return StorageError(
        f"the checkpoint has no part {prefix!r}",
        where=path,
        expected=f"the beginning of names, up to a dot: {listing(nearest(prefix, tops) or tops)}",
    )


class Format:
    """One storage format. Subclasses are found by `storage.formats`; they hold no state but their options."""

    name: ClassVar[str]  # the word of a plan
    suffixes: ClassVar[tuple[str, ...]] = ()  # of single files, lower case with the dot
    writes_files: ClassVar[bool] = True  # whether a whole checkpoint may be one file
    writes_directories: ClassVar[bool] = False
    writes_tensors: ClassVar[bool] = False  # whether one tensor may be a file of its own
    takes_shards: ClassVar[bool] = False  # whether a directory may be cut into shards
    takes_notes: ClassVar[bool] = False  # whether texts about the tensors may lie beside them
    owns_directories: ClassVar[bool] = False  # a directory that has it is this format, whatever else lies there
    folder_rank: ClassVar[int | None] = None  # the turn of a format whose checkpoints are also directories of its files
    options: ClassVar[Mapping[str, str]] = {}  # what an output may choose, with an explanation

    def configured(self, options: Mapping[str, str]) -> Format:
        """The format with options of an output.

        Raises:
            PlanError: an option that there is not, or a value that it does not take.
        """
        for key in options:
            if key not in self.options:
                near = nearest(key, self.options, 1)
                raise PlanError(
                    f"the format {self.name} has no option {key!r}",
                    expected=", ".join(self.options) or "no options",
                    hint=f"did you mean {near[0]}?" if near else None,
                )
        return self

    def probe_directory(self, path: Path) -> bool:
        """Whether a directory holds a checkpoint of this format."""
        return False

    def probe_file(self, path: Path) -> bool:
        """Whether a file begins like one of this format; asked when its suffix does not tell.

        Raises:
            OSError: it cannot be read.
        """
        return False

    def weights(self, directory: Path) -> list[Path]:
        """The files of a directory that may be of a checkpoint, if its checkpoints are directories of such files. Links
        that lead nowhere count: what they stand for is missing.

        Raises:
            OSError: it cannot be read.
        """
        if self.folder_rank is None:
            return []
        found = (path for path in sorted(directory.iterdir()) if path.suffix.lower() in self.suffixes)
        return [path for path in found if path.name[0] != "." and (path.is_file() or _is_dangling(path))]

    def is_document(self, name: str) -> bool:
        """Whether a file of this name that lies beside the tensors is a document of the model: its configuration, its
        tokenizer, a template, code, a text for people. Not an index, not what trainers note,
        no receipt, nothing hidden."""
        return bool(_DOCUMENT.fullmatch(name)) and not _NO_DOCUMENT.fullmatch(name) and name not in PROOFS

    def indexed_name(self, name: str) -> str:
        """The name here of a tensor that an index calls `name`."""
        return name

    def stale(self, path: Path) -> list[Path]:
        """The files of an existing output directory that a new checkpoint of this format replaces."""
        return []

    def read_header(self, path: Path) -> Checkpoint:
        """The headers of a file or directory.

        Raises:
            StorageError: it cannot be read, or what it says of itself is not true.
        """
        raise StorageError(f"format {self.name} cannot be read", where=str(path))

    def read_file(self, path: Path) -> Checkpoint:
        """The headers of one of the files of a directory; it may hold no tensors.

        Raises:
            StorageError: see `read_header`.
        """
        return self.read_header(path)

    def part(self, checkpoint: Checkpoint, prefix: str) -> Checkpoint:
        """The tensors whose names begin with `prefix` and a dot, under the rest of their names.

        Raises:
            StorageError: there are none.
        """
        start = f"{prefix}."
        found = {name[len(start) :]: entry for name, entry in checkpoint.entries.items() if name.startswith(start)}
        if not found:
            raise no_part(checkpoint.path, prefix, checkpoint.entries)
        return replace(checkpoint, entries=found)

    def read_part(self, path: Path, prefix: str) -> Checkpoint:
        """The headers of a part of what lies at `path`, as `part` gives it; what is in no way read does not matter.

        Raises:
            StorageError: see `read_header` and `part`.
        """
        return self.part(self.read_header(path), prefix)

    def read_single(self, path: Path) -> tuple[str | None, Entry]:
        """The only tensor of a file, and its name if it has one.

        Raises:
            StorageError: it cannot be read, or does not hold exactly one tensor.
        """
        entries = self.read_header(path).entries
        if len(entries) != 1:
            raise StorageError(
                "a file of one tensor is needed here",
                where=str(path),
                expected="exactly one tensor",
                found=f"{len(entries)}: {listing(entries)}",
            )
        return next(iter(entries.items()))

    def layout(
        self,
        path: Path,
        tensors: Sequence[tuple[str, Spec]],
        *,
        is_directory: bool,
        shard_bytes: int | None,
        metadata: Mapping[str, str],
    ) -> Layout:
        """Where every byte of an output belongs.

        Raises:
            StorageError: a dtype or a name that the format cannot hold.
        """
        raise StorageError(f"format {self.name} cannot be written", where=str(path))

    def single_path(self, path: str) -> str:
        """The file name under which one tensor is written, if the format insists on a suffix."""
        return path

    def layout_single(self, path: Path, name: str, spec: Spec, *, metadata: Mapping[str, str]) -> Layout:
        """Where every byte of a file of one tensor belongs.

        Raises:
            StorageError: a dtype or a name that the format cannot hold.
        """
        return self.layout(path, [(name, spec)], is_directory=False, shard_bytes=None, metadata=metadata)


def _is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()
