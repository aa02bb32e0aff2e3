"""`s3://bucket/key`: S3 and all stores that speak its language.

Credentials, region and profile come from where all programs for S3 have them (the environment, `~/.aws`, roles of
machines), found and used for signing by botocore; `AWS_ENDPOINT_URL` names another store.
"""

from __future__ import annotations

import errno
import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import md5
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote, urlencode
from xml.etree import ElementTree
from zlib import crc32

from .extra import needed
from .looking import StoredObject
from .parts import PartedPlace
from .remote import refusal
from .sink import UploadSink, part_bytes
from .wire import Answer, StoreRequest, wire

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.session import Session
from .base import PlaceError

__all__ = ["S3Place"]

T = TypeVar("T")


class S3Place(PartedPlace):
    """Buckets of S3."""

    scheme = "s3"

    def __init__(self) -> None:
        super().__init__()
        self._regions: dict[str, str] = {}  # of buckets that have told it

    # -- requests -------------------------------------------------------------------------------------------------

    def request(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> StoreRequest:
        return self.asked(path, method, headers or {})

    def asked(
        self,
        path: str,
        method: str,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        body: bytes | memoryview | None = None,
    ) -> StoreRequest:
        """A request about an object, or about a bucket where the key is empty.

        Raises:
            OSError: the path has no bucket, or there are no credentials.
        """
        bucket, _, key = path.removeprefix("s3://").partition("/")
        if not bucket:
            raise PlaceError(errno.EINVAL, "no bucket is named", "write s3://bucket/key")
        url = self._base(bucket) + quote(key, safe="/-_.~") + (f"?{urlencode(query)}" if query else "")
        return StoreRequest(method, url, headers, body, None if self._is_anonymous else self._signed)

    def _base(self, bucket: str) -> str:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            return f"{endpoint.rstrip('/')}/{bucket}/"
        region = self._regions.get(bucket, self._region)
        if "." in bucket:  # no certificate is for two levels of names
            return f"https://s3.{region}.amazonaws.com/{bucket}/"
        return f"https://{bucket}.s3.{region}.amazonaws.com/"

    @property
    def _is_anonymous(self) -> bool:
        return os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")

    @property
    def _region(self) -> str:
        told = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if not told and not self._is_anonymous:
            told = _configured(lambda session: session.get_config_variable("region"))
        return told or "us-east-1"

    def _signed(self, request: StoreRequest) -> Mapping[str, str]:
        """The headers of a request that prove who asks. The body is not part of that: its checksum is."""
        auth, config = needed("botocore.auth", "s3://"), needed("botocore.config", "s3://")
        made = needed("botocore.awsrequest", "s3://").AWSRequest(request.method, request.url, dict(request.headers))
        made.context["client_config"] = config.Config(s3={"payload_signing_enabled": False})
        region = next((known for base, known in self._bases() if request.url.startswith(base)), self._region)
        auth.S3SigV4Auth(_credentials(), "s3", region).add_auth(made)
        return dict(made.headers.items())

    def _bases(self) -> Iterator[tuple[str, str]]:
        return ((self._base(bucket), region) for bucket, region in list(self._regions.items()))

    def moved(self, path: str, answer: Answer) -> bool:
        """A bucket may be in another region than the one that is set."""
        bucket = path.removeprefix("s3://").partition("/")[0]
        region = answer.headers.get("x-amz-bucket-region")
        if answer.status not in (301, 307, 400) or not region or self._regions.get(bucket, self._region) == region:
            return False
        self._regions[bucket] = region
        return True

    def entries(self, path: str) -> Mapping[str, StoredObject | None]:
        found: dict[str, StoredObject | None] = {}
        for prefix, page in self._pages(path, {"delimiter": "/"}):
            found |= _contents(prefix, page)
            for item in page.iter("CommonPrefixes"):
                found.setdefault(unquote(item.findtext("Prefix", ""))[len(prefix) : -1], None)
        return found

    def objects(self, path: str) -> Mapping[str, StoredObject]:
        found: dict[str, StoredObject] = {}
        for prefix, page in self._pages(path, {}):
            found |= _contents(prefix, page)
        return found

    def _pages(self, path: str, query: Mapping[str, str]) -> Iterator[tuple[str, ElementTree.Element]]:
        """What a bucket says of its objects below a directory, and what the names of all of these begin with."""
        prefix = path.removeprefix("s3://").partition("/")[2]
        prefix = prefix and f"{prefix}/"
        asked = {"list-type": "2", "prefix": prefix, "encoding-type": "url", **query}
        while True:
            page = _tree(self.tell(path, "GET", asked))
            yield prefix, page
            more = page.findtext("NextContinuationToken")
            if not more:
                return
            asked |= {"continuation-token": more}

    def begun_with(self, prefix: str) -> Mapping[str, StoredObject]:
        bucket, _, key = prefix.removeprefix("s3://").partition("/")
        pages = self._pages(prefix, {"prefix": key})
        return {f"s3://{bucket}/{name}": found for _, page in pages for name, found in _contents("", page).items()}

    def tell(
        self,
        path: str,
        method: str,
        query: Mapping[str, str],
        body: bytes | memoryview | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        at_key: bool = False,
        again: bool = False,
        unless: Sequence[int] = (),
    ) -> Answer:
        """The answer to a request about the bucket of a path, or about the object there. What is told `again` may be
        gone because it has been done; statuses of `unless` are answers, too, of an object that is or is not there.

        Raises:
            OSError: it is a refusal.
        """
        about = path if at_key else "s3://" + path.removeprefix("s3://").partition("/")[0]
        told = dict(headers or {})
        if body is not None and _SUM not in told:  # so that the store can tell whether it is what was sent
            told["Content-MD5"] = b64encode(md5(body, usedforsecurity=False).digest()).decode()
        for _ in range(2):
            answer = wire().ask(self.asked(about, method, told, query, body))
            is_damaged = answer.status == 400 and b"<Code>BadDigest</Code>" in answer.body  # on its way
            if not (is_damaged or self.moved(path, answer)):
                break
        is_gone = answer.status == 404 and (again or method == "DELETE")
        is_gone |= answer.status in unless and b"NoSuchBucket" not in answer.body
        is_failure = answer.status < 300 and b"<Error>" in answer.body[:200]  # it may come late, after a good status
        if (answer.status >= 300 and not is_gone) or is_failure:
            raise refusal(answer)
        return answer

    def put(self, path: str, data: bytes | bytearray | memoryview) -> StoredObject:
        view = memoryview(data)
        answer = self.tell(path, "PUT", {}, view, at_key=True)
        return StoredObject(view.nbytes, answer.headers.get("etag", ""))

    def put_version(self, path: str, data: bytes, known: str | None) -> StoredObject | None:
        condition = {"If-None-Match": "*"} if known is None else {"If-Match": known}
        answer = self.tell(path, "PUT", {}, data, headers=condition, at_key=True, unless=(404, 409, 412))
        return StoredObject(len(data), answer.headers.get("etag", "")) if answer.status < 300 else None

    def remove_object(self, path: str) -> None:
        self.tell(path, "DELETE", {}, at_key=True)

    def discard(self, final: str, told: str) -> None:
        if told:
            self.tell(final, "DELETE", {"uploadId": told.rpartition(" ")[2]}, at_key=True)

    def sink(self, final: str, aside: str, size: int) -> UploadSink:
        return _Multipart(self, final, aside, size <= part_bytes(size))


def _contents(prefix: str, page: ElementTree.Element) -> dict[str, StoredObject]:
    """The objects of a page, without those that stand for directories."""
    names = ((unquote(item.findtext("Key", ""))[len(prefix) :], item) for item in page.iter("Contents"))
    return {
        name: StoredObject(int(item.findtext("Size", "0")), item.findtext("ETag", ""))
        for name, item in names
        if name and not name.endswith("/")
    }


def _tree(answer: Answer) -> ElementTree.Element:
    """What an answer says, without the names of its schema."""
    try:
        root = ElementTree.fromstring(answer.body)
    except ElementTree.ParseError:
        raise PlaceError(errno.EIO, "the answer is not of a store of this kind", "check the endpoint") from None
    for item in root.iter():
        item.tag = item.tag.rpartition("}")[2]
    return root


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


@lru_cache(maxsize=4)
def _session(environment: tuple[tuple[str, str], ...]) -> Session:
    """What botocore knows of the user in an environment.

    Raises:
        PlaceError: it is not installed.
    """
    return needed("botocore.session", "s3://").Session()


def _configured(ask: Callable[[Session], T]) -> T:
    """What botocore finds in the environment and in the files of the user.

    Raises:
        PlaceError: these cannot be read, or name a profile that is not there.
    """
    try:
        return ask(_session(_environment()))
    except needed("botocore.exceptions", "s3://").BotoCoreError as error:
        raise PlaceError(errno.EACCES, f"the credentials cannot be read: {type(error).__name__}", _WHO) from None


def _credentials() -> Credentials:
    """Who asks.

    Raises:
        PlaceError: nothing says it.
    """
    found = _configured(lambda session: session.get_credentials())
    if found is None:
        raise PlaceError(errno.EACCES, "there are no credentials for S3", _WHO)
    return found


_WHO = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or sign in; "
    "AWS_SKIP_SIGNATURE=true is for what everybody may read"
)


class _Multipart(UploadSink):
    """A multipart upload, which begins with its first part; a file of one part is written at once. Parts that may
    change are objects of their own until they are copied, at the store, into the upload. Other processes may send parts
    to the same upload.

    Parts are sent with a CRC-32, which takes a sixth of the time of an MD5, if the store says, when the upload begins,
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
                wanted = {_SUMS: "CRC32"}
                answer = self._place.tell(
                    self._final, "POST", {"uploads": ""}, headers=wanted, at_key=True, unless=(400, 501)
                )
                if answer.status >= 300:  # some stores refuse what they do not know
                    answer = self._place.tell(self._final, "POST", {"uploads": ""}, at_key=True)
                self._has_sums = answer.headers.get(_SUMS, "").upper() == "CRC32"
                self._upload = _tree(answer).findtext("UploadId", "")
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
            headers = {_SUM: total}
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
        page = _tree(answer)
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
            page = _tree(answer)
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


def _part_of(item: ElementTree.Element) -> tuple[str, str]:
    """What a store says of a part: what it calls it, and its CRC-32."""
    return item.findtext("ETag", ""), item.findtext("ChecksumCRC32", "")


_SUMS, _SUM = "x-amz-checksum-algorithm", "x-amz-checksum-crc32"
_SCHEMA = "http://s3.amazonaws.com/doc/2006-03-01/"
