"""The processes of one run: who they are, what they tell each other, and how all learn that one has failed.

Process 0 is the centre of a star of TCP connections. There are two exchanges, which all processes make in the same
order: `gather` brings a message of everyone to process 0, `share` brings one of process 0 to everyone. In between every
process lets the others know that it lives. A connection that closes or stays silent is a process that is lost; its name
goes to all others. Nothing here knows about JAX: see `cluster` for how processes find each other.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from ..core.errors import StorageError, SurgeryError
from ..core.interrupts import check_interrupted
from .links import BEAT, BYE, DATA, FAIL, SILENCE_S, Link, heard_failure, reason, say_failure

__all__ = ["ALONE", "Alone", "Peers", "Star"]

BEAT_S = 5.0  # between signs of life
GRACE_S = 15.0  # to come to an end in once another has failed; with SILENCE_S this stays within a minute
CAUSE_S = 2.0  # for word of a failure elsewhere that explains one here
LOOK_S = 0.5  # between looks for an interrupt while a process waits


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

    def hand_over(self) -> None:
        """From now on process 0 may let the outputs appear, whatever becomes of this process."""

    def stop(self, error: BaseException) -> None:
        """This process fails: the others hear of it before what they work on is removed.

        Raises:
            SurgeryError: another process failed first, which explains this error.
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


class Star(Peers):
    """Connected processes; a context in which an error is told to the others before it goes on.

    `links` are the connections to the others by rank: of process 0 to all, of the others to process 0. `names` are
    those of their hosts.
    """

    def __init__(self, rank: int, size: int, links: Mapping[int, Link], names: Mapping[int, str]) -> None:
        self.rank = rank
        self.size = size
        self._names = {**names, rank: socket.gethostname()}
        self._links = dict(links)
        self._exchange = 0
        self._heard: dict[tuple[int, int], bytes] = {}  # by exchange and rank
        self._gone: set[int] = set()
        self._failure: SurgeryError | None = None
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._timer: threading.Timer | None = None
        self._rescues: list[Callable[[], object]] = []
        self._undisturbed = False
        self._has_handed_over = False
        for other, link in self._links.items():
            link.connection.settimeout(SILENCE_S)
            threading.Thread(target=self._listen, args=(other, link), daemon=True, name=f"peer-{other}").start()
        threading.Thread(target=self._beat, daemon=True, name="peer-beat").start()

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
            while missing := [key for key in keys if key not in self._heard]:
                self.check()
                left = next((rank for _, rank in missing if rank in self._gone), None)
                if left is not None:
                    error = StorageError(f"{self.name(left)} left before the end", hint=self._hint())
                    self._fail(error, left)
                    raise self._failure or error
                self._changed.wait(LOOK_S)

    def _send(self, rank: int, kind: int, number: int = 0, message: bytes = b"") -> None:
        try:
            self._links[rank].send(kind, number, message)
        except OSError as error:
            self._lose(rank, isinstance(error, TimeoutError))

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

    def hand_over(self) -> None:
        self._has_handed_over = True

    # -- life and death -----------------------------------------------------------------------------------------

    def _listen(self, rank: int, link: Link) -> None:
        while True:
            try:
                kind, number, message = link.receive()
                failure = heard_failure(message) if kind == FAIL else None
            except OSError as error:
                self._lose(rank, isinstance(error, TimeoutError))
                return
            if failure is not None:
                self._fail(failure, rank)
            elif kind == DATA:
                with self._changed:
                    self._heard[number, rank] = message
                    self._changed.notify_all()
            elif kind == BYE:
                with self._changed:
                    self._gone.add(rank)
                    self._changed.notify_all()
                return

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            for rank, link in self._links.items():
                if rank not in self._gone:
                    link.urge(BEAT, wait_s=0)  # a message that is on its way is a sign of life too

    def _lose(self, rank: int, is_silent: bool) -> None:
        if self._closed.is_set() or rank in self._gone:
            return
        name = self.name(rank)
        why = f"nothing came from it for {SILENCE_S:g} seconds" if is_silent else "it was killed, or cannot be reached"
        error = StorageError(f"{name} is lost: {why}", hint=self._hint())
        if is_silent:  # it may come to itself one day, and must not wait for us then
            heard = f"{self.name(self.rank)} heard nothing from {name} for {SILENCE_S:g} seconds, and ended the run"
            self._links[rank].urge(FAIL, say_failure(heard, error))
        self._fail(error, rank)
        with self._changed:
            self._gone.add(rank)

    def _hint(self) -> str:
        if self._has_handed_over:
            return "see what it wrote last; the outputs were complete, and are there if it could still publish them"
        return "see what it wrote last; nothing was committed"

    def _fail(self, error: SurgeryError, rank: int) -> None:
        """This process learned from another that the run has failed; process 0 passes it on."""
        with self._changed:  # which leaving needs too: not before all have been told
            if self._failure is None and not self._undisturbed and not self._closed.is_set():
                self._failure = error
                if self.rank == 0:
                    self._tell(error.problem, error, but=rank)
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

    def _tell(self, problem: str, error: SurgeryError, but: int = -1) -> None:
        message = say_failure(problem, error)
        for rank, link in self._links.items():
            if rank != but and rank not in self._gone:
                link.urge(FAIL, message)

    def stop(self, error: BaseException) -> None:
        if isinstance(error, Exception) and isinstance(reason(error), StorageError):
            with self._changed:  # a file may be gone because another process has ended, and removed all that was made
                self._changed.wait_for(lambda: self._failure is not None, CAUSE_S)
            if self._failure is not None and self._failure is not error:
                raise self._failure from None
        self._end(error)

    def _end(self, error: BaseException) -> None:
        """Tell the others, unless they know of a failure already."""
        known = reason(error)
        with self._changed:  # those that hear of it leave, which is no failure then
            is_first, self._failure = self._failure is None, self._failure or known
        if is_first:
            self._tell(f"{self.name(self.rank)} stopped: {str(known).splitlines()[0]}", known)

    def __enter__(self) -> Star:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._end(error)
        self._close(BYE if error is None else None)

    def _close(self, word: int | None) -> None:
        """Leave. With a word of farewell the others do not take it for a loss."""
        with self._changed:  # from here on nothing sets the timer
            self._closed.set()
            if self._timer is not None:
                self._timer.cancel()
        for link in self._links.values():
            if word is not None:
                link.urge(word)
            link.close()
