"""NumPy's own files: one array (`.npy`) or named arrays (`.npz`), never with pickled objects."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple

from ..core.dtypes import DTYPES, by_numpy
from ..core.errors import StorageError
from ..core.specs import Spec
from .base import Blocks, Checkpoint, Entry, Extent, Format, LaidFile, Layout
from .files import File, first_bytes, storage_error

if TYPE_CHECKING:
    import numpy

__all__ = ["NumpyFormat"]

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16  # bytes, of which NumPy takes 10 000


class NumpyFormat(Format):
    """Files `*.npy` and `*.npz`."""

    name = "numpy"
    suffixes = (".npy", ".npz")
    writes_files = False
    writes_tensors = True

    def probe_file(self, path: Path) -> bool:
        """Whether it is an array, or an archive of arrays."""
        head = first_bytes(path, len(_MAGIC))
        return head == _MAGIC or (head[:2] == b"PK" and path.suffix.lower() == ".npz")

    def read_header(self, path: Path) -> Checkpoint:
        """The headers of an archive. An array of its own has no name."""
        with _refusing(path), File(path) as file:
            if not _is_archive(file):
                raise StorageError(
                    "an array without a name is no checkpoint",
                    where=str(path),
                    hint="load it under a name: load: {path: ..., to: ...}",
                )
            entries = _archived(file)
        if not entries:
            raise StorageError("the archive holds no arrays", where=str(path))
        return Checkpoint(str(path), self.name, entries, {}, (str(path),))

    def read_single(self, path: Path) -> tuple[str | None, Entry]:
        """The array of a `.npy` file, or the only one of a `.npz` file."""
        with _refusing(path), File(path) as file:
            if _is_archive(file):
                return super().read_single(path)
            with file.stream() as stream:
                spec, dtype, is_fortran, begin = _read_array_header(path, "the array", stream)
            _check_size(path, "the array", begin + spec.nbytes, file.size)
        if is_fortran or not dtype.isnative:
            stored = _Stored(path, dtype, "F" if is_fortran else "C", begin)
            return None, Entry(spec, blocks=Blocks.whole(spec, partial(_load, stored, spec)))
        return None, Entry(spec, Extent(str(path), begin))

    def single_path(self, path: str) -> str:
        """As `numpy.save` does: with the suffix `.npy`."""
        return path if path.endswith(".npy") else path + ".npy"

    def layout_single(self, path: Path, name: str, spec: Spec, *, metadata: Mapping[str, str]) -> Layout:
        """One `.npy` file; NumPy files have no place for names or metadata."""
        import numpy as np

        if not spec.dtype.array or spec.dtype.numpy.isbuiltin != 1:
            named = [dtype.name for dtype in DTYPES if dtype.array and dtype.numpy.isbuiltin == 1]
            raise StorageError(
                f"NumPy files cannot hold {spec.dtype}",
                where=str(path),
                expected="one of " + ", ".join(named),
                found=f"{name!r} is {spec}",
                hint="cast it first, or write safetensors",
            )
        stream = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(spec.dtype.numpy.newbyteorder("<"))
        header = {"descr": descr, "fortran_order": False, "shape": spec.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        head = stream.getvalue()
        return Layout((LaidFile("", len(head) + spec.nbytes, ((0, head),)),), {name: (0, len(head))}, False)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever NumPy or zipfile say about a file from elsewhere, it is an error of the file."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, path, "read it") from None
    except Exception as error:
        raise StorageError("not a valid NumPy file", where=str(path), found=str(error)[:200]) from None


def _is_archive(file: File) -> bool:
    return file.at(0, min(2, file.size)) == b"PK"


def _read_array_header(path: Path, what: str, source: IO[bytes]) -> tuple[Spec, numpy.dtype, bool, int]:
    """(spec, the dtype as stored, whether it is column-major and that matters, where the data begins)."""
    import numpy as np

    stream = io.BytesIO(source.read(_MAX_HEADER))  # a packed one could become anything
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise StorageError(
            f"{what} has an unknown version", where=str(path), expected="1.0 or 2.0", found=f"{version[0]}.{version[1]}"
        )
    known = by_numpy(dtype.newbyteorder("="))
    if known is None or dtype.hasobject:
        kind = "pickled Python objects, which are not loaded" if dtype.hasobject else f"dtype {dtype}"
        raise StorageError(f"{what} does not hold numbers of a known kind", where=str(path), found=kind)
    if any(type(length) is not int or length < 0 for length in shape) or len(shape) > 64:
        raise StorageError(f"{what} has an impossible shape", where=str(path), found=str(shape)[:120])
    if math.prod(filter(None, shape)) * known.bits >= 1 << 63:
        raise StorageError(f"the shape of {what} is too large", where=str(path), found=str(shape)[:120])
    return Spec(tuple(shape), known), dtype, is_fortran and len(shape) > 1, stream.tell()


def _check_size(path: Path, what: str, expected: int, found: int) -> None:
    if expected != found:
        raise StorageError(
            f"{what} is {'cut off' if found < expected else 'followed by other bytes'}",
            where=str(path),
            expected=f"{expected} bytes",
            found=f"{found} bytes",
        )


def _archived(file: File) -> dict[str, Entry]:
    """The arrays of an archive by name."""
    entries: dict[str, Entry] = {}
    with file.stream() as stream, zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                raise StorageError(f"{info.filename!r} in the archive is not an array", where=str(file.path))
            if name in entries:
                raise StorageError(
                    f"the array {name!r} is in the archive twice",
                    where=str(file.path),
                    hint="write the file again, with every name once",
                )
            entries[name] = _member(file.path, archive, info)
    return entries


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    what = f"the array {info.filename!r}"
    with archive.open(info) as stream:
        spec, _, _, begin = _read_array_header(path, what, stream)
    _check_size(path, what, begin + spec.nbytes, info.file_size)

    def read() -> numpy.ndarray:
        import numpy as np

        with _refusing(path), File(path) as again, again.stream() as whole, zipfile.ZipFile(whole) as opened:
            with opened.open(info.filename) as stream:
                return _packed(np.lib.format.read_array(stream, allow_pickle=False), spec)

    return Entry(spec, blocks=Blocks.whole(spec, read))


class _Stored(NamedTuple):
    """How the elements of an array that has to be turned lie in a file."""

    path: Path
    dtype: numpy.dtype
    order: Literal["C", "F"]
    begin: int


def _load(stored: _Stored, spec: Spec) -> numpy.ndarray:
    import numpy as np

    with _refusing(stored.path), File(stored.path) as file:
        data = file.view()  # mapped, so that there is one copy in memory and not two
        return _packed(np.ndarray(spec.shape, stored.dtype, data, stored.begin, order=stored.order), spec)


def _packed(array: numpy.ndarray, spec: Spec) -> numpy.ndarray:
    """Row-major, of this machine's byte order, and not a view of a file."""
    import numpy as np

    if array.shape != spec.shape:
        raise ValueError(f"the file changed: its shape is now {array.shape}")
    return np.array(array, dtype=spec.dtype.numpy, order="C", copy=True)
