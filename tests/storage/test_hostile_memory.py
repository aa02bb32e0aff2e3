"""Files that somebody made on purpose: small ones cannot ask for much memory, a long time, or a place that is none."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peaks import peak_bytes
from storing import bytes_of, sample, write

from surgery_jax.core.errors import StorageError
from surgery_jax.storage.bounds import Allowance, TooLarge
from surgery_jax.storage.formats import open_checkpoint, resolve_output
from surgery_jax.storage.torch.pickles import PickleRefused, read_pickle

pytestmark = pytest.mark.filterwarnings("ignore:.*left out")

MEMORY = 100 << 20  # bytes that the reading of a small file may take at most


def refusal(path: Path) -> str:
    """What is said of a file, which costs little memory."""
    said: list[StorageError] = []

    def refuse() -> None:
        with pytest.raises(StorageError) as caught:
            open_checkpoint(str(path))
        said.append(caught.value)

    assert peak_bytes(refuse) < MEMORY
    assert said[-1].exit_code == 3
    assert len(str(said[-1])) < 1000
    return str(said[-1])


def torch_file(table: bytes, method: int = zipfile.ZIP_STORED, **storages: bytes) -> bytes:
    """A file of `torch.save` with another pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + table)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key[1:]}", data)
    return stream.getvalue()


def old_torch_file(table: bytes) -> bytes:
    """The same as PyTorch before 1.6 wrote it."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    heads = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    return b"".join(heads) + b"\x80\x02" + table


MANY = 1 << 20


@pytest.mark.parametrize("item", [b"]", b"}NNs", b"N\x94", b"X\1\0\0\0a", b"cx\ny\n", b"cx\ny\n)R", b"N\x85", b"M\1\2"])
def test_values_of_a_pickle_take_no_more_memory_than_allowed(item: bytes) -> None:
    def refuse() -> None:
        with pytest.raises(PickleRefused, match="far more memory"):
            read_pickle(b"\x80\x02" + item * 60_000 + b".", {}, lambda pid: pid, allowance=Allowance(0, 1 << 20))

    assert peak_bytes(refuse) < 3 << 20


@pytest.mark.parametrize("made", [torch_file, old_torch_file])
def test_a_file_of_nothing_but_lists_is_refused(made: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(made(b"]" * (MANY // 2) + b"."))
    assert "far more memory" in refusal(tmp_path / "a.pt")


def test_values_that_wait_on_the_stack_are_bounded() -> None:
    with pytest.raises(PickleRefused, match="values at once"):
        read_pickle(b"\x80\x02N" + b"2" * (5 << 20) + b".", {}, lambda pid: pid)


@pytest.mark.parametrize("table", [b"]" * (42 << 20), bytes(100 << 20)], ids=["lists", "zeros"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_table_that_is_packed_as_none_is_not_unpacked(method: int, table: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(
        torch_file(table[: len(table) if method == zipfile.ZIP_DEFLATED else 4 << 20], method)
    )
    assert "archive/data.pkl" in refusal(tmp_path / "a.pt")


def test_a_member_that_is_longer_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    content = bytearray(torch_file(bytes(100 << 20), zipfile.ZIP_DEFLATED))
    for signature, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", content, content.find(signature) + at, 100)
    (tmp_path / "a.pt").write_bytes(content)
    assert "damaged" in refusal(tmp_path / "a.pt")


def directory(count: int, disk: int = 0, disks: int = 1) -> bytes:
    """A zip archive that is nothing but a list of members, of the long kind."""
    head = b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0)
    rows = b"".join(head + struct.pack("<I", number) for number in range(count))
    end = struct.pack("<QHHIIQQQQ", 44, 45, 45, disk, 0, count, count, len(rows), 0)
    locator = struct.pack("<IQI", 0, len(rows), disks)
    short = struct.pack("<HHHHIIH", 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return rows + b"PK\6\6" + end + b"PK\6\7" + locator + b"PK\5\6" + short


def test_an_archive_of_very_many_members_costs_little(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(directory(20_000))
    assert "data.pkl" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(("disk", "disks"), [(1, 1), (0, 2), (1, 2)])
def test_an_archive_over_several_disks_is_refused(disk: int, disks: int, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(directory(3, disk, disks))
    assert "several disks" in refusal(tmp_path / "a.pt")


def test_a_list_of_members_that_is_cut_or_miscounted_is_refused(tmp_path: Path) -> None:
    whole = torch_file(b"N.")
    at = whole.rfind(b"PK\5\6")
    for change in (
        whole[:at],
        whole[: at + 12],
        whole[: at + 10] + b"\7\0" + whole[at + 12 :],
        whole[: at + 16] + struct.pack("<I", len(whole)) + whole[at + 20 :],
        whole.replace(b"PK\1\2", b"PK\1\3"),
    ):
        (tmp_path / "a.pt").write_bytes(change)
        assert "archive" in refusal(tmp_path / "a.pt")


def test_tables_in_one_another_many_times_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    table: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(60):
        table = {"a": table, "b": table}
    torch.save(table, tmp_path / "a.pt")
    assert "too many values" in refusal(tmp_path / "a.pt")


def test_arguments_that_hold_themselves_are_no_tensor(tmp_path: Path) -> None:
    call = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    loop = b"]q\0(" + call + b"Nh\0Ne0"  # a list of arguments with itself as the arguments within
    (tmp_path / "a.pt").write_bytes(torch_file(loop + b"}X\1\0\0\0w" + call + b"(" + call + b"Nh\0NtRs."))
    assert "w (a tensor of None)" in refusal(tmp_path / "a.pt")


def tensor(shape: list[int], name: bytes = b"w") -> bytes:
    """The pickle of a table with one tensor that has one element in its storage."""

    def numbers(values: list[int]) -> bytes:
        rows = [value.to_bytes(value.bit_length() // 8 + 1, "little") for value in values]
        return b"(" + b"".join(b"\x8a" + bytes([len(row)]) + row for row in rows) + b"t"

    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ"
    rest = b"K\0" + numbers(shape) + numbers([1] * len(shape)) + b"\x89ccollections\nOrderedDict\n)R"
    key = b"X" + struct.pack("<I", len(name)) + name
    return b"}" + key + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tRs."


@pytest.mark.parametrize("shape", [[10**290], [0, 10**290], [0, 1 << 62], [1] * 65])
def test_impossible_shapes_are_refused(shape: list[int], tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(torch_file(tensor(shape), _0=bytes(4)))
    assert "impossible shape" in refusal(tmp_path / "a.pt")


def test_a_table_of_numbers_that_cannot_be_printed_is_refused() -> None:
    with pytest.raises(PickleRefused, match="an integer of 5000 bytes"):
        read_pickle(b"\x80\x02\x8b" + struct.pack("<I", 5000) + bytes(5000) + b".", {}, lambda pid: pid)
    with pytest.raises(PickleRefused, match="a text of"):
        read_pickle(b"\x80\x02X" + struct.pack("<I", 1 << 25) + bytes(1 << 25) + b".", {}, lambda pid: pid)


@pytest.mark.parametrize("name", [b"a\0b", b"\xed\xa0\x80", b"\n", b"../x"])
def test_odd_names_are_names_and_where_they_cannot_be_written_it_is_said(name: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(torch_file(tensor([1], name), _0=bytes(4)))
    (found,) = open_checkpoint(str(tmp_path / "a.pt")).entries
    assert found == name.decode("utf-8", "surrogatepass")
    for output, format in [("o.safetensors", None), ("o.msgpack", None), ("o", "orbax"), ("o.pt", None)]:
        try:
            write(resolve_output(str(tmp_path / output), format, None, "5GB"), {found: sample("float32", 1)})
        except StorageError as error:
            assert error.exit_code == 3
        else:
            assert bytes_of(open_checkpoint(str(tmp_path / output)).entries[found]) == sample("float32", 1)[1]


@pytest.mark.parametrize("item", [b"\0", b"\xc0", b"\xc4\0"])
def test_a_tree_of_very_many_leaves_is_refused(item: bytes, tmp_path: Path) -> None:
    count = 2 * MANY // len(item)
    (tmp_path / "a.msgpack").write_bytes(b"\x81\xa1a\xdd" + struct.pack(">I", count) + item * count)
    assert "too many" in refusal(tmp_path / "a.msgpack")


def test_a_long_key_above_many_leaves_is_refused(tmp_path: Path) -> None:
    key = b"\xda" + struct.pack(">H", 60_000) + b"k" * 60_000
    (tmp_path / "a.msgpack").write_bytes(b"\x81" + key + b"\xdd" + struct.pack(">I", 1 << 20) + bytes(1 << 20))
    assert "too long names" in refusal(tmp_path / "a.msgpack")


def test_a_long_table_beside_little_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"PK")
    (tmp_path / ".metadata").write_bytes(b"\x80\x02" + b"]" * (MANY // 2) + b".")
    assert "far more memory" in refusal(tmp_path)


@pytest.mark.parametrize("table", ["[" * MANY, "[" + "[]," * MANY + "[]]", '{"a":[' + "{}," * MANY + "{}]}"])
def test_a_table_of_a_tree_that_holds_too_much_is_refused(table: str, tmp_path: Path) -> None:
    write(resolve_output(str(tmp_path / "a"), "orbax", None, "5GB"), {"w": sample("float32", 3)})
    (tmp_path / "a" / "_METADATA").write_text(table)
    assert "holds too much" in refusal(tmp_path / "a")


def test_what_a_packed_tensor_takes_counts_as_the_memory_of_reading_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.zeros(1 << 20)
    torch.save({"few": base[::4096], "all": base}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as old,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    for path in (tmp_path / "plain.pt", tmp_path / "a.pt"):
        entry = open_checkpoint(str(path)).entries["few"]
        assert entry.blocks is not None
        assert 3 << 20 < peak_bytes(entry.read) <= entry.spec.nbytes * (entry.blocks.factor + 1) + (1 << 16)


def test_an_allowance_grows_with_the_table_and_ends() -> None:
    Allowance(1000).spend(16 << 20)
    with pytest.raises(TooLarge, match="1000 B"):
        Allowance(1000).spend(17 << 20)
    Allowance(1 << 20).spend(17 << 20)
    with pytest.raises(TooLarge):
        Allowance(1 << 40).spend(1 << 30)


def test_sound_tables_are_far_from_their_bounds() -> None:
    names = {f"model.layers.{number}.self_attn.q_proj.weight": (number, [1, 2], None) for number in range(20_000)}
    for protocol in (2, 4):
        assert read_pickle(pickle.dumps(names, protocol), {}, lambda pid: pid, allowance=Half())[0] == names


class Half(Allowance):
    """An allowance of half as much for a table of a million bytes."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.left //= 2
