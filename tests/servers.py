"""Servers that places are tested with: one of files, and a proxy that spoils the answers of another."""

from __future__ import annotations

import http.client
import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import md5, sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

SECRET = "AFTERTHEFACTSECRET"  # that no message, log or receipt may have


class Fault(NamedTuple):
    """What goes wrong with one answer: nothing is said for so many seconds, another status is given, with a
    body, the connection is lost before it, or after so many bytes of it, or another version is told."""

    delay: float = 0
    status: int = 0
    is_lost: bool = False
    short: int | None = None
    etag: str | None = None
    body: bytes = b""


class Asked(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Files(_Server):
    """A web server of the files in `files`, by path. `asked` has what was asked. `pages` are paths that it answers in
    its own way, by a function of the request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.pages: dict[str, Callable[[Asked], tuple[int, Mapping[str, str], bytes]]] = {}
        self.asked: list[Asked] = []
        self.gives_ranges = True
        super().__init__(("127.0.0.1", 0), _FilesHandler)


def etag_of(content: bytes) -> str:
    return f'"{sha1(content).hexdigest()}"'


class _FilesHandler(_Handler):
    server: Files

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = Asked(self.command, self.path, {name.title(): value for name, value in self.headers.items()}, b"")
        self.server.asked.append(asked)
        if path in self.server.pages:
            self.answer(*self.server.pages[path](asked))
            return
        content = self.server.files.get(path)
        if content is None:
            self.answer(404, {}, b"no such page")
            return
        self.answer(*ranged(asked, content, {"ETag": etag_of(content)}, self.server.gives_ranges))

    do_HEAD = do_GET


def ranged(
    asked: Asked, content: bytes, headers: Mapping[str, str], gives_ranges: bool = True
) -> tuple[int, Mapping[str, str], bytes]:
    """The answer to a request for some bytes."""
    wanted = asked.headers.get("If-Match")
    if wanted is not None and wanted != headers.get("ETag"):
        return 412, {}, b""
    told = asked.headers.get("Range")
    if told is None or not gives_ranges or asked.method == "HEAD":
        return 200, headers, content
    first, _, last = told.removeprefix("bytes=").partition("-")
    if int(first) >= len(content):
        return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
    part = content[int(first) : int(last) + 1]
    told = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
    return 206, {**headers, "Content-Range": told}, part


class Proxy(_Server):
    """Hands on what is asked to another server. `spoil` says what goes wrong with a request, if anything."""

    def __init__(self, origin: str) -> None:
        self.origin = urlsplit(origin)
        self.spoil: Callable[[Asked], Fault | None] = lambda asked: None
        self.asked: list[Asked] = []
        super().__init__(("127.0.0.1", 0), _ProxyHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # connections are lost on purpose


class _ProxyHandler(_Handler):
    server: Proxy

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # who sent it is gone
            self.close_connection = True
            return
        asked = Asked(self.command, self.path, dict(self.headers), body)
        self.server.asked.append(asked)
        fault = self.server.spoil(asked) or Fault()
        time.sleep(fault.delay)
        if fault.is_lost:
            self.connection.close()
            self.close_connection = True
            return
        if fault.status:
            self.answer(fault.status, {}, fault.body)
            return
        origin = http.client.HTTPConnection(self.server.origin.hostname or "", self.server.origin.port, timeout=30)
        origin.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Connection"})
        found = origin.getresponse()
        content = found.read()
        headers = {k: v for k, v in found.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
        origin.close()
        if self.command != "HEAD":
            headers["Content-Length"] = str(len(content))
        if fault.etag is not None:
            headers["ETag"] = fault.etag
        if fault.short is not None:
            content = content[: fault.short]
            self.close_connection = True
        self.answer(found.status, headers, content)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET


class Generations(_Server):
    """Objects as Google Cloud Storage has them, with generations and conditions on them, by bucket and name."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _GenerationsHandler)


class _GenerationsHandler(_Handler):
    server: Generations

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        bucket, _, name = parts.path.partition("/b/")[2].partition("/o")
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        key = f"{bucket}/{unquote(name[1:]) or query.get('name', '')}"
        with self.server.lock:
            there = self.server.objects.get(key)
            if self.command == "POST":
                if int(query.get("ifGenerationMatch", there[1] if there else 0)) != (there[1] if there else 0):
                    self.answer(412, {})
                    return
                there = self.server.objects[key] = body, time.time_ns()
                told = {"size": len(body), "generation": there[1], "md5Hash": b64encode(md5(body).digest()).decode()}
                self.answer(200, {}, json.dumps(told).encode())
                return
            if self.command == "DELETE":
                self.server.objects.pop(key, None)
        if there is None:
            self.answer(404, {})
        elif query.get("alt") == "media":
            asked = Asked(self.command, self.path, {k.title(): v for k, v in self.headers.items()}, b"")
            self.answer(*ranged(asked, there[0], {"X-Goog-Generation": str(there[1])}))
        else:
            self.answer(200, {}, json.dumps({"size": len(there[0]), "generation": there[1]}).encode())

    do_HEAD = do_POST = do_DELETE = do_GET


def objects(client: Any) -> dict[str, bytes]:
    """What is in the bucket, by key."""
    found = client.list_objects_v2(Bucket="bucket").get("Contents", ())
    return {item["Key"]: client.get_object(Bucket="bucket", Key=item["Key"])["Body"].read() for item in found}
