"""Requests to servers: connections that are kept, tries that are repeated, answers that go straight into memory.

What may pass (a lost connection, a short answer, 408, 429 and 5xx) is tried again, at growing distances, until
`SURGERY_JAX_DEADLINE` seconds pass without a byte of progress, 120 if that is not set. Only the standard library is
used: bytes come from the socket into the buffer that a task has reserved, and go out from the buffer where they are,
which clients that make an object of every answer do not allow.
"""

from __future__ import annotations

import atexit
import base64
import errno
import os
import random
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from .base import PlaceError

__all__ = ["SHORT", "Answer", "Sinks", "StoreRequest", "Wire", "wanted_until", "wire"]

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_DEADLINE = 120.0  # seconds without progress after which a request is given up
_FIRST_MEETING = 15.0  # the same for a server that has never answered: its name may be wrong
_SILENCE = 20.0  # seconds without a byte after which a connection counts as lost
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 8.0  # seconds between tries
_MOST = 1 << 26  # bytes of an answer that is taken as a whole
SHORT = 256 << 10  # bytes of a file that may come as a whole where a range was asked for
_IDLE = 64  # connections to one server that are kept


class Answer(NamedTuple):
    """What a server says; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class StoreRequest:
    """What is asked of a server. `sign` gives the headers that prove who asks, anew for every try."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview | None = None
    sign: Callable[[StoreRequest], Mapping[str, str]] | None = None


class Sinks:
    """Where the bytes of an answer go: one buffer after the other. `done` counts what has come, over all tries."""

    def __init__(self, targets: Sequence[memoryview]) -> None:
        self._targets = targets
        self.size = sum(target.nbytes for target in targets)
        self.done = 0

    def rest(self) -> list[memoryview]:
        """What is still to be filled."""
        skip, found = self.done, []
        for target in self._targets:
            if skip < target.nbytes:
                found.append(target[skip:])
            skip = max(0, skip - target.nbytes)
        return found


_own = threading.local()


@contextmanager
def wanted_until(ended: threading.Event) -> Iterator[None]:
    """Within it this thread tries nothing again once that is set."""
    _own.ended = ended
    try:
        yield
    finally:
        del _own.ended


def _paused(seconds: float) -> bool:
    """Wait before the next try; whether it is wanted no more."""
    ended: threading.Event | None = getattr(_own, "ended", None)
    if ended is not None:
        return ended.wait(seconds)
    time.sleep(seconds)
    return False


class _Lost(Exception):
    """A try that failed for a reason that may pass."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Wire:
    """Connections to servers, which several threads use."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, str], list[HTTPConnection]] = defaultdict(list)
        self._met: set[tuple[str, str]] = set()  # servers that have answered
        self._lock = threading.Lock()

    def ask(self, request: StoreRequest, most: int = _MOST) -> Answer:
        """The answer to a request, whatever its status, with at most so many bytes of it.

        Raises:
            PlaceError: there is none within the time.
        """
        return self._persist(
            lambda: request.url, lambda: self._once(request, lambda response: _whole(response, most)), lambda: 0
        )

    def fill(
        self, asked: Callable[[int], StoreRequest], sinks: Sinks, check: Callable[[Answer, int], object]
    ) -> Answer:
        """Fill buffers with the bytes of an answer. `asked` gives the request for what comes after so many bytes;
        `check` is shown the head of the answer if it is 206, and raises what is wrong with it. Gives the last answer;
        one that is not 206 has filled nothing, and has its bytes if these are no more than `SHORT`.

        Raises:
            PlaceError: they do not come within the time.
            OSError: what `check` raises.
        """

        url = ""

        def attempt() -> Answer:
            nonlocal url
            begun = sinks.done
            request = asked(begun)
            url = request.url
            return self._once(request, lambda response: _taken(response, sinks, lambda answer: check(answer, begun)))

        return self._persist(lambda: url, attempt, lambda: sinks.done)

    def _persist(self, asked: Callable[[], str], attempt: Callable[[], Answer], progress: Callable[[], int]) -> Answer:
        """Try until there is an answer; `asked` tells the address that was tried."""
        limit = _deadline()
        wait, seen, since = _FIRST_WAIT, progress(), time.monotonic()
        while True:
            try:
                return attempt()
            except _Lost as lost:
                if progress() > seen:
                    wait, seen, since = _FIRST_WAIT, progress(), time.monotonic()
                pause = min(max(lost.wait, wait * random.uniform(0.5, 1.0)), _LONGEST_WAIT)
                where = urlsplit(asked())
                most = limit if _origin(where) in self._met else min(limit, _FIRST_MEETING)
                if time.monotonic() + pause - since > most:
                    raise PlaceError(
                        errno.ETIMEDOUT,
                        f"no answer from {where.hostname} for {most:g} seconds: {lost}",
                        "try again when it can be reached; SURGERY_JAX_DEADLINE says for how many seconds to try",
                    ) from None
                if _paused(pause):
                    raise PlaceError(errno.ECANCELED, f"it is not wanted any more: {lost}") from None
                wait *= 2

    def _once(self, request: StoreRequest, take: Callable[[HTTPResponse], Answer]) -> Answer:
        """One try."""
        parts = _address(request.url)
        headers = {"Accept-Encoding": "identity", "User-Agent": "surgery-jax", **request.headers}
        if request.sign is not None:
            headers |= request.sign(request)
        request = replace(request, headers=headers)
        connection = self._kept(parts)
        if connection is not None:
            try:
                response = _sent(connection, request, parts)
            except (OSError, HTTPException):  # the server has closed it in the meantime: no try that counts
                connection.close()
                connection = None
        if connection is None:
            connection = _connection(parts)
            try:
                response = _sent(connection, request, parts)
            except (OSError, HTTPException) as error:
                connection.close()
                raise _lost(error, parts) from None
        with self._lock:
            self._met.add(_origin(parts))
        try:
            answer = take(response)
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError | ssl.SSLError):
                raise
            raise _lost(error, parts) from None
        finally:
            if response.isclosed() and not response.will_close:
                self._keep(parts, connection)
            else:
                response.close()
                connection.close()
        if answer.status in _PASSING:
            told = answer.headers.get("retry-after", "")
            raise _Lost(f"status {answer.status}", float(told) if told.isdecimal() else 0.0)
        return answer

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            for idle in self._idle.values():
                while idle:
                    idle.pop().close()

    def _kept(self, parts: SplitResult) -> HTTPConnection | None:
        with self._lock:
            idle = self._idle[_origin(parts)]
            return idle.pop() if idle else None

    def _keep(self, parts: SplitResult, connection: HTTPConnection) -> None:
        with self._lock:
            idle = self._idle[_origin(parts)]
            if len(idle) < _IDLE:
                idle.append(connection)
                return
        connection.close()


def _deadline() -> float:
    """For how many seconds without progress to try.

    Raises:
        PlaceError: what the environment says is no number of seconds.
    """
    told = os.environ.get("SURGERY_JAX_DEADLINE") or str(_DEADLINE)
    try:
        if (limit := float(told)) > 0:
            return limit
    except ValueError:
        pass
    raise PlaceError(errno.EINVAL, f"SURGERY_JAX_DEADLINE is {told!r}", "set it to a number of seconds, or not at all")


def _address(url: str) -> SplitResult:
    """The parts of an address.

    Raises:
        PlaceError: there can be no server.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # of the port
        pass
    where = f"{parts.scheme}://{parts.hostname or ''}" if parts.netloc else url.partition("/")[0]
    raise PlaceError(
        errno.EINVAL,
        f"{where} is no address of a server",
        "write http://HOST or https://HOST, with :PORT if it needs one, where the environment names the endpoint",
    )


def _origin(parts: SplitResult) -> tuple[str, str]:
    return parts.scheme, parts.netloc


def _connection(parts: SplitResult) -> HTTPConnection:
    """A connection that is opened by the first request, through the proxy of the environment if there is one."""
    host = parts.hostname or ""
    silence = min(_SILENCE, _deadline())
    proxy = None if proxy_bypass(host) else getproxies().get(parts.scheme)
    where = urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else parts
    if parts.scheme == "https":
        tls = HTTPSConnection(where.hostname or "", where.port, timeout=silence, context=_trust())
        if proxy:
            tls.set_tunnel(host, parts.port or 443, _proxy_headers(where))
        return tls
    return HTTPConnection(where.hostname or "", where.port, timeout=silence)


def _proxy_headers(where: SplitResult) -> dict[str, str]:
    if where.username is None:
        return {}
    told = f"{where.username}:{where.password or ''}".encode()
    return {"Proxy-Authorization": "Basic " + base64.b64encode(told).decode()}


@cache
def _trust() -> ssl.SSLContext:
    """Whom to believe: what the system trusts, or the certificates of `AWS_CA_BUNDLE` or `SSL_CERT_FILE`."""
    return ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE") or None)


def _sent(connection: HTTPConnection, request: StoreRequest, parts: SplitResult) -> HTTPResponse:
    """Send a request and read the head of the answer."""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "http" and connection.host != parts.hostname:  # a proxy
        target = f"http://{parts.netloc}{target}"
    try:
        connection.request(request.method, target, request.body, request.headers)
    except (BrokenPipeError, ConnectionResetError):
        if connection.sock is None:
            raise
        return connection.getresponse()  # who refuses a body may not wait for the end of it
    return connection.getresponse()


def _headers(response: HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _whole(response: HTTPResponse, most: int = _MOST) -> Answer:
    body = response.read(most)
    if response.length and len(body) < most:
        raise _Lost("the answer is too short")
    return Answer(response.status, _headers(response), body)


def _taken(response: HTTPResponse, sinks: Sinks, check: Callable[[Answer], object]) -> Answer:
    """The answer to a request for a range, whose bytes go into the buffers."""
    if response.status != 206:
        is_short = response.status >= 300 or (response.length or _MOST) <= SHORT
        return _whole(response) if is_short else Answer(response.status, _headers(response), b"")
    answer = Answer(206, _headers(response), b"")
    check(answer)
    for target in sinks.rest():
        while target.nbytes:
            count = response.readinto(target)
            if not count:
                raise _Lost("the answer is too short")
            sinks.done, target = sinks.done + count, target[count:]
    if not response.length:
        response.close()  # all of it has been read: the connection can be used again
    return answer


def _lost(error: Exception, parts: SplitResult) -> Exception:
    """What an error of a connection means: one that may pass, or one that does not."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return PlaceError(
            errno.EACCES,
            f"the certificate of {parts.hostname} is not trusted: {error.verify_message}",
            "name the file of certificates to trust in SSL_CERT_FILE",
        )
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
        return PlaceError(errno.ENOENT, f"there is no server {parts.hostname}", "check the endpoint and the network")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return _Lost(reason)


@cache
def wire() -> Wire:
    """The connections of this process."""
    found = Wire()
    atexit.register(found.close)
    return found
