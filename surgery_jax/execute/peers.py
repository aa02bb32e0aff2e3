"""The processes of one run: who they are, what they tell each other, and how all learn that one has failed.

Process 0 is the centre of a star of TCP connections. There are two exchanges, which all processes make in the same
order: `gather` brings a message of everyone to process 0, `share` brings one of process 0 to everyone. In between every
process lets the others know that it lives. A connection that closes or stays silent is a process that is lost; its name
goes to all others. Nothing here knows about JAX: see `cluster` for how processes find each other.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from ..core.errors import StorageError, SurgeryError
from ..core.interrupts import check_interrupted

__all__ = ["ALONE", "Alone", "Peers", "Star"]

BEAT_S = 5.0  # between signs of life
SILENCE_S = 25.0  # without one, after which a process is lost
GRACE_S = 15.0  # to come to an end in once another has failed; with SILENCE_S this stays within a minute
ARRIVAL_S = 300  # for all to connect
CHUNK = 1 << 20
HEAD = struct.Struct("!BIQ")  # kind, number of the exchange, bytes that follow
HELLO, BEAT, DATA, FAIL, BYE = range(5)
MOST_HELLO = 4096


class Peers:
    """The processes of a run, seen by one of them. `rank` counts from 0; `size` is how many there are."""

    rank = 0
    size = 1

    def gather(self, message: bytes = b"") -> list[bytes]:
        """What every process says, in the order of ranks; only process 0 gets it, the others an empty list.

        Raises:
            SurgeryError: another process failed or is lost.
        """
        raise NotImplementedError

    def share(self, message: bytes = b"") -> bytes:
        """What process 0 says.

        Raises:
            SurgeryError: another process failed or is lost.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Whether all others are still at work.

        Raises:
            SurgeryError: one is not.
        """

    def rescue(self, action: Callable[[], object]) -> None:
        """What must still be done if another process fails and this one hangs in something."""

    def disregard(self) -> None:
        """From now on this process does its work even if others fail.

        Raises:
            SurgeryError: one has failed before.
        """

    def name(self, rank: int) -> str:
        """What to call a process in a message."""
        return f"process {rank}"


class Alone(Peers):
    """One process, the ordinary case."""

    def gather(self, message: bytes = b"") -> list[bytes]:
        return [message]

    def share(self, message: bytes = b"") -> bytes:
        return message


ALONE = Alone()


class _Elsewhere(SurgeryError):
    """A failure of another process, with the exit code that it had there."""

    def __init__(self, problem: str, exit_code: int, hint: str | None) -> None:
        super().__init__(problem, hint=hint)
        self.exit_code = exit_code


class _Link:
    """One connection: whole messages from any thread, received by one."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(SILENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock = threading.Lock()

    def send(self, kind: int, number: int = 0, message: bytes = b"") -> None:
        with self._lock:
            self.connection.sendall(HEAD.pack(kind, number, len(message)))
            for start in range(0, len(message), CHUNK):  # each with its own time limit
                self.connection.sendall(message[start : start + CHUNK])

    def receive(self, most: int | None = None) -> tuple[int, int, bytes]:
        """Kind, number and message.

        Raises:
            OSError: the connection is lost, or says more than `most` bytes.
        """
        kind, number, length = HEAD.unpack(self._exactly(HEAD.size))
        if most is not None and length > most:
            raise OSError("too long a message")
        return kind, number, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self.connection.recv(min(CHUNK, length - len(parts)))
            if not part:
                raise ConnectionResetError
            parts += part
        return bytes(parts)

    def close(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self.connection.close()


def listen(host: str) -> socket.socket:
    """Where process 0 waits for the others: any port, only within the machine if that is how it is called."""
    if host in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


class Star(Peers):
    """Connected processes; a context in which an error is told to the others before it goes on."""

    def __init__(self, rank: int, size: int, secret: str, where: socket.socket | tuple[str, int]) -> None:
        """Connect; `where` is the listening socket of process 0, or its address. `secret` keeps strangers out.

        Raises:
            StorageError: not all came.
        """
        self.rank = rank
        self.size = size
        self._names = {rank: socket.gethostname()}
        self._links: dict[int, _Link] = {}
        self._exchange = 0
        self._heard: dict[tuple[int, int], bytes] = {}  # by exchange and rank
        self._gone: set[int] = set()
        self._failure: SurgeryError | None = None
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._timer: threading.Timer | None = None
        self._rescues: list[Callable[[], object]] = []
        self._undisturbed = False
        try:
            if isinstance(where, socket.socket):
                self._accept(where, secret)
            else:
                self._connect(where, secret)
        except BaseException:
            self.close()
            raise
        for other, link in self._links.items():
            threading.Thread(target=self._listen, args=(other, link), daemon=True, name=f"peer-{other}").start()
        threading.Thread(target=self._beat, daemon=True, name="peer-beat").start()

    def _accept(self, server: socket.socket, secret: str) -> None:
        with server:
            server.settimeout(ARRIVAL_S)
            while len(self._links) < self.size - 1:
                try:
                    link = _Link(server.accept()[0])
                except OSError:
                    missing = sorted({*range(1, self.size)} - {*self._links})
                    raise StorageError(
                        f"not all processes came: {', '.join(map(str, missing))} of {self.size} are missing"
                    ) from None
                with suppress(OSError, ValueError, KeyError, TypeError):
                    kind, _, message = link.receive(MOST_HELLO)
                    said = json.loads(message)
                    rank = int(said["rank"])
                    if kind == HELLO and hmac.compare_digest(str(said["secret"]), secret) and 0 < rank < self.size:
                        self._names[rank] = str(said["host"])
                        self._links[rank] = link
                        continue
                link.close()

    def _connect(self, address: tuple[str, int], secret: str) -> None:
        try:
            link = _Link(socket.create_connection(address, timeout=SILENCE_S))
            hello = {"rank": self.rank, "secret": secret, "host": self._names[self.rank]}
            link.send(HELLO, 0, json.dumps(hello).encode())
        except OSError as error:
            raise StorageError(
                "process 0 cannot be reached",
                where=f"{address[0]}:{address[1]}",
                found=error.strerror or str(error),
                hint="processes connect to any free port of the coordinator's host: let them through its firewall",
            ) from None
        self._links[0] = link
        self._names[0] = address[0]

    def name(self, rank: int) -> str:
        host = self._names.get(rank)
        return f"process {rank}" + (f" on {host}" if host else "")

    # -- exchanges ----------------------------------------------------------------------------------------------

    def gather(self, message: bytes = b"") -> list[bytes]:
        self._exchange += 1
        if self.rank:
            self._send(0, DATA, self._exchange, message)
            return []
        keys = [(self._exchange, rank) for rank in range(1, self.size)]
        self._wait(keys)
        return [message, *(self._heard.pop(key) for key in keys)]

    def share(self, message: bytes = b"") -> bytes:
        self._exchange += 1
        if self.rank == 0:
            for rank in self._links:
                self._send(rank, DATA, self._exchange, message)
            self.check()
            return message
        self._wait([(self._exchange, 0)])
        return self._heard.pop((self._exchange, 0))

    def _wait(self, keys: list[tuple[int, int]]) -> None:
        with self._changed:
            # what is there already counts, even if its sender is gone by now
            while not all(key in self._heard for key in keys):
                self.check()
                self._changed.wait(1.0)

    def _send(self, rank: int, kind: int, number: int = 0, message: bytes = b"") -> None:
        try:
            self._links[rank].send(kind, number, message)
        except OSError:
            self._lose(rank)

    def check(self) -> None:
        check_interrupted()
        if self._failure is not None:
            raise self._failure

    def rescue(self, action: Callable[[], object]) -> None:
        self._rescues.append(action)

    def disregard(self) -> None:
        with self._changed:
            self._undisturbed = True
            self.check()

    # -- life and death -----------------------------------------------------------------------------------------

    def _listen(self, rank: int, link: _Link) -> None:
        while True:
            try:
                kind, number, message = link.receive()
            except OSError:
                self._lose(rank)
                return
            if kind == DATA:
                with self._changed:
                    self._heard[number, rank] = message
                    self._changed.notify_all()
            elif kind == FAIL:
                said = json.loads(message)
                if self.rank == 0:
                    self._tell(said, but=rank)
                self._fail(_Elsewhere(said["problem"], said["exit_code"], said["hint"]))
            elif kind == BYE:
                with self._changed:
                    self._gone.add(rank)
                return

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            for rank in self._links:
                if rank not in self._gone:
                    self._send(rank, BEAT)

    def _lose(self, rank: int) -> None:
        if self._closed.is_set() or rank in self._gone:
            return
        problem = f"{self.name(rank)} is lost: it was killed, or cannot be reached"
        error = StorageError(problem, hint="see what it wrote last; nothing was committed")
        with self._changed:
            self._gone.add(rank)
            is_first = self._failure is None
        if is_first and self.rank == 0:
            self._tell({"problem": problem, "exit_code": error.exit_code, "hint": error.hint}, but=rank)
        self._fail(error)

    def _fail(self, error: SurgeryError) -> None:
        with self._changed:
            if self._failure is None and not self._undisturbed and not self._closed.is_set():
                self._failure = error
                self._timer = threading.Timer(GRACE_S, self._give_up, (error,))
                self._timer.daemon = True
                self._timer.start()
            self._changed.notify_all()

    def _give_up(self, error: SurgeryError) -> None:
        """This process hangs in something that cannot be interrupted."""
        for action in reversed(self._rescues):
            with suppress(SurgeryError, OSError):
                action()
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(error.exit_code)

    def _tell(self, said: dict[str, object], but: int = -1) -> None:
        message = json.dumps(said).encode()
        for rank, link in self._links.items():
            if rank != but and rank not in self._gone:
                with suppress(OSError):
                    link.send(FAIL, 0, message)

    def __enter__(self) -> Star:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and error is not self._failure:
            problem = str(error).splitlines()[0] if isinstance(error, SurgeryError) else type(error).__name__
            code = error.exit_code if isinstance(error, SurgeryError) else 1
            said = {"problem": f"{self.name(self.rank)} stopped: {problem}", "exit_code": code, "hint": None}
            self._tell(said)
        self.close()

    def close(self) -> None:
        """Leave; the others do not take it for a loss."""
        with self._changed:  # from here on nothing sets the timer
            self._closed.set()
            if self._timer is not None:
                self._timer.cancel()
        for link in self._links.values():
            with suppress(OSError):
                link.send(BYE)
            link.close()
