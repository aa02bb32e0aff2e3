"""`gs://bucket/name`: Google Cloud Storage.

Credentials come from where all programs for it have them (`GOOGLE_APPLICATION_CREDENTIALS`, `gcloud auth
application-default login`, the metadata server of a machine), found and renewed by google-auth;
`STORAGE_EMULATOR_HOST` names a server for tests, which is asked without. The parts of a file are objects until they are
composed, at the store, to one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import md5
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from .base import PlaceError
from .extra import needed
from .looking import StoredObject
from .parts import PartedPlace
from .refusals import refusal
from .sink import UploadSink, part_bytes
from .wire import Answer, StoreRequest, wire

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

__all__ = ["GsPlace"]

_AT_ONCE = 32  # objects that are composed to one
_BYTES = "application/octet-stream"
# what a process puts aside of a file, behind the name that all have in common
_LEFT = re.compile(r"(\.of-[0-9a-f]+)?\.(part-0-(?P<number>\d{5,})|part-\d+-\d+|aside-\d+)")
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class GsPlace(PartedPlace):
    """Buckets of Google Cloud Storage."""

    scheme = "gs"

    def request(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> StoreRequest:
        bucket, key = _parts(path)
        url = f"{_base()}/storage/v1/b/{bucket}/o/{quote(key, safe='')}?alt=media"
        return StoreRequest(method, url, headers or {}, None, _signed)

    def version(self, headers: Mapping[str, str]) -> str:
        return headers.get("x-goog-generation", "")

    def condition(self, found: StoredObject) -> Mapping[str, str]:
        return {}

    def is_of(self, path: str, request: StoreRequest, answer: Answer, found: StoredObject) -> bool:
        told = self.version(answer.headers)  # no emulator says it
        return told == found.version or (not told and _is_emulated())

    def found(self, answer: Answer) -> StoredObject:
        if self.version(answer.headers) or not _is_emulated():
            return super().found(answer)
        size = answer.headers.get("content-range", "").rpartition("/")[2]
        return StoredObject(int(size or answer.headers.get("content-length", "0")), "")

    def begin(self, path: str) -> tuple[StoredObject, bytes] | None:
        begun = super().begin(path)
        if begun is None or begun[0].version:
            return begun
        found = self.find(path)
        return None if found is None else (found, begun[1])

    def find(self, path: str) -> StoredObject | None:
        bucket, key = _parts(path)
        answer = wire().ask(_json("GET", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}"))
        if answer.status == 404:
            return None
        return _found(_told(answer))

    def entries(self, path: str) -> Mapping[str, StoredObject | None]:
        found: dict[str, StoredObject | None] = {}
        for prefix, page in self._pages(path, {"delimiter": "/"}):
            found |= _contents(prefix, page)
            prefixes = page.get("prefixes")
            for name in prefixes if isinstance(prefixes, list) else ():
                found.setdefault(str(name)[len(prefix) :].rstrip("/"), None)
        return found

    def objects(self, path: str) -> Mapping[str, StoredObject]:
        found: dict[str, StoredObject] = {}
        for prefix, page in self._pages(path, {}):
            found |= _contents(prefix, page)
        return found

    def _pages(self, path: str, query: Mapping[str, str]) -> Iterator[tuple[str, dict[str, object]]]:
        """What a bucket says of its objects below a directory, and what the names of all of these begin with."""
        bucket, prefix = _parts(path)
        prefix = prefix and f"{prefix}/"
        asked = {"prefix": prefix, **query}
        while True:
            answer = wire().ask(_json("GET", f"/storage/v1/b/{bucket}/o?{urlencode(asked)}"))
            if answer.status == 404:
                raise PlaceError(errno.ENOENT, "there is no such bucket", "check its name")
            page = _told(answer)
            yield prefix, page
            if not (more := page.get("nextPageToken")):
                return
            asked |= {"pageToken": str(more)}

    def begun_with(self, prefix: str) -> Mapping[str, StoredObject]:
        bucket, name = _parts(prefix)
        pages = self._pages(prefix, {"prefix": name})
        items = (item for _, page in pages for item in _rows(page.get("items")))
        return {f"gs://{bucket}/{item.get('name', '')}": _found(item) for item in items}

    def put(self, path: str, data: bytes | bytearray | memoryview) -> StoredObject:
        bucket, key = _parts(path)
        query = urlencode({"uploadType": "media", "name": key})
        view = memoryview(data)
        told = _told(wire().ask(_json("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", view)))
        if told.get("md5Hash") != b64encode(md5(view, usedforsecurity=False).digest()).decode():
            self.remove_object(path)
            raise PlaceError(errno.EIO, "the store has other bytes than those that were sent", "try again")
        return _found(told)

    def put_version(self, path: str, data: bytes, known: str | None) -> StoredObject | None:
        bucket, key = _parts(path)
        query = urlencode({"uploadType": "media", "name": key, "ifGenerationMatch": known or 0})
        answer = wire().ask(_json("POST", f"/upload/storage/v1/b/{bucket}/o?{query}", data))
        return None if answer.status in (409, 412) else _found(_told(answer))

    def remove_object(self, path: str) -> None:
        bucket, key = _parts(path)
        answer = wire().ask(_json("DELETE", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}"))
        if answer.status >= 300 and answer.status != 404:
            raise refusal(answer)

    def compose(self, names: Sequence[str], path: str) -> StoredObject:
        """Let an object be what others are together."""
        bucket, key = _parts(path)
        sources = [{"name": _parts(name)[1]} for name in names]
        body = {"sourceObjects": sources, "destination": {"contentType": "application/octet-stream"}}
        address = f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}/compose"
        return _found(_told(wire().ask(_json("POST", address, json.dumps(body).encode(), "application/json"))))

    def sink(self, final: str, aside: str, size: int) -> UploadSink:
        return _Composed(self, final, aside, size)


class _Composed(UploadSink):
    """Parts that are objects until all of them are there, whichever process made them; a file of one part is written at
    once."""

    def __init__(self, place: GsPlace, final: str, aside: str, size: int) -> None:
        super().__init__(place)
        self._place, self._final, self._aside, self._size = place, final, aside, size
        self._parts: dict[int, tuple[str, StoredObject]] = {}
        self._single: StoredObject | None = None

    def begin(self) -> str:
        return self._aside

    def join(self, told: str) -> None:
        self._aside = f"{told}.of-{secrets.token_hex(4)}"  # what begins alike belongs together

    def _name(self, number: int, level: int = 0) -> str:
        return f"{self._aside}.part-{level}-{number:05d}"

    def send(self, number: int, data: bytearray) -> None:
        if self._size <= part_bytes(self._size):
            self._single = self._place.put(self._final, data)
        else:
            self._put(number, self._name(number), data)

    def put_aside(self, number: int, data: bytearray) -> None:
        self._put(number, f"{self._aside}.aside-{number:05d}", data)

    def _put(self, number: int, name: str, data: bytearray) -> None:
        with self._lock:
            self._made.add(name)
        self._parts[number] = name, self._place.put(name, data)

    def fetch(self, number: int, offset: int, target: memoryview) -> None:
        name, found = self._parts[number]
        self._place.fetch(name, found, offset, [target])

    def adopt(self, number: int, size: int) -> None:
        """Let it have the name of one that is whole, which a run that goes on knows; alone it is composed anyway."""
        if self._size > part_bytes(self._size):
            name = self._name(number)
            with self._lock:
                self._made.add(name)
            self._parts[number] = name, self._place.compose([self._parts[number][0]], name)

    def hand_in(self, number: int, *, is_sent: bool) -> Sequence[str]:
        name, found = self._parts[number]
        aside = f"{self._aside}.aside-{number:05d}"
        if is_sent and aside in self._made:  # before it was whole
            self._place.remove_object(aside)
            self._made.remove(aside)
        return [name, str(found.size), found.version]

    def take_in(self, number: int, told: Sequence[str], *, is_sent: bool) -> None:
        self._parts[number] = self.foreign(told)

    def complete(self) -> StoredObject:
        found = self._single or self._compose()
        if found.size != self._size:
            raise PlaceError(errno.EIO, f"the store has {found.size} bytes of {self._size}", "try again")
        self.abort()
        return found

    def _compose(self) -> StoredObject:
        names, level = [name for _, (name, _) in sorted(self._parts.items())], 0
        while len(names) > _AT_ONCE:
            level += 1
            groups = [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]
            names = [self._name(number, level) for number in range(len(groups))]
            self._made.update(names)
            for group, name in zip(groups, names, strict=True):
                self._place.compose(group, name)
        return self._place.compose(names, self._final)

    def resume(self, told: str) -> dict[int, int]:
        """Of all processes of that run; what else they have left of the file goes when it is complete."""
        there = self._place.begun_with(f"{self._aside}.")
        for name, found in there.items():
            match = _LEFT.fullmatch(name.removeprefix(self._aside))
            if match is not None:
                self._made.add(name)
                if match["number"] is not None:
                    self._parts[int(match["number"])] = name, found
        return {number: found.size for number, (_, found) in self._parts.items()}

    def keep(self) -> None:
        for name in sorted(self._made):
            if ".part-0-" not in name:
                self._place.remove_object(name)

    def abort(self) -> None:
        for name in sorted(self._made):
            self._place.remove_object(name)


def _parts(path: str) -> tuple[str, str]:
    """Bucket and name of an object."""
    bucket, _, key = path.removeprefix("gs://").partition("/")
    if not bucket:
        raise PlaceError(errno.EINVAL, "no bucket is named", "write gs://bucket/name")
    return bucket, key


def _is_emulated() -> bool:
    return bool(os.environ.get("STORAGE_EMULATOR_HOST"))


def _base() -> str:
    host = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    return (host if "://" in host else f"http://{host}").rstrip("/")


def _json(method: str, address: str, body: bytes | memoryview | None = None, kind: str = _BYTES) -> StoreRequest:
    headers = {} if body is None else {"Content-Type": kind}
    return StoreRequest(method, _base() + address, headers, body, _signed)


def _told(answer: Answer) -> dict[str, object]:
    """What the store says.

    Raises:
        OSError: it refuses, or says nothing that can be understood.
    """
    if answer.status >= 300:
        raise refusal(answer)
    try:
        told = json.loads(answer.body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise PlaceError(errno.EIO, "the answer is not of a store of this kind", "check STORAGE_EMULATOR_HOST")
    return told


def _rows(value: object) -> list[dict[str, object]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _contents(prefix: str, page: Mapping[str, object]) -> dict[str, StoredObject]:
    """The objects of a page, without those that stand for directories."""
    rows = [(str(item.get("name", ""))[len(prefix) :], item) for item in _rows(page.get("items"))]
    return {name: _found(item) for name, item in rows if name and not name.endswith("/")}


def _found(item: Mapping[str, object]) -> StoredObject:
    return StoredObject(int(str(item.get("size", 0))), str(item.get("generation", "")))


_renewing = threading.Lock()


def _signed(request: StoreRequest) -> Mapping[str, str]:
    """What proves who asks.

    Raises:
        PlaceError: nothing does.
    """
    if _is_emulated() or os.environ.get("GOOGLE_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        return {}
    exceptions = needed("google.auth.exceptions", "gs://")
    try:
        with _renewing:
            credentials = _credentials()
            if not credentials.valid:
                credentials.refresh(needed("google.auth.transport.requests", "gs://").Request())
        return {"Authorization": f"Bearer {credentials.token}"}
    except exceptions.GoogleAuthError as error:
        raise PlaceError(
            errno.EACCES,
            f"there are no credentials for Google that can be used ({type(error).__name__})",
            "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login; "
            "GOOGLE_SKIP_SIGNATURE=true is for what everybody may read",
        ) from None


@cache
def _credentials() -> Credentials:
    found, _ = needed("google.auth", "gs://").default(scopes=[_SCOPE])
    return found
