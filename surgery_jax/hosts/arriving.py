"""Any process but process 0 while it comes to the others; see `meeting` for what is said."""

from __future__ import annotations

import hmac
import json
import math
import os
import selectors
import socket
import time
from contextlib import ExitStack

from ..core.errors import PlanError, StorageError
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

__all__ = ["arrive"]

ANSWER_S = 10.0  # for process 0 to say its name; then it is tried again
RETRY_S = 0.25  # between tries to reach process 0


def arrive(place: MeetingPlace, patience: Patience) -> Link:
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


def _introduce(place: MeetingPlace, connection: socket.socket, patience: Patience) -> None:
    """Prove to process 0 that this process belongs to the run, and let it prove that too.

    Raises:
        OSError: that is not process 0, or it does not answer.
        PlanError: it knows better.
    """
    if connection.getsockname() == connection.getpeername():
        raise OSError("nobody is there")  # on one machine, two ends of one socket can meet
    name, theirs = WELCOME.unpack(_exactly(connection, WELCOME.size, patience, ANSWER_S))
    if name != NAME:
        raise OSError("what answers there is no process of this program and version")
    ours = os.urandom(CHALLENGE_BYTES)
    host = socket.gethostname().encode()[:64]
    answer = ANSWER.pack(NAME, place.rank, place.size, host, ours, b"")[:-PROOF_BYTES]
    connection.sendall(answer + place.prove(b"arrives", theirs, answer))
    # from here on process 0 may count on this process, so it must not turn away
    verdict, proof = VERDICT.unpack(_exactly(connection, VERDICT.size, patience, math.inf))
    if not hmac.compare_digest(proof, place.prove(b"verdict", ours, theirs, bytes([verdict]))):
        verdict = STRANGER
    if verdict != WELL:
        raise _refusal(place, verdict)


def _refusal(place: MeetingPlace, verdict: int) -> PlanError:
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


def _exactly(connection: socket.socket, length: int, patience: Patience, limit_s: float) -> bytes:
    """So many bytes of what process 0 says within a time.

    Raises:
        OSError: it does not say them in time.
    """
    connection.settimeout(LOOK_S)
    end = time.monotonic() + limit_s
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


def _await_start(place: MeetingPlace, link: Link, patience: Patience) -> Link:
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
