"""`hf://org/name@revision`: repositories of models at a hub, for reading.

Two parts are a repository, `@` and a branch, tag or commit say which state of it, and the rest is a file or directory
in it; a slash in the name of a branch is `%2F`. `HF_ENDPOINT` names another hub, `HF_TOKEN` (or the token that `hf auth
login` has kept) says who asks. What changes with a file is the hash that the hub has of it: a branch may move on if the
files that are read stay the same.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from .base import PlaceError
from .looking import StoredObject
from .refusals import refusal
from .remote import RemotePlace
from .wire import Answer, StoreRequest, wire

__all__ = ["HubPlace"]

_REPOSITORY = re.compile(
    r"(?P<name>[^/@]+/[^/@]+)(@(?P<revision>refs/(pr|convert)/[^/]+|[^/]+))?(/(?P<file>.*))?", re.DOTALL
)
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')


class HubPlace(RemotePlace):
    """Repositories of a hub. Large files come from other servers, to which the hub sends those who ask."""

    scheme = "hf"

    def __init__(self) -> None:
        self._elsewhere: dict[str, str] = {}  # signed addresses, which end after a while
        # what the hub said of a file, and the other server of its bytes
        self._versions: dict[str, tuple[str, str]] = {}
        self._own = threading.local()  # what the hub said when it sent this thread elsewhere

    def _parts(self, path: str) -> tuple[str, str, str]:
        """Repository, revision and file."""
        match = _REPOSITORY.fullmatch(path.removeprefix("hf://"))
        if match is None:
            raise PlaceError(errno.EINVAL, "no repository is named", "write hf://org/name, or hf://org/name@revision")
        return match["name"], quote(unquote(match["revision"] or "main"), safe=""), match["file"] or ""

    def request(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> StoreRequest:
        told = dict(headers or {})
        elsewhere = self._elsewhere.get(path)
        if elsewhere is not None:
            if urlsplit(elsewhere)[:2] == urlsplit(_endpoint())[:2]:  # the hub itself, and no less safely
                told |= _token()
            return StoreRequest(method, elsewhere, told)
        return self.fresh(path, method, told)

    def fresh(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> StoreRequest:
        name, revision, file = self._parts(path)
        url = f"{_endpoint()}/{name}/resolve/{revision}/{quote(file)}"
        return StoreRequest(method, url, dict(headers or {}) | _token())

    def condition(self, found: StoredObject) -> Mapping[str, str]:
        return {}  # what the hub calls a version is not what those servers call it

    def moved(self, path: str, answer: Answer) -> bool:
        known = self._elsewhere.pop(path, None)
        target = answer.headers.get("location")
        if answer.status in (301, 302, 303, 307, 308) and target:
            self._elsewhere[path] = urljoin(self.request(path).url, target)
            if told := _plain(answer.headers.get("x-linked-etag", "")):
                self._own.told = told
                if told != self._told(path):
                    self._versions[path] = told, ""
            return True
        return known is not None and answer.status in (401, 403)  # the address has ended

    def _told(self, path: str) -> str:
        return self._versions.get(path, ("", ""))[0]

    def version(self, headers: Mapping[str, str]) -> str:
        return _plain(headers.get("x-linked-etag") or headers.get("etag", ""))

    def is_of(self, path: str, request: StoreRequest, answer: Answer, found: StoredObject) -> bool:
        here = self.version(answer.headers)
        if request.url == self.fresh(path).url or not self._told(path):
            return here == found.version
        told, known = self._versions[path]
        self._versions[path] = told, known or here
        return told == found.version and here == (known or here)

    def find(self, path: str) -> StoredObject | None:
        ask = self.fresh
        for _ in range(5):
            answer = wire().ask(ask(path, "HEAD"))
            ask = self.request
            if self._is_absent(answer):
                return None
            size = answer.headers.get("x-linked-size", "")
            if answer.status in (302, 307) and size.isdecimal() and self.version(answer.headers):
                return StoredObject(int(size), self.version(answer.headers))
            if answer.status < 300:
                return self.found(answer)
            if not self.moved(path, answer):
                break
        raise _refusal(answer)

    def begin(self, path: str) -> tuple[StoredObject, bytes] | None:
        self._own.told = ""
        begun = super().begin(path)
        if begun is None or not self._own.told:
            return begun
        found, data = begun
        self._versions[path] = self._own.told, found.version  # that of the server to which the hub has sent us
        return StoredObject(found.size, self._own.told), data

    def absent(self, path: str, answer: Answer) -> bool:
        return self._is_absent(answer)

    def refusal(self, answer: Answer) -> OSError:
        return _refusal(answer)

    def _is_absent(self, answer: Answer) -> bool:
        return answer.status == 404 and answer.headers.get("x-error-code", "") in ("EntryNotFound", "")

    def is_root(self, path: str) -> bool:
        return not self._parts(path)[2]

    def entries(self, path: str) -> Mapping[str, StoredObject | None]:
        return self._tree(path, "")

    def objects(self, path: str) -> Mapping[str, StoredObject]:
        return {name: found for name, found in self._tree(path, "?recursive=true").items() if found is not None}

    def _tree(self, path: str, query: str) -> Mapping[str, StoredObject | None]:
        """What is in a directory, by its name there."""
        name, revision, directory = self._parts(path)
        url = f"{_endpoint()}/api/models/{name}/tree/{revision}{f'/{quote(directory)}' if directory else ''}{query}"
        skip = len(directory) + 1 if directory else 0
        found: dict[str, StoredObject | None] = {}
        while url:
            answer = wire().ask(StoreRequest("GET", url, _token()))
            if self._is_absent(answer) and directory:
                return {}
            if answer.status >= 300:
                raise _refusal(answer)
            for item in _rows(answer):
                file = str(item.get("path", ""))[skip:]
                large = item.get("lfs")
                version = large.get("oid") if isinstance(large, dict) else item.get("oid")
                is_file = item.get("type") == "file"
                found[file] = StoredObject(int(str(item.get("size", 0))), str(version)) if is_file else None
            more = _NEXT.search(answer.headers.get("link", ""))
            url = urljoin(url, more[1]) if more else ""
        return found


def _rows(answer: Answer) -> list[dict[str, object]]:
    try:
        rows = json.loads(answer.body)
    except ValueError:
        rows = None
    if not isinstance(rows, list):
        raise PlaceError(errno.EIO, "the answer is not one of a hub", "check HF_ENDPOINT")
    return [row for row in rows if isinstance(row, dict)]


def _refusal(answer: Answer) -> OSError:
    """What a hub means by an answer that is no success."""
    code = answer.headers.get("x-error-code", "")
    if code == "RepoNotFound" or answer.status == 401:
        return PlaceError(
            errno.ENOENT, "there is no such repository, or it is not for everybody", "check its name, or set HF_TOKEN"
        )
    if code == "RevisionNotFound":
        return PlaceError(errno.ENOENT, "the repository has no such revision", "check what stands after the @")
    if code == "GatedRepo" or answer.status == 403:
        return PlaceError(
            errno.EACCES, "the repository is not for everybody", "ask for access on its page, and set HF_TOKEN"
        )
    return refusal(answer)


def _plain(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _token() -> dict[str, str]:
    """What says who asks, where anything does."""
    token = os.environ.get("HF_TOKEN", "")
    if not token:
        home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
        try:
            token = Path(os.environ.get("HF_TOKEN_PATH") or Path(home, "token")).read_text().strip()
        except OSError:
            return {}
    return {"Authorization": f"Bearer {token}"}
