"""`s3://bucket/key`: S3 and all stores that speak its language.

Credentials, region and profile come from where all programs for S3 have them (the environment, `~/.aws`, roles of
machines), found and used for signing by botocore; `AWS_ENDPOINT_URL` names another store.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode
from xml.etree import ElementTree

from .extra import needed
from .looking import Found
from .remote import RemotePlace, refusal
from .wire import Answer, Request, wire

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.session import Session
from .base import PlaceError

__all__ = ["S3Place"]


class S3Place(RemotePlace):
    """Buckets of S3."""

    scheme = "s3"

    def __init__(self) -> None:
        self._regions: dict[str, str] = {}  # of buckets that have told it

    # -- requests -------------------------------------------------------------------------------------------------

    def request(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Request:
        return self.asked(path, method, headers or {})

    def asked(
        self,
        path: str,
        method: str,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None = None,
        body: bytes | memoryview | None = None,
    ) -> Request:
        """A request about an object, or about a bucket where the key is empty.

        Raises:
            OSError: the path has no bucket, or there are no credentials.
        """
        bucket, _, key = path.removeprefix("s3://").partition("/")
        if not bucket:
            raise PlaceError(errno.EINVAL, "no bucket is named", "write s3://bucket/key")
        url = self._base(bucket) + quote(key, safe="/-_.~") + (f"?{urlencode(query)}" if query else "")
        return Request(method, url, headers, body, None if self._is_anonymous else self._signed)

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
            told = _session(_environment()).get_config_variable("region")
        return told or "us-east-1"

    def _signed(self, request: Request) -> Mapping[str, str]:
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

    def entries(self, path: str) -> Mapping[str, Found | None]:
        prefix = path.removeprefix("s3://").partition("/")[2]
        prefix = prefix and f"{prefix}/"
        found: dict[str, Found | None] = {}
        query = {"list-type": "2", "delimiter": "/", "prefix": prefix, "encoding-type": "url"}
        while True:
            answer = self.tell(path, "GET", query)
            page = _tree(answer)
            for item in page.iter("Contents"):
                name = unquote(item.findtext("Key", ""))[len(prefix) :]
                if name:
                    found[name] = Found(int(item.findtext("Size", "0")), item.findtext("ETag", ""))
            for item in page.iter("CommonPrefixes"):
                found.setdefault(unquote(item.findtext("Prefix", ""))[len(prefix) : -1], None)
            more = page.findtext("NextContinuationToken")
            if not more:
                return found
            query |= {"continuation-token": more}

    def tell(self, path: str, method: str, query: Mapping[str, str]) -> Answer:
        """The answer to a request about the bucket of a path.

        Raises:
            OSError: it is a refusal.
        """
        bucket = "s3://" + path.removeprefix("s3://").partition("/")[0]
        answer = wire().ask(self.asked(bucket, method, {}, query))
        if self.moved(path, answer):
            answer = wire().ask(self.asked(bucket, method, {}, query))
        if answer.status >= 300:
            raise refusal(answer)
        return answer


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


def _credentials() -> Credentials:
    """Who asks.

    Raises:
        PlaceError: nothing says it.
    """
    try:
        found = _session(_environment()).get_credentials()
    except needed("botocore.exceptions", "s3://").BotoCoreError as error:
        raise PlaceError(errno.EACCES, f"the credentials cannot be read: {type(error).__name__}", _WHO) from None
    if found is None:
        raise PlaceError(errno.EACCES, "there are no credentials for S3", _WHO)
    return found


_WHO = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or sign in; "
    "AWS_SKIP_SIGNATURE=true is for what everybody may read"
)
