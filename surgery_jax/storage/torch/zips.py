"""Zip archives whose members lie uncompressed at known places: found on reading, chosen on writing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...core.cores import usable_cores
from ...core.errors import StorageError
from ..bounds import Allowance, TooLarge
from ..files import File
from ..places.base import Writer, fill
from ..places.found import place_of

__all__ = ["Archive", "LaidZip", "Member", "complete_checksums", "lay_zip"]

_STORED, _DEFLATED = 0, 8  # how members may be packed
_MAX_DIRECTORY = 1 << 27  # bytes of the list of members: a million of them
_MAX_RATIO = 64  # of a packed table to its unpacked bytes; those of real ones are about 20
_MEMBER = 320  # bytes that a member takes in memory, without its name
_END = struct.Struct("<4s4H2IH")
_LOCATOR = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s4x2H4x3I3HH6xI")
_WIDE, _WIDER = 0xFFFF, 0xFFFFFFFF  # instead of a number that stands at another place


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive: where in the file its bytes lie, None if they are packed."""

    name: str
    size: int
    offset: int | None


class _Listed(NamedTuple):
    """What the list of members says of one: `header` is where it begins, and `packed` how long it is there."""

    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int


class Archive:
    """The members of a zip archive that is a whole file, or a range of it."""

    def __init__(self, file: File, begin: int = 0, length: int | None = None) -> None:
        """Read the list of members.

        Raises:
            StorageError: not a sound archive.
        """
        self._file = file
        self._begin = begin
        self._length = file.size - begin if length is None else length
        file.check_range(begin, self._length)
        try:
            self._listed = dict(self._members())
        except (struct.error, UnicodeDecodeError, TooLarge) as error:
            raise self.refusal("the list of the archive's members is not sound", str(error)) from None

    def refusal(self, problem: str, found: str | None = None) -> StorageError:
        """An error about this file."""
        return StorageError(problem, where=str(self._file.path), found=found)

    @property
    def names(self) -> Iterable[str]:
        """The names of all members."""
        return self._listed.keys()

    def member(self, name: str) -> Member:
        """Where a member lies.

        Raises:
            StorageError: it does not exist, or lies outside of the archive.
        """
        listed = self._listed.get(name)
        if listed is None:
            raise self.refusal("a part of the archive is missing", f"no member {name!r}")
        if listed.flags & 1:
            raise self.refusal(f"the member {name!r} is encrypted")
        # The list does not tell how long the member's own header is.
        signature, name_length, extra_length = struct.unpack("<4s22xHH", self._at(listed.header, 30))
        data = listed.header + 30 + name_length + extra_length
        is_whole = listed.method != _STORED or listed.packed == listed.size
        if signature != b"PK\3\4" or data + listed.packed > self._length or not is_whole:
            raise self.refusal(f"the member {name!r} is not where the archive says")
        return Member(name, listed.size, self._begin + data if listed.method == _STORED else None)

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of a member that is a table.

        Raises:
            StorageError: it cannot be read, or is longer than `limit`, or packed as no table is.
        """
        member = self.member(name)
        if member.offset is None:
            return self.unpack(name, min(limit, (1 << 20) + _MAX_RATIO * self._listed[name].packed))
        self._check_limit(name, limit)
        return self._file.at(member.offset, member.size)

    def unpack(self, name: str, limit: int) -> bytes:
        """All bytes of a packed member, at most `limit`.

        Raises:
            StorageError: it cannot be unpacked, or is not what the archive says.
        """
        self._check_limit(name, limit)
        listed = self._listed[name]
        if listed.method != _DEFLATED:
            raise self.refusal(f"the member {name!r} is packed by method {listed.method}, which is not supported")
        _, name_length, extra_length = struct.unpack("<4s22xHH", self._at(listed.header, 30))
        packed = self._at(listed.header + 30 + name_length + extra_length, listed.packed)
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, listed.size + 1)
        except zlib.error as error:
            raise self.refusal(f"the member {name!r} cannot be unpacked", str(error)) from None
        if len(data) != listed.size or zlib.crc32(data) != listed.crc:
            raise self.refusal(f"the member {name!r} is damaged: other bytes than the archive says")
        return data

    def _check_limit(self, name: str, limit: int) -> None:
        size = self._listed[name].size
        if size > limit:
            raise self.refusal(f"the member {name!r} is too long", f"{size} bytes, of at most {limit}")

    def _at(self, offset: int, count: int) -> bytes:
        if offset < 0 or offset + count > self._length:
            raise StorageError("the archive is cut off", where=str(self._file.path))
        return self._file.at(self._begin + offset, count)

    def _directory(self) -> tuple[bytes, int]:
        """The list of members as it is stored, and how many there are."""
        tail = self._at(max(self._length - _END.size - _WIDE, 0), min(self._length, _END.size + _WIDE))
        place = tail.rfind(b"PK\5\6")
        if place < 0 or place + _END.size > len(tail):
            raise self.refusal("not a zip archive", "no end of a list of members")
        end = self._length - len(tail) + place
        _, disk, first, _, count, size, begin, _ = _END.unpack_from(tail, place)
        disks = 1
        if end >= _LOCATOR.size:
            signature, _, further, disks = _LOCATOR.unpack(self._at(end - _LOCATOR.size, _LOCATOR.size))
            if signature == b"PK\6\7":
                signature, *_, disk, first, _, count, size, begin = _END_64.unpack(self._at(further, _END_64.size))
                if signature != b"PK\6\6":
                    raise self.refusal("not a sound zip archive", "no end of its list of members where it should be")
            else:
                disks = 1
        if disk or first or disks != 1:
            raise self.refusal("a zip archive over several disks is not supported", f"{max(disks, disk + 1)} disks")
        if size > _MAX_DIRECTORY or begin + size > end:
            raise self.refusal("the list of the archive's members is not where the archive says", f"{size} bytes")
        return self._at(begin, size), count

    def _members(self) -> Iterator[tuple[str, _Listed]]:
        data, count = self._directory()
        allowance, seen = Allowance(len(data)), set[str]()
        at = 0
        while at < len(data):
            signature, flags, method, crc, packed, size, *lengths, disk, header = _CENTRAL.unpack_from(data, at)
            at += _CENTRAL.size
            raw, extra = data[at : at + lengths[0]], data[at + lengths[0] : at + lengths[0] + lengths[1]]
            at += sum(lengths)
            if signature != b"PK\1\2" or at > len(data) or disk not in (0, _WIDE):
                raise self.refusal("the list of the archive's members is not sound", f"at its byte {at}")
            size, packed, header = _wide(extra, size, packed, header)
            name = raw.decode("utf-8" if flags & 0x800 else "cp437")
            allowance.spend(_MEMBER + 2 * len(raw))
            if name in seen:
                raise self.refusal(f"the member {name!r} is there twice")
            seen.add(name)
            yield name, _Listed(flags, method, crc, packed, size, header)
        if len(seen) != count:
            raise self.refusal("the list of the archive's members is not whole", f"{len(seen)} of {count}")


def _wide(extra: bytes, *numbers: int) -> list[int]:
    """Numbers of 32 bits, where all bits are set those of 64 bits from the extra field of a member.

    Raises:
        struct.error: they are not there.
    """
    if _WIDER not in numbers:
        return list(numbers)
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            count = numbers.count(_WIDER)
            wide = iter(struct.unpack_from(f"<{count}Q", extra[at + 4 : at + 4 + length]))
            return [next(wide) if number == _WIDER else number for number in numbers]
        at += 4 + length
    return list(numbers)


# ---------------------------------------------------------------------------------------------------------- writing

_ALIGNMENT = 64
_DATE = 0x21  # 1 January 1980: the same bytes every time
_LONG = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class LaidZip:
    """An archive to be written at some place of a file: positions are those in the file."""

    size: int
    fixed: tuple[tuple[int, bytes], ...]
    begins: tuple[int, ...]  # of the bytes of the members that are not known yet, in their order
    checksums: tuple[tuple[int, int, int, int], ...]  # (begin, length, and the two places of the checksum) of those


def lay_zip(members: Sequence[tuple[str, bytes | int]], start: int = 0) -> LaidZip:
    """An archive of members whose bytes, or only whose length, are known. Data begins at multiples of 64."""
    at = 0
    fixed: list[tuple[int, bytes]] = []
    central: list[bytes] = []
    pending: list[tuple[int, int, int, int]] = []  # (begin, length, checksum in the header, in the central directory)
    central_size = 0
    for text, content in members:
        name = text.encode()
        known = content if isinstance(content, bytes) else b""
        size = content if isinstance(content, int) else len(content)
        crc = zlib.crc32(known)
        is_long = size >= _LONG
        extra = struct.pack("<HHQQ", 1, 16, size, size) if is_long else b""
        pad = -(at + 30 + len(name) + len(extra) + 4) % _ALIGNMENT
        extra += struct.pack("<HH", 0x4246, pad) + bytes(pad)  # "FB", as torch itself pads
        shown = _LONG if is_long else size
        version = 45 if is_long or at >= _LONG else 20
        common = struct.pack("<HHHHHIII", version, 0, 0, 0, _DATE, crc, shown, shown)
        head = b"PK\3\4" + common + struct.pack("<HH", len(name), len(extra)) + name + extra
        longs = (struct.pack("<QQ", size, size) if is_long else b"") + (struct.pack("<Q", at) if at >= _LONG else b"")
        longs = struct.pack("<HH", 1, len(longs)) + longs if longs else b""
        entry = b"PK\1\2" + struct.pack("<H", version) + common
        entry += struct.pack("<HHHHHII", len(name), len(longs), 0, 0, 0, 0, min(at, _LONG)) + name + longs
        begin = at + len(head)
        fixed.append((at, head + known))
        if isinstance(content, int):
            pending.append((begin, size, at + 14, central_size + 16))
        central.append(entry)
        central_size += len(entry)
        at = begin + size
    tail = b"".join(central) + _end_of_archive(len(members), at, central_size)
    fixed.append((at, tail))
    return LaidZip(
        at + len(tail),
        tuple((start + offset, data) for offset, data in fixed),
        tuple(start + begin for begin, *_ in pending),
        tuple((start + begin, size, start + local, start + at + entry) for begin, size, local, entry in pending),
    )


def _end_of_archive(count: int, at: int, size: int) -> bytes:
    tail = b""
    if count >= 0xFFFF or at >= _LONG or size >= _LONG:
        tail = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, at)
        tail += b"PK\6\7" + struct.pack("<IQI", 0, at + size, 1)
    shown = min(count, 0xFFFF)
    return tail + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, shown, shown, min(size, _LONG), min(at, _LONG), 0)


def complete_checksums(path: Path, checksums: Iterable[tuple[int, int, int, int]]) -> tuple[()]:
    """Write the checksums of members whose bytes are in place now. There are no further files.

    Raises:
        OSError: reading or writing failed.
    """
    writer = place_of(str(path)).target(str(path))
    try:
        # zlib lets go of the interpreter lock, so threads help; more of them only fill memory.
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:
            for _ in pool.map(lambda row: _complete(writer, *row), checksums):
                pass
    finally:
        writer.close()
    return ()


def _complete(writer: Writer, begin: int, length: int, local: int, central: int) -> None:
    crc, memory = 0, memoryview(bytearray(min(length, 1 << 22)))
    while length:
        part = memory[:length]
        fill(writer, begin, part)
        crc = zlib.crc32(part, crc)
        begin, length = begin + part.nbytes, length - part.nbytes
    for place in (local, central):
        writer.write(place, struct.pack("<I", crc))
