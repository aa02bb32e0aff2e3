"""The torch format: what `torch.save` writes, read and written without PyTorch and without executing anything.

Written are zip archives that `torch.load` reads with `weights_only=True` and `mmap=True`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...core.errors import StorageError
from ...core.specs import Spec
from ..base import Checkpoint, Entry, Format, LaidFile, Layout
from ..choice import check_first
from ..files import first_bytes
from ..shards import ANY_SHARD, cut, index_bytes, own_files
from .pickles import PickleWriter
from .tables import read_table
from .tensors import STORAGES, UNTYPED, Tensor, entry_of, read_file
from .zips import LaidZip, complete_checksums, lay_zip

__all__ = ["TorchFormat", "lay_torch"]

INDEX = "pytorch_model.bin.index.json"
_SHARD = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_NOT_WEIGHTS = re.compile(
    r"training_args\.bin|(optimizer|scheduler)\.(pt|bin)|rng_state.*\.pth|scaler\.pt"
)  # what trainers leave beside


class TorchFormat(Format):
    """Files `*.pt`, `*.pth`, `*.bin`, and directories of them."""

    name = "torch"
    suffixes = (".pt", ".pth", ".bin")
    writes_tensors = True
    writes_directories = True
    takes_shards = True
    folder_rank = 1

    def weights(self, directory: Path) -> list[Path]:
        """Without what trainers leave beside; by suffix, then by name."""
        found = [path for path in super().weights(directory) if not _NOT_WEIGHTS.fullmatch(path.name)]
        return sorted(found, key=lambda path: self.suffixes.index(path.suffix.lower()))

    def probe_directory(self, path: Path) -> bool:
        """Whether there is an index or any file of weights."""
        return (path / INDEX).is_file() or any(_files(path))

    def probe_file(self, path: Path) -> bool:
        """Whether it begins like a zip archive or a binary pickle."""
        head = first_bytes(path, 2)
        return head == b"PK" or (len(head) == 2 and head[0] == 0x80 and head[1] <= 5)

    def stale(self, path: Path) -> list[Path]:
        """The index, the files that it names, and those of the names that a checkpoint's own files have.

        A file of any other name may be anything: a tokenizer, averaged weights.
        """
        return own_files(path, INDEX, _named(path), _SHARD)

    def read_header(self, path: Path) -> Checkpoint:
        """The tensors of a file."""
        return read_table(path).checkpoint(self.name)

    def read_file(self, path: Path) -> Checkpoint:
        """The tensors of one of several files."""
        return read_table(path).checkpoint(self.name, may_be_empty=True)

    def read_part(self, path: Path, prefix: str) -> Checkpoint:
        """Also of what lies beside the model's table."""
        return read_table(path).part(prefix, self.name)

    def read_single(self, path: Path) -> tuple[str | None, Entry]:
        """A bare tensor, or the only tensor of a dictionary."""
        value = read_file(path)
        if isinstance(value, Tensor):
            return None, entry_of(value, "the tensor")
        return super().read_single(path)

    def layout(
        self,
        path: Path,
        tensors: Sequence[tuple[str, Spec]],
        *,
        is_directory: bool,
        shard_bytes: int | None,
        metadata: Mapping[str, str],
    ) -> Layout:
        """Files with a dictionary from names to tensors each, and an index if they are shards.

        Torch files have no place for metadata.
        """
        if not is_directory:
            return _archives(path, {"": tensors}, None, False)
        if shard_bytes is None:
            check_first(path, "pytorch_model", set(_files(path)).difference(self.stale(path)))
            return _archives(path, {"pytorch_model.bin": tensors}, None, True)
        shards = cut(tensors, shard_bytes)
        named = {f"pytorch_model-{n:05d}-of-{len(shards):05d}.bin": shard for n, shard in enumerate(shards, 1)}
        where = {name: file for file, shard in named.items() for name, _ in shard}
        return _archives(path, named, index_bytes(where, sum(spec.nbytes for _, spec in tensors)), True)

    def layout_single(self, path: Path, name: str, spec: Spec, *, metadata: Mapping[str, str]) -> Layout:
        """One file with a bare tensor."""
        laid = lay_torch(path, [(name, spec)], bare=True)
        file = LaidFile("", laid.size, laid.fixed, is_revised=True)
        return Layout(
            (file,), {name: (0, laid.begins[0])}, False, lambda root: complete_checksums(root, laid.checksums)
        )


def _files(path: Path) -> list[Path]:
    found = [entry for suffix in TorchFormat.suffixes for entry in sorted(path.glob("*" + suffix))]
    return [
        entry for entry in found if entry.is_file() and entry.name[0] != "." and not _NOT_WEIGHTS.fullmatch(entry.name)
    ]


def _named(path: Path) -> list[Path]:
    """Those whose names say that they are a checkpoint or a part of one."""
    return [file for file in _files(path) if _SHARD.fullmatch(file.name) or ANY_SHARD.fullmatch(file.name)]


# ---------------------------------------------------------------------------------------------------------- reading


# ---------------------------------------------------------------------------------------------------------- writing


def lay_torch(path: Path, tensors: Sequence[tuple[str, Spec]], *, bare: bool = False, start: int = 0) -> LaidZip:
    """The archive of a dictionary of tensors, or with `bare` of one tensor; its storages are in the order given.

    Raises:
        StorageError: a dtype that torch does not have.
    """
    members: list[tuple[str, bytes | int]] = [
        ("archive/data.pkl", _pickle(path, tensors, bare)),
        ("archive/.format_version", b"1"),
        ("archive/.storage_alignment", b"64"),
        ("archive/byteorder", b"little"),
    ]
    members += [(f"archive/data/{number}", spec.nbytes) for number, (_, spec) in enumerate(tensors)]
    members.append(("archive/version", b"3\n"))
    return lay_zip(members, start)


def _archives(
    path: Path, named: Mapping[str, Sequence[tuple[str, Spec]]], index: bytes | None, is_directory: bool
) -> Layout:
    """Archives by file name; the checksums of their tensors are filled in when all bytes are in place."""
    laid = {name: lay_torch(path, tensors) for name, tensors in named.items()}
    files = [LaidFile(name, archive.size, archive.fixed, is_revised=True) for name, archive in laid.items()]
    places = {
        tensor: (number, begin)
        for number, (name, tensors) in enumerate(named.items())
        for (tensor, _), begin in zip(tensors, laid[name].begins, strict=True)
    }
    if index is not None:
        files.append(LaidFile(INDEX, len(index), ((0, index),)))

    def finish(root: Path) -> tuple[()]:
        for name, archive in laid.items():
            complete_checksums(root / name if name else root, archive.checksums)
        return ()

    return Layout(tuple(files), places, is_directory, finish)


def _pickle(path: Path, tensors: Sequence[tuple[str, Spec]], bare: bool) -> bytes:
    writer = PickleWriter()
    if not bare:
        writer.raw(b"}(")
    for number, (name, spec) in enumerate(tensors):
        if not bare:
            writer.text(name)
        _write_tensor(writer, path, number, name, spec)
    if not bare:
        writer.raw(b"u")
    return writer.bytes()


def _write_tensor(writer: PickleWriter, path: Path, number: int, name: str, spec: Spec) -> None:
    """The call that torch itself would pickle for a row-major tensor with a storage of its own."""
    dtype = spec.dtype.name
    typed = STORAGES.get(dtype)
    if typed is None and dtype not in UNTYPED:
        raise StorageError(
            f"torch files cannot hold {dtype}",
            where=str(path),
            expected="one of " + ", ".join([*STORAGES, *UNTYPED]),
            found=f"{name!r} is {spec}",
        )
    writer.symbol("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    writer.raw(b"((")
    writer.text("storage")
    writer.symbol("torch" if typed else "torch.storage", typed or "UntypedStorage")
    writer.text(str(number))
    writer.text("cpu")
    writer.number(spec.size if typed else spec.nbytes)
    writer.raw(b"tQ")
    writer.number(0)
    writer.numbers(spec.shape)
    writer.numbers(_strides(spec.shape))
    writer.raw(b"\x89")  # no gradient
    writer.symbol("collections", "OrderedDict")
    writer.raw(b")R")  # no hooks
    if typed is None:
        writer.symbol("torch", dtype)
    writer.raw(b"tR")


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))
