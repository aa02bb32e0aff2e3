"""Multipart uploads of S3, and what stores say of them."""

from __future__ import annotations

import errno
from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree
from zlib import crc32

from .base import PlaceError
from .looking import StoredObject
from .sink import UploadSink
from .wire import Answer

if TYPE_CHECKING:
    from .s3 import S3Place

__all__ = ["CHECKSUM", "Multipart", "tree_of"]

CHECKSUM = "x-amz-checksum-crc32"  # of a part, in its header
_CHECKSUMS = "x-amz-checksum-algorithm"  # of all parts of an upload
_SCHEMA = "http://s3.amazonaws.com/doc/2006-03-01/"


class Multipart(UploadSink):
    """A multipart upload, which begins with its first part; a file of one part is written at once. Parts that may
    change are objects of their own until they are copied, at the store, into the upload. Other processes may send parts
    to the same upload.

    Parts are sent with a CRC-32, which takes much less time than an MD5, if the store says, when the upload begins,
    that it verifies it; it wants to hear these again in the end.
    """

    def __init__(self, place: S3Place, final: str, aside: str, is_single: bool) -> None:
        super().__init__(place)
        self._place, self._final, self._aside, self._is_single = place, final, aside, is_single
        self._upload, self._has_sums = "", False
        self._sent: dict[int, tuple[str, str]] = {}  # what the store calls a part, and its CRC-32 if it knows that
        self._asides: dict[int, tuple[str, StoredObject]] = {}
        self._single: StoredObject | None = None

    def begin(self) -> str:
        with self._lock:
            if not self._upload and not self._is_single:
                wanted = {_CHECKSUMS: "CRC32"}
                answer = self._place.tell(
                    self._final, "POST", {"uploads": ""}, headers=wanted, at_key=True, unless=(400, 501)
                )
                if answer.status >= 300:  # some stores refuse what they do not know
                    answer = self._place.tell(self._final, "POST", {"uploads": ""}, at_key=True)
                self._has_sums = answer.headers.get(_CHECKSUMS, "").upper() == "CRC32"
                self._upload = tree_of(answer).findtext("UploadId", "")
            return self._told()

    def _told(self) -> str:
        """What others must know of the upload."""
        return f"{'crc32 ' if self._has_sums else ''}{self._upload}"

    def join(self, told: str) -> None:
        kind, _, self._upload = told.rpartition(" ")
        self._has_sums = kind == "crc32"

    def _part(self, number: int) -> dict[str, str]:
        """The query for what is about a part, of the upload that is begun by then."""
        self.begin()
        return {"partNumber": str(number + 1), "uploadId": self._upload}

    def send(self, number: int, data: bytearray) -> None:
        if self._is_single:
            self._single = self._place.put(self._final, data)
            return
        query, headers, total = self._part(number), {}, ""
        if self._has_sums:
            total = b64encode(crc32(data).to_bytes(4, "big")).decode()
            headers = {CHECKSUM: total}
        answer = self._place.tell(self._final, "PUT", query, memoryview(data), headers=headers, at_key=True)
        self._sent[number] = answer.headers.get("etag", ""), total

    def put_aside(self, number: int, data: bytearray) -> None:
        name = f"{self._aside}.part-{number:05d}"
        with self._lock:
            self._made.add(name)
        self._asides[number] = name, self._place.put(name, data)

    def fetch(self, number: int, offset: int, target: memoryview) -> None:
        name, found = self._asides[number]
        self._place.fetch(name, found, offset, [target])

    def adopt(self, number: int, size: int) -> None:
        name = self._asides[number][0]
        query = {} if self._is_single else self._part(number)
        headers = {"x-amz-copy-source": "/" + quote(name.removeprefix("s3://"), safe="/-_.~")}
        answer = self._place.tell(self._final, "PUT", query, headers=headers, at_key=True)
        page = tree_of(answer)
        if self._is_single:
            self._single = StoredObject(size, page.findtext("ETag", ""))
        else:
            self._sent[number] = _part_of(page)

    def hand_in(self, number: int, *, is_sent: bool) -> Sequence[str]:
        if is_sent:
            if number in self._asides:  # before it was whole
                name, _ = self._asides.pop(number)
                self._place.remove_object(name)
                self._made.remove(name)
            return self._sent[number]
        name, found = self._asides[number]
        return [name, str(found.size), found.version]

    def take_in(self, number: int, told: Sequence[str], *, is_sent: bool) -> None:
        if is_sent:
            tag, total = told
            self._sent[number] = tag, total
        else:
            self._asides[number] = self.foreign(told)

    def complete(self) -> StoredObject:
        if self._single is not None:
            found = self._single
        else:
            rows = (
                f"<Part><PartNumber>{number + 1}</PartNumber><ETag>{tag}</ETag>"
                f"{total and f'<ChecksumCRC32>{total}</ChecksumCRC32>'}</Part>"
                for number, (tag, total) in sorted(self._sent.items())
            )
            text = f'<CompleteMultipartUpload xmlns="{_SCHEMA}">{"".join(rows)}</CompleteMultipartUpload>'
            self._place.tell(self._final, "POST", {"uploadId": self._upload}, text.encode(), at_key=True, again=True)
            appeared = self._place.find(self._final)
            if appeared is None:
                raise PlaceError(errno.EIO, "the upload was completed, and there is no such object")
            found, self._upload = appeared, ""
        self._remove_extra()
        return found

    def _remove_extra(self) -> None:
        for name in sorted(self._made):
            self._place.remove_object(name)

    def resume(self, told: str) -> dict[int, int]:
        sizes: dict[int, int] = {}
        self.join(told)
        query = {"uploadId": self._upload}
        while told:
            answer = self._place.tell(self._final, "GET", query, at_key=True, unless=(404,))
            if answer.status == 404:  # it was ended: another one begins
                self._upload = ""
                return {}
            page = tree_of(answer)
            for item in page.iter("Part"):
                number = int(item.findtext("PartNumber", "0")) - 1
                sizes[number], self._sent[number] = int(item.findtext("Size", "0")), _part_of(item)
            if page.findtext("IsTruncated") != "true":
                break
            query |= {"part-number-marker": page.findtext("NextPartNumberMarker", "")}
        return sizes

    def keep(self) -> None:
        self._remove_extra()

    def abort(self) -> None:
        if self._upload:
            self._place.tell(self._final, "DELETE", {"uploadId": self._upload}, at_key=True)
        self._remove_extra()


def tree_of(answer: Answer) -> ElementTree.Element:
    """What an answer says, without the names of its schema."""
    try:
        root = ElementTree.fromstring(answer.body)
    except ElementTree.ParseError:
        raise PlaceError(errno.EIO, "the answer is not of a store of this kind", "check the endpoint") from None
    for item in root.iter():
        item.tag = item.tag.rpartition("}")[2]
    return root


def _part_of(item: ElementTree.Element) -> tuple[str, str]:
    """What a store says of a part: what it calls it, and its CRC-32."""
    return item.findtext("ETag", ""), item.findtext("ChecksumCRC32", "")
