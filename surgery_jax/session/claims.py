"""Who is at work on which job of a batch that several processes share: a claim per job, with a lease that is renewed.

Claims are files in a folder that all processes see, or objects of a store. A job is known by what the names of its
files begin with (`finished.job_files`). The claim in force is the one with the highest number; nobody replaces
another's, but adds the next one when its lease has run out, and of several who try one succeeds. Whether a lease has
run out is no question of clocks, which may differ between hosts: a claim that is not renewed for the time of its lease
*while somebody looks on* is over. A process of the same machine that has ended holds no lock any more, and is not
waited for; stores have no locks, so there its lease must run out. Who stood still finds the next claim before its
outputs appear, and leaves the job to others.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import StorageError
from ..core.interrupts import held
from ..storage.files import storage_error
from ..storage.notices import Board, Own, board_of

__all__ = ["LEASE", "Claim", "Claims", "Lost", "claim_of"]

LEASE = 120.0  # seconds
_RENEWALS = 6  # in the time of a lease
_ATTEMPTS = 100
_MOST = 64 << 10  # bytes of an untrusted claim
_MOST_WHY = 2000  # characters


class Lost(StorageError):
    """A job that this process was at work on belongs to another one now."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim says: whose it is, and its state, `held`, `failed` (`why` says of what) or `left` to others.

    seen: changes whenever it is renewed. age_s: since it was renewed, by the clocks of this host and of the storage, or
    at a store of who has renewed it.
    is_dead: its process was one of this machine, and has ended. lease: seconds.
    """

    number: int
    state: str
    host: str
    process: int
    lease: float
    seen: tuple[int | str, ...]
    age_s: float
    is_dead: bool
    why: str = ""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}" if self.process else "another process"


def claim_of(job: Path) -> Claim | None:
    """The claim in force on a job, also one that is over; None if nobody has been at work on it.

    Raises:
        StorageError: it cannot be read.
    """
    last = None
    try:
        while (found := _read(job, 1 if last is None else last.number + 1)) is not None:
            last = found
    except OSError as error:
        raise storage_error(error, job.parent, "see who is at work") from None
    return last


def _board(job: Path) -> Board:
    return board_of(job.parent)


def _name(job: Path, number: int) -> str:
    return f"{job.name}.{number}.claim"


def _read(job: Path, number: int) -> Claim | None:
    note = _board(job).read(_name(job, number), _MOST)
    if note is None:
        return None
    try:
        told = json.loads(note.data)
        texts = [str(told[name]) for name in ("state", "host", "boot", "why")]
        process, lease, at = int(told["process"]), float(told["lease"]), float(told.get("at", 0))
    except (ValueError, KeyError, TypeError, AttributeError):  # one that is just being made
        texts, process, lease, at = ["held", "", "", ""], 0, LEASE, time.time()
    state, host, boot, why = texts
    is_dead = bool(boot) and boot == _boot() and note.is_unlocked
    age = max(0.0, time.time() - at) if note.age_s is None else note.age_s
    return Claim(number, state, host, process, lease, note.seen, age, is_dead, why)


def _boot() -> str:
    """What tells this machine, since it was started, from all others."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


@dataclass(slots=True)
class _Own:
    """A claim of this process: its number, its file, and when it was renewed, by this process's clock."""

    name: str
    number: int
    file: Own
    renewed: float


class Claims:
    """The claims of this process, which a thread renews until they end."""

    def __init__(self, lease: float = LEASE) -> None:
        """A lease of so many seconds."""
        self._lease = lease
        self._own: dict[Path, _Own] = {}
        self._seen: dict[Path, tuple[tuple[int | str, ...], float]] = {}
        self._made: set[Path] = set()  # folders
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="claims", daemon=True)
        self._renewer.start()

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """What was not brought to an end is left to others."""
        self._ended.set()
        self._renewer.join()
        for job in list(self._own):
            with suppress(StorageError):
                self.leave(job)

    def take(self, job: Path, name: str) -> Claim | None:
        """Claim a job, which is called `name`. None: it is this process's now; else who has it.

        Raises:
            StorageError: the operating system refuses.
        """
        self._make(job.parent)
        for _ in range(_ATTEMPTS):
            last = claim_of(job)
            if last is not None and self._is_held(job, last):
                return last
            if self._add(job, name, 1 if last is None else last.number + 1):
                return None
        raise StorageError("others claim the job again and again", where=str(job.parent), found=name)

    def holder(self, job: Path) -> Claim | None:
        """Who is at work on a job; None if it could be had.

        Raises:
            StorageError: that cannot be found out.
        """
        last = claim_of(job)
        return last if last is not None and self._is_held(job, last) else None

    def check(self, jobs: Iterable[Path]) -> None:
        """Whether all these jobs still belong to this process.

        Raises:
            Lost: one does not.
            StorageError: that cannot be found out.
        """
        with self._lock:
            for job in jobs:
                self._hold(job)

    def done(self, job: Path) -> None:
        """The job is finished, which the record says; its claims are not needed any more."""
        with self._lock, suppress(OSError):  # one that stays is no harm: what is finished is not claimed
            for number in range(1, self._end(job) + 1):  # the first one first: see `_hold`
                _board(job).remove(_name(job, number))

    def fail(self, job: Path, why: str) -> None:
        """The job has failed.

        Raises:
            StorageError: that cannot be noted.
        """
        self._state(job, "failed", why)

    def leave(self, job: Path) -> None:
        """The job is left to whoever wants it.

        Raises:
            StorageError: that cannot be noted.
        """
        self._state(job, "left", "")

    # ------------------------------------------------------------------------------------------------------------

    def _make(self, folder: Path) -> None:
        if folder in self._made:
            return
        try:
            board_of(folder).make()
        except OSError as error:
            raise storage_error(error, folder, "make the folder of the tasks") from None
        self._made.add(folder)

    def _is_held(self, job: Path, claim: Claim) -> bool:
        """Whether somebody renews a claim, as far as could be seen by now."""
        if claim.state != "held" or claim.is_dead:
            return False
        seen, now = (claim.number, *claim.seen), time.monotonic()
        first = self._seen.get(job)
        if first is None or first[0] != seen:
            self._seen[job] = first = seen, now
        return now - first[1] < claim.lease

    def _hold(self, job: Path) -> None:
        """Make sure of a claim. If it was not renewed for long, others may want the next one, which one of them gets,
        or this process.

        Raises:
            Lost: another has it.
        """
        own = self._own[job]
        is_sure = time.monotonic() - own.renewed < self._lease / 2
        if self._is_in_force(job, own) and (is_sure or self._add(job, own.name, own.number + 1)):
            # all claims of a job are removed when it is finished, so the one before the last may be gone
            if is_sure or self._is_made(job, own.number):
                return
        raise Lost(
            f"job {own.name!r} belongs to another process now",
            where=str(job.parent),
            found="this one did not renew its claim in time",
            hint="a longer --lease, if the machine or its storage stands still now and then",
        )

    def _is_in_force(self, job: Path, own: _Own) -> bool:
        """Whether a claim of this process is still there, and no later one."""
        try:
            return own.file.is_there() and not self._is_made(job, own.number + 1)
        except OSError as error:
            raise storage_error(error, job.parent, "see who is at work") from None

    def _is_made(self, job: Path, number: int) -> bool:
        try:
            return _board(job).read(_name(job, number), _MOST) is not None
        except OSError as error:
            raise storage_error(error, job.parent, "see who is at work") from None

    def _add(self, job: Path, name: str, number: int) -> bool:
        with self._lock, held():
            now = time.monotonic()
            try:
                made = _board(job).put_first(_name(job, number), self._said("held", ""))
            except OSError as error:
                raise storage_error(error, job.parent, "claim a job") from None
            if made is None:
                return False
            before = self._own.get(job)
            self._own[job] = _Own(name, number, made, now)
            if before is not None:
                before.file.close()
            return True

    def _said(self, state: str, why: str) -> bytes:
        said: dict[str, Any] = {"state": state, "host": socket.gethostname(), "process": os.getpid()}
        said |= {"boot": _boot(), "lease": self._lease, "why": why[:_MOST_WHY]}
        said |= {"at": time.time(), "nonce": secrets.token_hex(8)}  # no two claims have the same bytes
        return json.dumps(said).encode() + b"\n"

    def _state(self, job: Path, state: str, why: str) -> None:
        with self._lock:
            own = self._own.get(job)
            if own is None:
                return
            try:
                if self._is_in_force(job, own):
                    _board(job).put(_name(job, own.number), self._said(state, why), sync=False)
            except OSError as error:
                raise storage_error(error, job.parent, "note what became of a job") from None
            finally:
                self._end(job)

    def _end(self, job: Path) -> int:
        """The claim is not this process's any more; gives its number, 0 if it was not."""
        own = self._own.pop(job, None)
        if own is None:
            return 0
        own.file.close()
        return own.number

    def _renew(self) -> None:
        """Renew all claims, again and again."""
        while not self._ended.wait(self._lease / _RENEWALS):
            with self._lock:
                for job, own in list(self._own.items()):
                    now = time.monotonic()
                    with suppress(OSError, StorageError):  # what is not renewed is found out by `check`
                        if now - own.renewed < self._lease / 2:
                            own.file.renew(self._said("held", ""))
                            own.renewed = now
                        else:
                            self._hold(job)
