"""Process 0 while it waits for the others; see `meeting` for what is said."""

from __future__ import annotations

import hmac
import json
import os
import selectors
import socket
import time
from contextlib import closing
from functools import partial

from ..core.errors import PlanError, StorageError, SurgeryError
from .links import FAIL, START, WAIT, Link, heard_failure, reason, say_failure
from .meeting import (
    ANSWER,
    CHALLENGE_BYTES,
    HANDSHAKE_S,
    LOOK_S,
    MOST_WAITING,
    NAME,
    OTHER_SIZE,
    PROOF_BYTES,
    STRANGER,
    TAKEN,
    VERDICT,
    WELCOME,
    WELL,
    MeetingPlace,
    Patience,
)

__all__ = ["gather"]

TELL_S = 1.0  # between messages to those who wait about whom they wait for
MOST_GUESTS = 256  # connections that have proved nothing yet; of more the oldest must go


def listen(host: str, port: int) -> socket.socket:
    """Where process 0 waits for the others; only within the machine if that is how it is called."""
    if host in ("localhost", "127.0.0.1"):
        return socket.create_server(("127.0.0.1", port))
    if host == "::1":
        return socket.create_server(("::1", port), family=socket.AF_INET6)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


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
        self, place: MeetingPlace, patience: Patience, server: socket.socket, selector: selectors.BaseSelector
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
        try:
            connection, _ = self.server.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # too many open files
            if not self.guests:
                raise
            self._refuse(self.guests[0])
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


def gather(place: MeetingPlace, patience: Patience) -> tuple[dict[int, Link], dict[int, str]]:
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
