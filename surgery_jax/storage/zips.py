"""Zip archives whose members lie uncompressed at known places: found on reading, chosen on writing."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import StorageError
from .files import File
from .writing import write_at

__all__ = ["Archive", "LaidZip", "Member", "complete_checksums", "lay_zip"]

_MAX_WHOLE = 1 << 30  # bytes of a member that is read as a whole: no table of tensors is that long


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive: where in the file its bytes lie, None if they are packed."""

    name: str
    size: int
    offset: int | None


class Archive:
    """The members of a zip archive that is a whole file, or a range of it."""

    def __init__(self, file: File, begin: int = 0, length: int | None = None) -> None:
        """Read the list of members.

        Raises:
            StorageError: not a sound archive.
        """
        self._file = file
        self._begin = begin
        self._window = _Window(file, begin, file.size - begin if length is None else length)
        try:
            self._zip = zipfile.ZipFile(self._window)
        except StorageError:
            raise
        except Exception as error:  # whatever zipfile says about a file from elsewhere
            raise self.refusal("not a zip archive", str(error)) from None
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if info.filename in self._infos:
                raise self.refusal(f"the member {info.filename!r} is there twice")
            self._infos[info.filename] = info

    def refusal(self, problem: str, found: str | None = None) -> StorageError:
        """An error about this file."""
        return StorageError(problem, where=str(self._file.path), found=found)

    @property
    def names(self) -> Iterable[str]:
        """The names of all members."""
        return self._infos.keys()

    def member(self, name: str) -> Member:
        """Where a member lies.

        Raises:
            StorageError: it does not exist, or lies outside of the archive.
        """
        info = self._infos.get(name)
        if info is None:
            raise self.refusal("a part of the archive is missing", f"no member {name!r}")
        if info.flag_bits & 1:
            raise self.refusal(f"the member {name!r} is encrypted")
        if info.compress_type != zipfile.ZIP_STORED:
            return Member(name, info.file_size, None)
        # The central directory does not tell how long the member's own header is.
        head = self._window.at(info.header_offset, 30)
        signature, name_length, extra_length = struct.unpack("<4s22xHH", head)
        data = info.header_offset + 30 + name_length + extra_length
        is_inside = data + info.file_size <= self._window.length and info.compress_size == info.file_size
        if signature != b"PK\3\4" or not is_inside:
            raise self.refusal(f"the member {name!r} is not where the archive says")
        return Member(name, info.file_size, self._begin + data)

    def read(self, name: str) -> bytes:
        """All bytes of a member.

        Raises:
            StorageError: it cannot be read, or is far too long for what is read whole.
        """
        member = self.member(name)
        if member.offset is not None:
            if member.size > _MAX_WHOLE:
                raise self.refusal(f"the member {name!r} is too long", f"{member.size} bytes")
            return self._file.at(member.offset, member.size)
        return self.unpack(name, _MAX_WHOLE)

    def unpack(self, name: str, limit: int) -> bytes:
        """All bytes of a packed member, at most `limit`."""
        if self._infos[name].file_size > limit:
            raise self.refusal(f"the member {name!r} is too long", f"{self._infos[name].file_size} bytes")
        try:
            return self._zip.read(name)
        except StorageError:
            raise
        except Exception as error:
            raise self.refusal(f"the member {name!r} cannot be unpacked", str(error)) from None


class _Window(io.RawIOBase):
    """A range of a file as a file of its own, as zipfile wants it."""

    def __init__(self, file: File, begin: int, length: int) -> None:
        file.check_range(begin, length)
        self._file, self._begin, self.length, self._at = file, begin, length, 0

    def at(self, offset: int, count: int) -> bytes:
        if offset < 0 or offset + count > self.length:
            raise StorageError("the archive is cut off", where=str(self._file.path))
        return self._file.at(self._begin + offset, count)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + (0, self._at, self.length)[whence]
        if position < 0:
            raise OSError(22, "a position before the beginning")
        self._at = position
        return position

    def read(self, count: int = -1) -> bytes:
        rest = max(0, self.length - self._at)
        count = rest if count < 0 else min(count, rest)
        data = self.at(self._at, count) if count else b""
        self._at += count
        return data


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


def complete_checksums(path: Path, checksums: Iterable[tuple[int, int, int, int]]) -> None:
    """Write the checksums of members whose bytes are in place now.

    Raises:
        OSError: reading or writing failed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # zlib lets go of the interpreter lock, so threads help; more of them only fill memory.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda row: _complete(descriptor, *row), checksums):
                pass
    finally:
        os.close(descriptor)


def _complete(descriptor: int, begin: int, length: int, local: int, central: int) -> None:
    crc = 0
    while length:
        part = os.pread(descriptor, min(length, 1 << 22), begin)
        if not part:
            raise OSError(5, "the staged file is shorter than it was laid out")
        crc = zlib.crc32(part, crc)
        begin, length = begin + len(part), length - len(part)
    for place in (local, central):
        write_at(descriptor, struct.pack("<I", crc), place)
