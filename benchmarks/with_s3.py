"""Runs a command with a store that speaks S3 beside it: a process of its own, started before and ended after.

    with_s3.py [--latency S] [--failing SHARE] [--folder DIR] -- COMMAND ...

The bucket is a folder: `s3://bucket/base/x` is the file `base/x` below it. Every request waits for the latency before
it is answered, and of those that ask for bytes or send them the share is answered by 503 instead, by turns. Only what
transfers need is there (ranges, multipart uploads, lists), and as little is done for each byte as can be: bodies go
between sockets and files in the kernel or by one buffer. It takes signatures and checksums, and verifies none.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

PART = 1 << 20  # bytes that are read of a socket at once


class Store(ThreadingHTTPServer):
    """The server; `uploads` has the parts of every upload: where they are and how long."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path, latency: float, failing: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.latency, self.failing = folder, latency, failing
        self.uploads: dict[str, dict[int, Path]] = {}
        self.numbers = count(1)
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who goes away in the middle of a request may: what is printed here would be among what the command prints."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def etag(path: Path) -> str:
    """What changes with a file."""
    status = path.stat()
    return f'"{status.st_mtime_ns:x}-{status.st_size:x}"'


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Store

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def asked(self) -> tuple[Path, dict[str, str]]:
        """The file that is meant, and the query."""
        parts = urlsplit(self.path)
        key = unquote(parts.path).lstrip("/").partition("/")[2]
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return self.server.folder / key, query

    def fails(self) -> bool:
        """Whether it is the turn of this request to fail, which is then answered; all of them wait."""
        time.sleep(self.server.latency)
        failing = self.server.failing
        if not failing or next(self.server.numbers) % round(1 / failing):
            return False
        self.store(None)
        self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        return True

    def store(self, path: Path | None) -> None:
        """Take the body of a request into a file, or nowhere."""
        left = int(self.headers.get("Content-Length") or 0)
        buffer = memoryview(bytearray(min(left, PART)))
        descriptor = os.open(os.devnull if path is None else path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            while left:
                got = self.rfile.readinto(buffer[:left])
                if not got:
                    raise ConnectionError("the body is too short")
                os.write(descriptor, buffer[:got])
                left -= got
        finally:
            os.close(descriptor)

    def do_GET(self) -> None:
        path, query = self.asked()
        if "list-type" in query:
            time.sleep(self.server.latency)
            self.listed(query["prefix"], "delimiter" in query)
            return
        if not path.is_file():
            time.sleep(self.server.latency)
            self.answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        if self.command == "GET" and self.fails():
            return
        size = path.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end = (int(found[1]), min(int(found[2] or size) + 1, size)) if found else (0, size)
        told = {"Content-Length": str(end - begin), "ETag": etag(path)}
        if found:
            told["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self.answer(206 if found else 200, told)
        if self.command == "GET":
            with path.open("rb") as file:
                while begin < end:
                    begin += os.sendfile(self.connection.fileno(), file.fileno(), begin, end - begin)

    do_HEAD = do_GET

    def listed(self, prefix: str, is_flat: bool) -> None:
        """The objects below a folder, or with `is_flat` those in it."""
        root = self.server.folder
        rows = []
        for path in sorted((root / prefix).glob("*" if is_flat else "**/*")):
            key = quote(str(path.relative_to(root)))
            if path.is_file():
                facts = f"<Size>{path.stat().st_size}</Size><ETag>{etag(path)}</ETag>"
                rows.append(f"<Contents><Key>{key}</Key>{facts}</Contents>")
            elif is_flat:
                rows.append(f"<CommonPrefixes><Prefix>{key}/</Prefix></CommonPrefixes>")
        self.answer(200, {}, f"<ListBucketResult>{''.join(rows)}</ListBucketResult>".encode())

    def do_PUT(self) -> None:
        if self.fails():
            return
        path, query = self.asked()
        if upload := query.get("uploadId"):
            number = int(query["partNumber"])
            path = self.server.folder / f".{upload}.{number}"
            self.server.uploads[upload][number] = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.store(path)
        self.answer(200, {"ETag": etag(path)})

    def do_POST(self) -> None:
        path, query = self.asked()
        time.sleep(self.server.latency)
        self.store(None)
        if "uploads" in query:
            upload = f"u{next(self.server.numbers)}"
            self.server.uploads[upload] = {}
            told = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            sums = "x-amz-checksum-algorithm"
            self.answer(200, {sums: self.headers[sums]} if sums in self.headers else {}, told.encode())
            return
        first, *others = (part for _, part in sorted(self.server.uploads[query["uploadId"]].items()))
        path.parent.mkdir(parents=True, exist_ok=True)
        with first.open("r+b") as whole:
            end = first.stat().st_size
            for part in others:
                with part.open("rb") as file:
                    begin, size = 0, part.stat().st_size
                    while begin < size:
                        begin += os.copy_file_range(file.fileno(), whole.fileno(), size - begin, begin, end + begin)
                part.unlink()
                end += size
        del self.server.uploads[query["uploadId"]]
        first.replace(path)
        self.answer(200, {}, b"<CompleteMultipartUploadResult/>")

    def do_DELETE(self) -> None:
        path, query = self.asked()
        for part in self.server.uploads.pop(query.get("uploadId", ""), {}).values():
            part.unlink(missing_ok=True)
        if "uploadId" not in query:
            path.unlink(missing_ok=True)
        self.answer(204)


def serve(folder: Path, latency: float, failing: float) -> None:
    """Serve until standard input ends; says the port first."""
    server = Store(folder, latency, failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--failing", type=float, default=0.0)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    if options.serve:
        serve(options.folder.absolute(), options.latency, options.failing)
        return 0
    facts = ["--serve", f"--latency={options.latency}", f"--failing={options.failing}", f"--folder={options.folder}"]
    with subprocess.Popen(
        [sys.executable, __file__, *facts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None and server.stdin is not None
        port = int(server.stdout.readline())
        told = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
        }
        try:
            return subprocess.run(options.command, env=os.environ | told).returncode
        finally:
            server.stdin.close()


if __name__ == "__main__":
    sys.exit(main())
