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

from .extra import needed
from .looking import StoredObject
from .multipart import CHECKSUM, Multipart, tree_of
from .parts import PartedPlace
from .refusals import refusal
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
            page = tree_of(self.tell(path, "GET", asked))
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
        if body is not None and CHECKSUM not in told:  # so that the store can tell whether it is what was sent
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
        return Multipart(self, final, aside, size <= part_bytes(size))


def _contents(prefix: str, page: ElementTree.Element) -> dict[str, StoredObject]:
    """The objects of a page, without those that stand for directories."""
    names = ((unquote(item.findtext("Key", ""))[len(prefix) :], item) for item in page.iter("Contents"))
    return {
        name: StoredObject(int(item.findtext("Size", "0")), item.findtext("ETag", ""))
        for name, item in names
        if name and not name.endswith("/")
    }


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
