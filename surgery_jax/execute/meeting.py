"""How the processes of a run come together: all connect to process 0, which lets in who belongs to the run.

Before anything that a connection says is understood, it must prove that it knows the secret of the run, in bytes of
fixed number: process 0 sends a challenge, and gets back who the other is, a challenge for itself, and a proof over all
of that. Process 0 does so with all connections at once, and gives none of them more than a moment, so that nothing that
else comes to the port holds up the run. From then on the connection carries messages (see `links`); the run begins when
process 0 says so to all.
"""

from __future__ import annotations

import hmac
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial

from ..core.errors import PlanError, StorageError, SurgeryError, listing
from ..core.interrupts import check_interrupted
from .links import FAIL, START, WAIT, Link, heard_failure, reason, say_failure

__all__ = ["Patience", "Place", "arrive", "gather"]

HANDSHAKE_S = 2.0  # for a connection to prove that it belongs to the run
ANSWER_S = 10.0  # for process 0 to answer one; then it is tried again
RETRY_S = 0.25  # between tries to reach process 0
LOOK_S = 0.25  # between looks at the clock and at signals
SILENT_S = 2.0  # before a process says whom it waits for
AGAIN_S = 10.0  # before it says so again, if it is others by then
TELL_S = 1.0  # between messages to those who wait about whom they wait for
MOST_GUESTS = 256  # connections that have proved nothing yet; of more the oldest must go
MOST_WAITING = 1 << 20  # bytes of a message before the run

NAME = b"surgery_jax/2".ljust(16, b"\0")
CHALLENGE_BYTES = PROOF_BYTES = 32
WELCOME = struct.Struct(f"!16s{CHALLENGE_BYTES}s")  # name, challenge
ANSWER = struct.Struct(f"!16sII64s{CHALLENGE_BYTES}s{PROOF_BYTES}s")  # name, rank, size, host, challenge, proof
VERDICT = struct.Struct(f"!B{PROOF_BYTES}s")
WELL, STRANGER, OTHER_SIZE, TAKEN = range(4)  # verdicts


@dataclass(frozen=True)
class Place:
    """Which process of how many this is, and where process 0 is met. `secret` is what all of them know."""

    rank: int
    size: int
    host: str
    port: int
    secret: bytes = field(default=b"", repr=False)

    @property
    def address(self) -> str:
        """For messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def prove(self, *parts: bytes) -> bytes:
        """The proof over bytes that only who knows the secret can make."""
        return hmac.digest(self.secret, b"\0".join(parts), "sha256")


class Patience:
    """How long a process waits for the others, all together, and what it says meanwhile.

    `notify` gets a line that says whom it waits for, after two seconds and when that has changed.
    """

    def __init__(self, place: Place, limit_s: float, notify: Callable[[str], None] | None = None) -> None:
        self._place = place
        self._limit_s = limit_s
        self._notify = notify
        self._end = time.monotonic() + limit_s
        self._next = time.monotonic() + SILENT_S
        self._last = ""

    def bide(self, missing: Sequence[int], found: str | None) -> None:
        """Whether to go on waiting; `missing` are the processes that did not come yet, `found` is what is known of it.

        Raises:
            StorageError: it has been long enough.
            Interrupted: something asked to stop.
        """
        check_interrupted()
        now = time.monotonic()
        who = f"process{'es' * (len(missing) > 1)} {listing(map(str, missing), 12)}" if missing else "the others"
        if now >= self._end:
            raise StorageError(
                f"not all of {self._place.size} processes came within {self._limit_s:g} seconds; missing: {who}",
                where=self._place.address,
                found=found,
                hint="see what the missing ones say; all need the same --coordinator and --num-processes, and each its "
                "own --process-id; --join-timeout SECONDS waits longer",
            )
        text = f"waiting for {who} of {self._place.size} to meet at {self._place.address}"
        if now >= self._next and text != self._last:
            self._next, self._last = now + AGAIN_S, text
            if self._notify is not None:
                self._notify(text + (f" ({found})" if found else ""))


def listen(host: str, port: int) -> socket.socket:
    """Where process 0 waits for the others; only within the machine if that is how it is called."""
    if host in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", port))
    if host == "::1":
        return socket.create_server(("::1", port), family=socket.AF_INET6)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


# ------------------------------------------------------------------------------------------------------- process 0


class _Guest:
    """A connection that has not proved yet that it belongs to the run."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.until = time.monotonic() + HANDSHAKE_S
        self.challenge = os.urandom(CHALLENGE_BYTES)
        self.said = b""
        connection.setblocking(False)
        connection.send(WELCOME.pack(NAME, self.challenge))

    def read(self) -> bool:
        """Read what is there; whether the answer is complete.

        Raises:
            OSError: the connection is lost, or speaks of something else.
        """
        part = self.connection.recv(ANSWER.size - len(self.said))
        if not part:
            raise ConnectionResetError
        self.said += part
        if not self.said.startswith(NAME[: len(self.said)]):
            raise OSError("something else")
        return len(self.said) == ANSWER.size


class _Gathering:
    """Process 0 while it waits for the others."""

    def __init__(
        self, place: Place, patience: Patience, server: socket.socket, selector: selectors.BaseSelector
    ) -> None:
        self.place = place
        self.patience = patience
        self.server = server
        self.selector = selector
        self.guests: list[_Guest] = []  # oldest first
        self.links: dict[int, Link] = {}
        self.names: dict[int, str] = {}
        self.refused = 0
        self.told_at = 0.0
        self.told: list[int] = []
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Until all are here."""
        while missing := sorted({*range(1, self.place.size)} - {*self.links}):
            turned_away = f"{self.refused} connections that do not belong to the run" if self.refused else None
            self.patience.bide(missing, turned_away)
            for key, _ in self.selector.select(LOOK_S):
                key.data()
            now = time.monotonic()
            while self.guests and self.guests[0].until < now:
                self._refuse(self.guests[0])
            if now - self.told_at >= TELL_S and missing != self.told:
                self.told_at, self.told = now, missing
                for link in self.links.values():
                    link.urge(WAIT, json.dumps(missing).encode())
        for link in self.links.values():
            link.urge(START)

    def _accept(self) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            try:
                connection, _ = self.server.accept()
            except OSError as error:
                if isinstance(error, BlockingIOError | ConnectionAbortedError) or not self.guests:
                    raise
                self._refuse(self.guests[0])  # too many open files
                return
            try:
                guest = _Guest(connection)
            except OSError:
                connection.close()
                return
            self.guests.append(guest)
            self.selector.register(connection, selectors.EVENT_READ, partial(self._hear, guest))
            if len(self.guests) > MOST_GUESTS:
                self._refuse(self.guests[0])

    def _hear(self, guest: _Guest) -> None:
        try:
            if guest in self.guests and guest.read():
                self._admit(guest)
        except OSError:
            self._refuse(guest)

    def _refuse(self, guest: _Guest) -> None:
        self.refused += 1
        self._forget(guest)
        guest.connection.close()

    def _forget(self, guest: _Guest) -> None:
        self.guests.remove(guest)
        self.selector.unregister(guest.connection)

    def _admit(self, guest: _Guest) -> None:
        _, rank, size, name, challenge, proof = ANSWER.unpack(guest.said)
        known = hmac.compare_digest(proof, self.place.prove(b"arrives", guest.challenge, guest.said[:-PROOF_BYTES]))
        verdict = WELL
        if not known:
            verdict = STRANGER
        elif size != self.place.size or not 0 < rank < size:
            verdict = OTHER_SIZE
        elif rank in self.links:
            verdict = TAKEN
        proof = self.place.prove(b"verdict", challenge, guest.challenge, bytes([verdict]))
        guest.connection.send(VERDICT.pack(verdict, proof))
        if verdict == STRANGER:
            self._refuse(guest)
            return
        self._forget(guest)
        host = "".join(filter(str.isprintable, name.rstrip(b"\0").decode("utf-8", "replace")))
        if verdict != WELL:
            guest.connection.close()
            raise self._mistake(verdict, rank, size, host)
        link = self.links[rank] = Link(guest.connection, HANDSHAKE_S)
        self.names[rank] = host
        self.told = []  # the new one knows nothing yet
        self.selector.register(guest.connection, selectors.EVENT_READ, partial(self._listen, rank, link))

    def _mistake(self, verdict: int, rank: int, size: int, host: str) -> PlanError:
        if verdict == TAKEN:
            problem = f"two processes have the number {rank}: on {self.names[rank]} and on {host}"
            return PlanError(problem, hint="give each its own --process-id")
        return PlanError(
            f"process {rank} on {host} differs in --num-processes",
            expected=f"{self.place.size}, as in process 0",
            found=f"{size}",
        )

    def _listen(self, rank: int, link: Link) -> None:
        """A process that is here has nothing to say before the run begins, unless it leaves."""
        problem = f"process {rank} on {self.names[rank]} was lost before all had come"
        try:
            kind, _, message = link.receive(MOST_WAITING)
            if kind == FAIL:
                raise heard_failure(message)
        except OSError:
            pass
        raise StorageError(problem, hint="see what it wrote last; nothing was begun")


def gather(place: Place, patience: Patience) -> tuple[dict[int, Link], dict[int, str]]:
    """Process 0: the connections to all others, and the names of their hosts.

    Raises:
        SurgeryError: not all came, or one that came is gone; those who are here are told.
        Interrupted: something asked to stop; likewise.
    """
    try:
        server = listen(place.host, place.port)
    except OSError as error:
        raise StorageError(
            "process 0 cannot wait for the others here",
            where=place.address,
            found=error.strerror or str(error),
            hint="--coordinator takes another port, one that is free on the host of process 0",
        ) from None
    with closing(server), selectors.DefaultSelector() as selector:
        gathering = _Gathering(place, patience, server, selector)
        try:
            gathering.run()
        except BaseException as error:
            known = reason(error)
            name = f"process 0 on {socket.gethostname()}"
            is_clear = isinstance(error, SurgeryError)
            problem = str(known).splitlines()[0] if is_clear else f"{name} stopped: {known.problem}"
            for link in gathering.links.values():
                link.urge(FAIL, say_failure(problem, known))
                link.close()
            raise
        finally:
            for guest in gathering.guests:
                guest.connection.close()
    return gathering.links, gathering.names


# ---------------------------------------------------------------------------------------------------- all the others


def arrive(place: Place, patience: Patience) -> Link:
    """Any other process: the connection to process 0, once all are there.

    Raises:
        SurgeryError: process 0 cannot be reached, does not let this process in, or says that the run is over.
        Interrupted: something asked to stop.
    """
    found = None
    while True:
        patience.bide([0], found)
        try:
            connection = socket.create_connection((place.host, place.port), timeout=HANDSHAKE_S)
        except (OSError, UnicodeError) as error:
            found = getattr(error, "strerror", None) or str(error)
            time.sleep(RETRY_S)
            continue
        with ExitStack() as stack:
            stack.callback(connection.close)
            try:
                _introduce(place, connection, patience)
            except OSError as error:
                found = error.strerror or str(error) or "no answer"
                time.sleep(RETRY_S)
                continue
            stack.pop_all()
        return _await_start(place, Link(connection, HANDSHAKE_S), patience)


def _introduce(place: Place, connection: socket.socket, patience: Patience) -> None:
    """Prove to process 0 that this process belongs to the run, and let it prove that too.

    Raises:
        OSError: that is not process 0, or it does not answer.
        PlanError: it knows better.
    """
    if connection.getsockname() == connection.getpeername():
        raise OSError("nobody is there")  # on one machine, two ends of one socket can meet
    name, theirs = WELCOME.unpack(_exactly(connection, WELCOME.size, patience))
    if name != NAME:
        raise OSError("what answers there is no process of this program and version")
    ours = os.urandom(CHALLENGE_BYTES)
    host = socket.gethostname().encode()[:64]
    answer = ANSWER.pack(NAME, place.rank, place.size, host, ours, b"")[:-PROOF_BYTES]
    connection.sendall(answer + place.prove(b"arrives", theirs, answer))
    verdict, proof = VERDICT.unpack(_exactly(connection, VERDICT.size, patience))
    if not hmac.compare_digest(proof, place.prove(b"verdict", ours, theirs, bytes([verdict]))):
        verdict = STRANGER
    if verdict != WELL:
        raise _refusal(place, verdict)


def _refusal(place: Place, verdict: int) -> PlanError:
    if verdict == OTHER_SIZE:
        problem = f"process 0 expects another number of processes than {place.size}"
        return PlanError(problem, where=place.address, hint="give all the same --num-processes")
    if verdict == TAKEN:
        problem = f"process 0 has a process {place.rank} already"
        return PlanError(problem, where=place.address, hint="give each its own --process-id")
    return PlanError(
        "process 0 has another secret",
        where=place.address,
        hint="set SURGERY_JAX_SECRET to the same for all processes, or for none",
    )


def _exactly(connection: socket.socket, length: int, patience: Patience) -> bytes:
    """So many bytes of what process 0 says.

    Raises:
        OSError: it does not say them in time.
    """
    connection.settimeout(LOOK_S)
    end = time.monotonic() + ANSWER_S
    said = b""
    while len(said) < length:
        try:
            part = connection.recv(length - len(said))
        except TimeoutError:
            patience.bide([0], "no answer")
            if time.monotonic() > end:
                raise OSError("no answer") from None
            continue
        if not part:
            raise ConnectionResetError("it closed the connection")
        said += part
    return said


def _await_start(place: Place, link: Link, patience: Patience) -> Link:
    missing: list[int] = []
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(link.connection, selectors.EVENT_READ)
            while True:
                patience.bide(missing, None)
                if not selector.select(LOOK_S):
                    continue
                kind, _, message = link.receive(MOST_WAITING)
                if kind == START:
                    return link
                if kind == FAIL:
                    raise heard_failure(message)
                if kind == WAIT:
                    missing = [rank for rank in _numbers(message) if rank != place.rank]
    except OSError:
        link.close()
        raise StorageError(
            f"process 0 at {place.address} was lost before all had come", hint="see what it wrote last"
        ) from None
    except BaseException as error:
        known = reason(error)
        name = f"process {place.rank} on {socket.gethostname()}"
        link.urge(FAIL, say_failure(f"{name} stopped: {known.problem}", known))
        link.close()
        raise


def _numbers(message: bytes) -> list[int]:
    try:
        return [int(rank) for rank in json.loads(message)]
    except (ValueError, TypeError, RecursionError):
        raise OSError("not understood") from None
