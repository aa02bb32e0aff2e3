"""Whole messages between two processes of a run, and how one tells another what went wrong."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from contextlib import suppress

from ..core.errors import StorageError, SurgeryError, told
from ..core.interrupts import Interrupted, check_interrupted

__all__ = ["Elsewhere", "Link", "heard_failure", "reason", "say_failure"]

BEAT, DATA, FAIL, BYE, WAIT, START = range(6)  # kinds of messages
SILENCE_S = 25.0  # without a sign of life, after which a process is lost
BUSY_S = 1.0  # for a message that is being sent to get out of the way of an urgent one
CHUNK = 1 << 20
HEAD = struct.Struct("!BIQ")  # kind, number of the exchange, bytes that follow
MOST_FAILURE = 1 << 20  # bytes of what went wrong


class Link:
    """One connection: whole messages from any thread, received by one, which waits no longer than `limit_s`."""

    def __init__(self, connection: socket.socket, limit_s: float) -> None:
        self.connection = connection
        connection.settimeout(limit_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lock = threading.Lock()

    def send(self, kind: int, number: int = 0, message: bytes = b"") -> None:
        """Send all of it.

        Raises:
            OSError: the connection is lost.
        """
        with self._lock:
            self.connection.sendall(HEAD.pack(kind, number, len(message)))
            for start in range(0, len(message), CHUNK):  # each with its own time limit
                self.connection.sendall(message[start : start + CHUNK])

    def urge(self, kind: int, message: bytes = b"", wait_s: float = BUSY_S) -> None:
        """Send something short if that takes no longer than `wait_s`; what the other does not take is not sent, so that
        one that is stuck holds up nobody."""
        if self._lock.acquire(timeout=wait_s):
            frame = HEAD.pack(kind, 0, len(message)) + message
            try:
                if os.write(self.connection.fileno(), frame) < len(frame):
                    self.connection.shutdown(socket.SHUT_RDWR)  # half a message is none
            except OSError:
                pass  # whoever listens to this connection will notice
            finally:
                self._lock.release()

    def receive(self, most: int | None = None) -> tuple[int, int, bytes]:
        """Kind, number and message.

        Raises:
            OSError: the connection is lost, or says more than `most` bytes.
        """
        kind, number, length = HEAD.unpack(self._exactly(HEAD.size))
        if length > (MOST_FAILURE if kind == FAIL else length if most is None else most):
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
        """End it; does nothing the second time."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        with self._lock, suppress(OSError):  # never while somebody sends: the number may be another file's by then
            self.connection.close()


class Elsewhere(SurgeryError):
    """A failure of another process, with the exit code that it had there."""

    def __init__(self, problem: str, exit_code: int, hint: str | None) -> None:
        super().__init__(problem, hint=hint)
        self.exit_code = exit_code


def say_failure(problem: str, error: SurgeryError) -> bytes:
    """What others must know of a failure."""
    return json.dumps({"problem": problem[:4000], "exit_code": error.exit_code, "hint": error.hint}).encode()


def heard_failure(message: bytes) -> Elsewhere:
    """The failure that another process speaks of.

    Raises:
        OSError: it is not understood.
    """
    try:
        said = json.loads(message)
        return Elsewhere(str(said["problem"]), int(said["exit_code"]), said["hint"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise OSError(f"not understood: {type(error).__name__}") from None


def reason(error: BaseException) -> SurgeryError:
    """What others must be told of an error that ends this process; of several the first. For an interrupt they get the
    exit code of a process that is lost, since nobody asked them to stop."""
    try:
        check_interrupted()  # an interrupt can break off something that then fails in its own way
    except Interrupted as asked:
        error = asked
    if isinstance(error, Exception):
        return told(error).single[0]
    name = str(error) if isinstance(error, Interrupted) else ""
    return StorageError("it was interrupted" + (f" by {name}" if name else ""))
