"""Files that somebody broke on purpose: refused or read, never anything else; and accepted only if the library does."""

import io
import json
import struct
import tempfile
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from storing import bytes_of, sample, spec

from surgery_jax.core.dtypes import DTYPES
from surgery_jax.core.errors import StorageError
from surgery_jax.storage.formats import open_checkpoint, open_single, resolve_output
from surgery_jax.storage.torch.pickles import PickleRefused, read_pickle

many = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])

VALID = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F4", "shape": [0, 5], "data_offsets": [32, 32]},
    "d": {"dtype": "U8", "shape": [], "data_offsets": [32, 33]},
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**53, 2**63, 2**64, 10**30, 1.0, 0.5, -0.0, 1e400]),
    st.sampled_from(["", "F32", "BOOL", [], [0], {}, [[]]]),
    st.sampled_from([dtype.code for dtype in DTYPES]),
    st.lists(st.integers(0, 33), max_size=4),
)  # fmt: skip


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in paths_of(item, (*path, key)))]


@st.composite
def mutated_tables(draw: st.DrawFn) -> Any:
    """A valid table in which some values were replaced, removed or added."""
    table: Any = json.loads(json.dumps(VALID))
    for _ in range(draw(st.integers(1, 3))):
        *way, key = draw(st.sampled_from([path for path in paths_of(table) if path] or [("a",)]))
        target = table
        for step in way:
            target = target[step]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "remove":
            target.pop(key)
        elif action == "replace" or isinstance(target, list):
            target[key] = deepcopy(draw(ODD))  # the drawn value is shared
        else:
            target[draw(st.text(max_size=3))] = deepcopy(draw(ODD))
        if not isinstance(table, dict) or not table:
            break
    return table


def parsed(content: bytes) -> StorageError | dict[str, tuple[str, list[int], bytes]]:
    """What we say about a file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.safetensors"
        path.write_bytes(content)
        try:
            entries = open_checkpoint(str(path)).entries
        except StorageError as error:
            assert error.exit_code == 3
            assert error.where == str(path)
            return error
        return {n: (e.spec.dtype.code, list(e.spec.shape), bytes_of(e)) for n, e in entries.items()}


def judged(content: bytes) -> Exception | dict[str, tuple[str, list[int], bytes]]:
    """What the library says about a file."""
    try:
        found = safetensors.deserialize(content)
    except Exception as error:
        return error
    return {name: (item["dtype"], list(item["shape"]), bytes(item["data"])) for name, item in found}


# Where we are stricter on purpose: no tensors at all; shapes and keys that other readers cannot hold or disagree about.
STRICTER = ("holds no tensors", "too many axes", "too large", "twice in one object")


def compare(content: bytes) -> None:
    ours, theirs = parsed(content), judged(content)
    if isinstance(ours, dict):
        assert ours == theirs
    elif isinstance(theirs, dict):
        assert any(reason in str(ours) for reason in STRICTER), f"{ours}\n{theirs}"


@many
@given(mutated_tables(), st.binary(max_size=2), st.sampled_from([33, 33, 33, 32, 34, 0]))
@example({"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"", 1)
def test_a_changed_table_is_accepted_only_if_the_library_accepts_it(table: Any, tail: bytes, length: int) -> None:
    text = json.dumps(table).encode() + (b" " * len(tail))
    compare(struct.pack("<Q", len(text)) + text + bytes(length))


@many
@given(st.data())
def test_changed_bytes_are_accepted_only_if_the_library_accepts_them(data: st.DataObject) -> None:
    text = json.dumps(VALID, separators=(",", ":")).encode()
    content = bytearray(struct.pack("<Q", len(text)) + text + bytes(33))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(
            st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from([b"[", b"}", b'"', b"\\u0000", b"1"]))
        )
        if data.draw(st.booleans()):
            content[at : at + len(patch)] = patch
        else:
            content[at:at] = patch
    compare(bytes(content))


@many
@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)),
        min_size=1,
        max_size=6,
    ),
    st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3),
)
def test_every_written_header_is_what_the_library_reads(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    specs = [
        (name, spec(dtype.name, *shape))
        for name, (dtype, shape) in tensors.items()
        if np.prod(shape, dtype=int) * dtype.bits % 8 == 0
    ]
    layout = resolve_output("out.safetensors", None, None, "5GB").layout(specs, metadata)
    content = bytearray(layout.files[0].size)
    for offset, data in layout.files[0].fixed:
        content[offset : offset + len(data)] = data
    found = judged(bytes(content))
    assert isinstance(found, dict)
    assert {name: (code, shape) for name, (code, shape, _) in found.items()} == {
        name: (made.dtype.code, list(made.shape)) for name, made in specs
    }
    if specs:
        assert parsed(bytes(content)) == found


INSTRUCTIONS = [bytes([code]) for code in b"(012NKM}])tleasuqhcRbQ.\x80\x81\x85\x86\x87\x88\x94\x93\x90\x91"]
INSTRUCTIONS += [b"X\1\0\0\0a", b"ca\nb\n", b"K\1", b"q\0", b"h\0"]


@many
@given(st.binary(max_size=60))
def test_arbitrary_pickles_are_refused_or_data(content: bytes) -> None:
    try:
        read_pickle(b"\x80\x02" + content, {}, lambda pid: pid)
    except PickleRefused:
        pass


@many
@given(st.lists(st.sampled_from(INSTRUCTIONS), max_size=40))
def test_arbitrary_programs_of_a_pickle_are_refused_or_data(parts: list[bytes]) -> None:
    try:
        read_pickle(b"".join(parts) + b".", {}, lambda pid: pid)
    except PickleRefused:
        pass


def archive() -> bytes:
    layout = resolve_output("out.pt", None, None, "5GB").layout(
        [("w", spec("float32", 3)), ("v", spec("uint16", 2, 2))], {}
    )
    content = bytearray(layout.files[0].size)
    for offset, data in layout.files[0].fixed:
        content[offset : offset + len(data)] = data
    return bytes(content)


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, w=np.arange(3), v=np.ones((2, 2), np.float32))
    return stream.getvalue()


def array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(np.ones((3, 2), np.float32)))
    return stream.getvalue()


@many
@pytest.mark.filterwarnings("ignore")  # NumPy warns about odd headers
@pytest.mark.parametrize(("suffix", "whole"), [("pt", archive()), ("npz", arrays()), ("npy", array())])
@given(data=st.data())
def test_changed_files_of_other_formats_are_refused_or_read(suffix: str, whole: bytes, data: st.DataObject) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"a.{suffix}"
        path.write_bytes(content[:cut])
        try:
            entries = (
                [open_single(str(path), "auto")[1]]
                if suffix == "npy"
                else list(open_checkpoint(str(path)).entries.values())
            )
            for entry in entries:
                if entry.spec.nbytes < 1 << 20:
                    bytes_of(entry)
        except StorageError as error:
            assert error.exit_code == 3


def test_an_archive_may_not_point_outside_of_itself(tmp_path: Path) -> None:
    content = bytearray(archive())
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        info = opened.getinfo("archive/data/0")
    at = content.rfind(b"PK\1\2", 0, content.rfind(b"archive/data/0"))
    assert struct.unpack_from("<I", content, at + 42)[0] == info.header_offset
    struct.pack_into("<I", content, at + 42, 10**6)
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(StorageError):
        open_checkpoint(str(tmp_path / "a.pt"))


def test_a_huge_sparse_file_costs_no_memory_to_refuse(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt", "a.bin", "a.npz"):
        with (tmp_path / name).open("wb") as stream:
            stream.truncate(1 << 40)
            stream.write(
                b"\x80\x02" if name == "a.bin" else struct.pack("<Q", 99_999_999)[: 8 if name[2] == "s" else 0]
            )
        if name == "a.safetensors":
            continue  # a header of a hundred megabytes is allowed; the next test has a longer one
        with pytest.raises(StorageError):
            open_checkpoint(str(tmp_path / name))
        assert (tmp_path / name).stat().st_size == 1 << 40


def test_samples_use_every_bit_pattern_of_a_byte() -> None:
    assert len(set(sample("uint8", 5000)[1])) == 256
