"""`https://` and `http://`: files of web servers, for reading.

Web servers do not say what a directory holds. So the names that checkpoints usually have are asked for, and what an
index names; a file with another name must be named itself. Passwords and signed queries have no place in a path, which
goes into plans, messages and receipts: a path with one is refused before anybody repeats it.
"""

from __future__ import annotations

import json
import netrc
from base64 import b64encode
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import PurePosixPath
from urllib.parse import quote, urljoin, urlsplit

from ..proofs import PROOFS
from .looking import StoredObject
from .remote import RemotePlace, submit
from .wire import Answer, StoreRequest

__all__ = ["HttpPlace", "HttpsPlace"]

_INDICES = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "flax_model.msgpack")
_NAMES = (
    *(f"{name}.index.json" for name in _INDICES),
    *_INDICES,
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "preprocessor_config.json",
    "README.md",
    "LICENSE",
    *PROOFS,
    ".metadata",
    "_METADATA",
    "_CHECKPOINT_METADATA",
    "_sharding",
    "_strings.json",
    "commit_success.txt",
    "manifest.ocdbt",
    "process_0",
)
_FILES = frozenset(
    {".json", ".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".npy", ".txt", ".md", ".model", ".yaml", ".yml"}
)


class _Web(RemotePlace):
    """Either of them."""

    lists = False

    def __init__(self) -> None:
        self._elsewhere: dict[str, str] = {}  # where servers send those who ask for a path

    def request(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> StoreRequest:
        url = self._elsewhere.get(path) or quote(path, safe=":/%~@!$&'()*+,;=")
        told = dict(headers or {})
        if urlsplit(url).hostname == urlsplit(path).hostname:
            told |= _login(urlsplit(path).hostname or "")
        return StoreRequest(method, url, told)

    def is_exact(self, found: StoredObject) -> bool:
        return found.version.startswith('"')  # no time, and no tag that says of itself that it is weak

    def moved(self, path: str, answer: Answer) -> bool:
        known = self._elsewhere.pop(path, None)
        if answer.status in (301, 302, 303, 307, 308) and answer.headers.get("location"):
            self._elsewhere[path] = urljoin(known or path, answer.headers["location"])
            return True
        return known is not None and answer.status in (401, 403)  # where it was then is not where it is now

    def absent(self, path: str, answer: Answer) -> bool:
        to_itself = urlsplit(answer.headers.get("location", "")).path == urlsplit(path).path + "/"
        is_page = answer.status < 300 and answer.headers.get("content-type", "").startswith("text/html")
        return answer.status in (404, 410) or to_itself or (is_page and not path.endswith((".html", ".htm")))

    def entries(self, path: str) -> Mapping[str, StoredObject | None]:
        """What there is of the usual names, and of those that an index has."""
        if PurePosixPath(path).suffix in _FILES:
            return {}
        found = self._there(path, _NAMES)
        for name in _INDICES:
            if f"{name}.index.json" in found:
                found |= self._there(path, list(dict.fromkeys(self._named(f"{path}/{name}.index.json"))))
        return found

    def _there(self, path: str, names: tuple[str, ...] | list[str]) -> dict[str, StoredObject | None]:
        found = submit(self.find, [f"{path}/{name}" for name in names])
        return {name: there for name, there in zip(names, found, strict=True) if there is not None}

    def _named(self, index: str) -> Iterator[str]:
        """The files that an index names, as far as it is one: who reads it says what is wrong with it."""
        found = self.find(index)
        if found is not None and found.size < 1 << 26:
            text = bytearray(found.size)
            self.read(index, found, 0, [memoryview(text)])
            try:
                table = json.loads(text)["weight_map"]
                yield from (name for name in table.values() if isinstance(name, str) and name and "/" not in name)
            except (ValueError, KeyError, TypeError, AttributeError):
                return


class HttpsPlace(_Web):
    """Files of web servers."""

    scheme = "https"


class HttpPlace(_Web):
    """Those that encrypt nothing."""

    scheme = "http"


@cache
def _login(host: str) -> dict[str, str]:
    """What proves to a server who asks: an entry of the user's `.netrc`."""
    try:
        found = netrc.netrc().authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return {}
    return {"Authorization": "Basic " + b64encode(f"{found[0]}:{found[2]}".encode()).decode()} if found else {}
