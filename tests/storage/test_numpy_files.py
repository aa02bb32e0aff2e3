"""NumPy files: against `numpy.load` and `numpy.save`."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from peaks import peak_bytes
from storing import bytes_of, sample, spec, write

from surgery_jax.core.dtypes import DTYPES
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.formats import open_checkpoint, open_single, resolve_save_tensor

NAMED = [dtype.name for dtype in DTYPES if dtype.array and dtype.numpy.isbuiltin == 1]
OTHERS = [dtype.name for dtype in DTYPES if dtype.name not in NAMED]


def refusal(path: Path, format: str = "auto") -> str:
    with pytest.raises(StorageError) as caught:
        open_single(str(path), format)
    assert caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize("dtype", NAMED)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_numpy_reads_what_we_write_and_we_read_what_numpy_writes(
    dtype: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    made, data = sample(dtype, *shape)
    write(resolve_save_tensor(str(tmp_path / "ours"), "numpy"), {"w": (made, data)})
    theirs = np.load(tmp_path / "ours.npy", allow_pickle=False)
    assert (theirs.shape, theirs.dtype, theirs.tobytes()) == (shape, made.dtype.numpy, data)
    np.save(tmp_path / "theirs.npy", theirs)
    name, entry, _ = open_single(str(tmp_path / "theirs.npy"), "auto")
    assert (name, entry.spec, bytes_of(entry)) == (None, made, data)
    assert entry.extent is not None


@pytest.mark.parametrize("dtype", OTHERS)
def test_dtypes_that_numpy_cannot_name_are_refused(dtype: str, tmp_path: Path) -> None:
    plan = resolve_save_tensor(str(tmp_path / "w.npy"), "numpy")
    with pytest.raises(StorageError, match=dtype):
        plan.layout([("w", spec(dtype, 4))], {})


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3).T, np.asfortranarray(np.arange(24).reshape(2, 3, 4))])
def test_column_major_arrays_are_read_by_value(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", array)
    assert bytes_of(open_single(str(tmp_path / "w.npy"), "auto")[1]) == array.tobytes("C")


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_arrays_of_the_other_byte_order_are_read_by_value(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.full(shape, 258, ">i4")
    np.save(tmp_path / "w.npy", array)
    entry = open_single(str(tmp_path / "w.npy"), "auto")[1]
    assert bytes_of(entry) == array.astype("<i4").tobytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_are_checkpoints_and_one_array_is_a_tensor(save: object, tmp_path: Path) -> None:
    assert callable(save)
    arrays = {"a.b": np.arange(3.0), "c": np.ones((2, 2), np.int8).T}
    save(tmp_path / "many.npz", **arrays)
    found = open_checkpoint(str(tmp_path / "many.npz")).entries
    assert {name: bytes_of(entry) for name, entry in found.items()} == {n: a.tobytes("C") for n, a in arrays.items()}
    assert "2" in refusal(tmp_path / "many.npz")
    save(tmp_path / "one.npz", w=arrays["c"])
    name, entry, _ = open_single(str(tmp_path / "one.npz"), "numpy")
    assert (name, bytes_of(entry)) == ("w", arrays["c"].tobytes())


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_pickled_objects_are_refused_and_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "w.npy", np.array([Bomb()], object), allow_pickle=True)
    np.savez(tmp_path / "w.npz", w=np.array([Bomb()], object))
    assert "pickle" in refusal(tmp_path / "w.npy")
    assert "pickle" in refusal(tmp_path / "w.npz")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("array", [np.zeros(2, "U3"), np.zeros(2, "M8[s]"), np.zeros(2, "i4,f4"), np.zeros(2, "c16")])
def test_arrays_of_other_things_than_numbers_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", array)
    refusal(tmp_path / "w.npy")


def test_files_of_another_length_than_they_say_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(4))
    whole = stream.getvalue()
    for content in [*(whole[:length] for length in range(0, len(whole), 7)), whole + b"x", whole + whole]:
        (tmp_path / "w.npy").write_bytes(content)
        refusal(tmp_path / "w.npy")


@pytest.mark.parametrize("shape", ["(-1,)", "(True,)", "(1" + ",1" * 70 + ")", "3", "(2.0,)", "(" * 900 + ")" * 900])
def test_shapes_that_are_none_are_refused(shape: str, tmp_path: Path) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    (tmp_path / "w.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(4))
    refusal(tmp_path / "w.npy")


def test_archives_of_other_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("readme.txt", "x")
    refusal(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "w.npz", "w"):
        pass
    refusal(tmp_path / "w.npz")


def test_an_array_without_a_name_is_no_checkpoint(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.arange(3))
    with pytest.raises(StorageError, match="load"):
        open_checkpoint(str(tmp_path / "w.npy"))


def test_a_name_that_is_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for value in (1, 2):
            stream = io.BytesIO()
            np.save(stream, np.full(3, value))
            archive.writestr("a.npy", stream.getvalue())
    with pytest.raises(StorageError, match="'a' is in the archive twice"):
        open_checkpoint(str(tmp_path / "w.npz"))
    refusal(tmp_path / "w.npz")


def test_an_archive_of_several_disks_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.arange(3))
    whole = (tmp_path / "w.npz").read_bytes()
    at = whole.rindex(b"PK\5\6")
    locator = b"PK\6\7" + struct.pack("<IQI", 1, at, 2)
    (tmp_path / "w.npz").write_bytes(whole[:at] + locator + whole[at:])
    with pytest.raises(StorageError, match="multiple disks"):
        open_checkpoint(str(tmp_path / "w.npz"))
    assert "multiple disks" in refusal(tmp_path / "w.npz")


@pytest.mark.parametrize("shape", [(10**290,), (10**290, 0), (1 << 62, 8)])
def test_shapes_beyond_any_file_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(501) + b"\n"
    (tmp_path / "w.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text)
    assert "too large" in refusal(tmp_path / "w.npy")


def test_a_packed_header_without_end_takes_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        head = b"\x93NUMPY\2\0" + (64 << 20).to_bytes(4, "little")
        archive.writestr("a.npy", head + b" " * (64 << 20))

    def refuse() -> None:
        with pytest.raises(StorageError):
            open_checkpoint(str(tmp_path / "w.npz"))

    assert peak_bytes(refuse) < 8 << 20
