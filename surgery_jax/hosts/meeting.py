"""How the processes of a run come together: all connect to process 0, which lets in who belongs to the run.

Before anything that a connection says is understood, it must prove that it knows the secret of the run, in bytes of
fixed number: process 0 sends a challenge, and gets back who the other is, a challenge for itself, and a proof over all
of that. Process 0 does so with all connections at once, and gives none of them more than a moment, so that nothing that
else comes to the port holds up the run. From then on the connection carries messages (see `links`); the run begins when
process 0 says so to all.
"""

from __future__ import annotations

import hmac
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..core.errors import StorageError, listing
from ..core.interrupts import check_interrupted

__all__ = ["MeetingPlace", "Patience"]

HANDSHAKE_S = 2.0  # for a connection to prove that it belongs to the run
LOOK_S = 0.25  # between looks at the clock and at signals
SILENT_S = 2.0  # before a process says whom it waits for
AGAIN_S = 10.0  # before it says so again, if it is others by then
MOST_WAITING = 1 << 20  # bytes of a message before the run

NAME = b"surgery_jax/2".ljust(16, b"\0")
CHALLENGE_BYTES = PROOF_BYTES = 32
WELCOME = struct.Struct(f"!16s{CHALLENGE_BYTES}s")  # name, challenge
ANSWER = struct.Struct(f"!16sII64s{CHALLENGE_BYTES}s{PROOF_BYTES}s")  # name, rank, size, host, challenge, proof
VERDICT = struct.Struct(f"!B{PROOF_BYTES}s")
WELL, STRANGER, OTHER_SIZE, TAKEN = range(4)  # verdicts


@dataclass(frozen=True)
class MeetingPlace:
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

    def __init__(self, place: MeetingPlace, limit_s: float, notify: Callable[[str], None] | None = None) -> None:
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
