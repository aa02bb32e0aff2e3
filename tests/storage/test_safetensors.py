"""Safetensors: against the library, and its own rules for directories and shards."""

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from peaks import peak_bytes
from storing import bytes_of, sample, spec, write

from surgery_jax.core.dtypes import DTYPES
from surgery_jax.core.errors import StorageError
from surgery_jax.core.notes import Note
from surgery_jax.storage.formats import open_checkpoint, open_single, resolve_output, resolve_save_tensor

INDEX = "model.safetensors.index.json"


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def one(name: str = "w", begin: int = 0, end: int = 4, dtype: object = "U8", shape: object = (4,)) -> dict[str, object]:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


def index(directory: Path, names: object, **more: object) -> None:
    directory.mkdir(exist_ok=True)
    (directory / INDEX).write_text(json.dumps({"weight_map": names, **more}))


def refusal(path: Path) -> str:
    with pytest.raises(StorageError) as caught:
        open_checkpoint(str(path))
    assert caught.value.exit_code == 3
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- against the library


def test_the_library_reads_what_we_write_for_every_dtype_it_knows(tmp_path: Path) -> None:
    tensors = {dtype.name: sample(dtype.name, 4, 6) for dtype in DTYPES}
    write(tmp_path / "a.safetensors", tensors, metadata={"b": "2", "a": "ü"})
    found = dict(safetensors.deserialize((tmp_path / "a.safetensors").read_bytes()))
    assert set(found) == set(tensors)
    for name, (made, data) in tensors.items():
        assert found[name]["dtype"] == made.dtype.code
        assert tuple(found[name]["shape"]) == made.shape
        assert bytes(found[name]["data"]) == data
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "b": "2", "a": "ü"}


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    arrays = {"x": np.arange(6.0).reshape(2, 3), "y": np.array(3, np.int64), "z": np.zeros((0, 4), np.float16)}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", {"k": "v"})
    found = open_checkpoint(str(tmp_path / "a.safetensors"))
    assert found.metadata == {"k": "v"}
    for name, array in arrays.items():
        assert found.entries[name].spec.shape == array.shape
        assert bytes_of(found.entries[name]) == array.tobytes()


def test_entries_come_in_the_order_of_the_data(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.safetensors", one("b", 4, 8) | one("a", 8, 12) | one("c", 0, 4), bytes(12))
    assert list(open_checkpoint(str(path)).entries) == ["c", "b", "a"]


def test_one_hundred_thousand_headers_are_read_in_a_moment(tmp_path: Path) -> None:
    table = {
        f"layers.{n}.w": {"dtype": "U8", "shape": [2, 3], "data_offsets": [6 * n, 6 * n + 6]} for n in range(10**5)
    }
    path = raw(tmp_path / "a.safetensors", table, bytes(6 * 10**5))
    begin = time.process_time()
    found = open_checkpoint(str(path))
    assert time.process_time() - begin < 3  # half a second on an idle machine
    assert len(found.entries) == 10**5


# --- layout


def test_data_begin_on_a_page_when_there_is_much_of_it_and_small_files_stay_small(tmp_path: Path) -> None:
    plan = resolve_output(str(tmp_path / "a.safetensors"), None, None, "5GB")
    assert plan.layout([("w", spec("uint8", 1 << 20))], {}).places["w"][1] % 4096 == 0
    small = plan.layout([("w", spec("uint8", 3))], {})
    assert small.files[0].size < 150
    assert small.places["w"][1] % 8 == 0


def test_bytes_of_a_header_do_not_depend_on_the_order_of_metadata(tmp_path: Path) -> None:
    plan = resolve_output(str(tmp_path / "a.safetensors"), None, None, "5GB")
    left = plan.layout([("w", spec("uint8", 3))], {"a": "1", "b": "2"})
    right = plan.layout([("w", spec("uint8", 3))], {"b": "2", "a": "1"})
    assert left.files == right.files


def test_a_given_format_in_the_metadata_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"w": sample("uint8", 3)}, metadata={"format": "mlx"})
    assert open_checkpoint(str(tmp_path / "a.safetensors")).metadata == {"format": "mlx"}


def test_shards_are_cut_greedily_in_the_given_order(tmp_path: Path) -> None:
    sizes = {"d": 6, "a": 4, "big": 30, "c": 3, "b": 7, "empty": 0}
    tensors = {name: sample("uint8", size) for name, size in sizes.items()}
    write(tmp_path / "out", tensors, shard="10B")
    table = json.loads((tmp_path / "out" / INDEX).read_text())
    shard = "model-0000{}-of-00003.safetensors".format
    numbers = {"d": 1, "a": 1, "big": 2, "c": 3, "b": 3, "empty": 3}
    assert table == {
        "metadata": {"total_size": 50},
        "weight_map": {name: shard(number) for name, number in numbers.items()},
    }
    assert list(table["weight_map"]) == list(sizes)
    found = open_checkpoint(str(tmp_path / "out"))
    assert list(found.entries) == list(sizes)
    assert all(bytes_of(found.entries[name]) == tensors[name][1] for name in sizes)
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safetensors.safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_a_directory_without_shards_is_one_file_without_index(tmp_path: Path) -> None:
    write(tmp_path / "out", {"w": sample("uint8", 3)}, shard="none")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def test_the_name_of_the_metadata_is_refused_for_a_tensor(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="__metadata__"):
        write(tmp_path / "a.safetensors", {"__metadata__": sample("uint8", 3)})
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="text"):
        write(tmp_path / "a.safetensors", {"a\ud800": sample("uint8", 3)})


def test_a_header_that_no_reader_would_accept_is_not_written(tmp_path: Path) -> None:
    plan = resolve_output(str(tmp_path / "a.safetensors"), None, None, "5GB")
    with pytest.raises(StorageError, match="header"):
        plan.layout([("n" * 100_000_001, spec("uint8", 3))], {})


def test_one_tensor_is_saved_under_its_name(tmp_path: Path) -> None:
    plan = resolve_save_tensor(str(tmp_path / "w.anything"), None)
    write(plan, {"a.b": sample("bfloat16", 2, 2)})
    name, entry, _ = open_single(str(tmp_path / "w.anything"), "safetensors")
    assert (name, bytes_of(entry)) == ("a.b", sample("bfloat16", 2, 2)[1])


# --- headers that lie

EMPTY = b'"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'

LIES: dict[str, tuple[object, bytes]] = {
    "a hole": (one() | one("v", 5, 9), bytes(9)),
    "an overlap": (one() | one("v", 3, 7), bytes(7)),
    "one place twice": (one() | one("v", 0, 4), bytes(4)),
    "data not from zero": (one("w", 1, 5), bytes(5)),
    "bytes after the data": (one(), bytes(5)),
    "too few bytes": (one(), bytes(3)),
    "another size than the shape": (one(shape=[5]), bytes(4)),
    "half a byte": (one(dtype="F4", shape=[3], end=1), bytes(1)),
    "an end before the begin": (one("w", 4, 0), bytes(4)),
    "a negative begin": (one("w", -4, 0), b""),
    "a fraction": (one(end=4.0), bytes(4)),
    "a boolean as an offset": (one(begin=False, end=1, shape=[1]), bytes(1)),
    "a boolean as an axis": (one("v", 0, 1, shape=[1]) | one("w", 1, 2, shape=[True]), bytes(2)),
    "a negative axis": (one(shape=[-2, -2]), bytes(4)),
    "a shape that is text": (one(shape="4"), bytes(4)),
    "an unknown dtype": (one(dtype="F7"), bytes(4)),
    "a dtype that is a list": (one(dtype=["U8"]), bytes(4)),
    "a shape beyond all memory": (one(shape=[2**62, 2**62, 0], end=0), b""),
    "a shape of 10^290": (one(shape=[10**290]), bytes(4)),
    "an empty shape of 10^290": (one(shape=[10**290, 0], end=0), b""),
    "an offset of 10^290": (one("w", 10**290, 10**290 + 4), bytes(4)),
    "seventy axes": (one(shape=[1] * 70, end=1), bytes(1)),
    "an entry without shape": ({"w": {"dtype": "U8", "data_offsets": [0, 4]}}, bytes(4)),
    "three offsets": ({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4, 4]}}, bytes(4)),
    "an entry that is a list": ({"w": [1]}, b""),
    "metadata that is not text": (one() | {"__metadata__": {"a": 1}}, bytes(4)),
    "metadata that is a list": (one() | {"__metadata__": ["a"]}, bytes(4)),
    "a list": ([], b""),
    "no JSON": (b"{", b""),
    "no UTF-8": (b'{"\xff": 1}', b""),
    "UTF-16": ("{}".encode("utf-16"), b""),
    "not a number": (b'{"w": NaN}', b""),
    "a key twice": (b"{" + b",".join([EMPTY] * 2) + b"}", b""),
    "half a surrogate": (b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
    "endless nesting": (b"[" * 200_000, b""),
    "endless digits": (b'{"w":' + b"9" * 10_000 + b"}", b""),
    "no tensors": ({}, b""),
    "an empty header": (b"", b""),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    refusal(raw(tmp_path / "a.safetensors", *LIES[lie]))


@pytest.mark.parametrize(
    "content", [b"", b"1234567", struct.pack("<Q", 10**8 + 1), struct.pack("<Q", 2**64 - 1) + b"{}"]
)
def test_a_length_beyond_the_file_is_refused_before_it_is_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "metadata",
    [{f"k{n}": "" for n in range(1_100_000)}, {"k": "x" * (33 << 20)}],
    ids=["many values", "one long text"],
)
def test_a_long_header_over_few_data_is_refused_before_it_takes_memory(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    path = raw(tmp_path / "a.safetensors", {"__metadata__": metadata} | one(), bytes(4))
    del metadata
    assert "for so little data" in refusal(path)
    assert peak_bytes(lambda: refusal(path)) < 3 * path.stat().st_size


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    plan = resolve_output(str(tmp_path / "a.safetensors"), None, None, "5GB")
    with pytest.raises(StorageError, match="for so little data") as caught:
        plan.layout([("w" * 40_000_000, spec("uint8", 3))], {})
    assert "shard" in str(caught.value.hint)


def test_blanks_around_the_header_and_unknown_fields_are_accepted(tmp_path: Path) -> None:
    text = b' {"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], "more": null}} \n'
    assert len(open_checkpoint(str(raw(tmp_path / "a.safetensors", text, bytes(4)))).entries) == 1


# --- directories


def test_without_an_index_all_files_count(tmp_path: Path) -> None:
    raw(tmp_path / "d/b.safetensors", one("b"), bytes(4))
    raw(tmp_path / "d/a.safetensors", one("a"), bytes(4))
    raw(tmp_path / "d/c.safetensors", {})
    assert list(open_checkpoint(str(tmp_path / "d")).entries) == ["a", "b"]


def test_with_an_index_only_the_files_that_it_names_count_and_the_others_are_told(tmp_path: Path) -> None:
    raw(tmp_path / "d/sub/a.safetensors", one("a") | one("unlisted", 4, 8), bytes(8))
    raw(tmp_path / "d/b.safetensors", one("b"), bytes(4))
    index(tmp_path / "d", {"a": "sub/a.safetensors"}, metadata={"total_size": 4})
    with pytest.warns(Note, match=r"left out: b\.safetensors"):
        found = open_checkpoint(str(tmp_path / "d"))
    assert list(found.entries) == ["a", "unlisted"]
    assert found.files == (str(tmp_path / "d/sub/a.safetensors"),)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    raw(tmp_path / "d/a.safetensors", one("same"), bytes(4))
    raw(tmp_path / "d/b.safetensors", one("same"), bytes(4))
    assert "'same'" in refusal(tmp_path / "d")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "/etc/passwd",
        "../other.safetensors",
        "a/../../other.safetensors",
        "absent.safetensors",
        3,
        None,
        ["a"],
        "\0",
        "\ud800",
        "n" * 4000,
        "a/" * 2000 + "b",
    ],
)
def test_an_index_may_name_only_files_beside_it(value: object, tmp_path: Path) -> None:
    raw(tmp_path / "other.safetensors", one("w"), bytes(4))
    index(tmp_path / "d", {"w": value})
    assert "w" in refusal(tmp_path / "d")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": {}}', '{"weight_map": [1]}', "{}", "[" * 100_000])
def test_a_broken_index_is_refused(text: str, tmp_path: Path) -> None:
    raw(tmp_path / "d/a.safetensors", one("w"), bytes(4))
    (tmp_path / "d" / INDEX).write_text(text)
    refusal(tmp_path / "d")


def test_an_index_that_names_a_tensor_of_no_file_is_refused(tmp_path: Path) -> None:
    raw(tmp_path / "d/a.safetensors", one("layer.w"), bytes(4))
    index(tmp_path / "d", {"layer.v": "a.safetensors"})
    assert "layer.w" in refusal(tmp_path / "d")


def test_an_index_that_confuses_two_files_is_refused(tmp_path: Path) -> None:
    raw(tmp_path / "d/a.safetensors", one("a"), bytes(4))
    raw(tmp_path / "d/b.safetensors", one("b"), bytes(4))
    index(tmp_path / "d", {"a": "b.safetensors", "b": "a.safetensors"})
    refusal(tmp_path / "d")
