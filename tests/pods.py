"""Processes that share a run, as tests start, disturb and watch them; and strangers that come to their port."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Signals that the shell of the tests ignores would be ignored in the processes too.
BECOME = (
    "import os, signal, sys; [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM)]; "
    "os.execv(sys.executable, [sys.executable, '-m', 'surgery_jax', *sys.argv[1:]])"
)


PORTS = range(10_000, 32_000)  # below those that systems hand out by themselves, which may be taken any time
DRAWN = random.Random(os.getpid())  # of each process of the tests another one


def free_port() -> int:
    """A port that nobody listens at, and that other processes of the tests hardly ask for."""
    while True:
        port = DRAWN.choice(PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_for(condition: Callable[[], Any], limit_s: float = 30, what: str = "") -> Any:
    """What the condition gives, once that is true."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {limit_s} s for {what or condition}"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str


class Pod:
    """`size` processes of one run of the command; each is started when a test says so. A context that leaves none.

    Without `place` they are not told who they are.
    """

    def __init__(
        self,
        size: int,
        *words: Any,
        cwd: Path,
        devices: int = 1,
        place: bool = True,
        verb: str = "run",
        **variables: str,
    ) -> None:
        self.size = size
        self.port = free_port()
        self.cwd = cwd
        self._verb = verb
        silent = {"run": ["--no-summary"], "replay": ["--quiet"]}.get(verb, [])
        self._words = [*map(str, words), *silent, "--no-sync", "--distributed"]
        self._place = place
        flags = f"--xla_force_host_platform_device_count={devices}"
        self._environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **variables}
        self._texts: dict[int, tuple[Any, Any]] = {}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(
        self, *ranks: int, more: Sequence[str] = (), cwd: Path | None = None, plan: Path | None = None, **variables: str
    ) -> Pod:
        """Start processes; all of them if none is named. They differ from the others in what else is given."""
        for rank in ranks or range(self.size):
            place = ["--coordinator", f"127.0.0.1:{self.port}", "--num-processes", str(self.size)]
            place = [*place, "--process-id", str(rank)] if self._place else []
            words = [str(plan), *self._words[1:]] if plan else self._words
            command = [sys.executable, "-c", BECOME, self._verb, *words, *place, *more]
            out, err = self._texts[rank] = tempfile.TemporaryFile(), tempfile.TemporaryFile()
            environment = {**self._environment, **variables}
            self.processes[rank] = subprocess.Popen(
                command, stdout=out, stderr=err, cwd=cwd or self.cwd, env=environment
            )
        return self

    def said(self, rank: int) -> str:
        """What a process wrote to stderr until now."""
        file = self._texts[rank][1]
        return os.pread(file.fileno(), 1 << 20, 0).decode()

    def signal(self, rank: int, number: int) -> None:
        self.processes[rank].send_signal(number)

    def end(self, rank: int, within_s: float = 30) -> Ended:
        """How a process ends, which it must within that time."""
        code = self.processes[rank].wait(timeout=within_s)
        out, err = (os.pread(file.fileno(), 1 << 24, 0).decode() for file in self._texts[rank])
        return Ended(code, out, err)

    def ends(self, within_s: float = 30) -> list[Ended]:
        """How all of them end, by rank."""
        return [self.end(rank, within_s) for rank in sorted(self.processes)]

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        for texts in self._texts.values():
            for file in texts:
                file.close()


def write_endless(place: Path) -> Path:
    """A plan that reads more than any test can wait for, of zeros that take no room."""
    nbytes = 1 << 37
    table = {
        "big": {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [0, nbytes]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [nbytes, nbytes + 8]},
    }
    text = json.dumps(table).encode()
    with (place / "long.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + nbytes + 8)
    steps = [{"assert": {"iszero": "big"}}, {"delete": {"target": "big"}}]
    plan = place / "plan.yaml"
    plan.write_text(json.dumps({"inputs": ["long.safetensors"], "transforms": steps, "output": "out.safetensors"}))
    return plan


class Stranger:
    """A connection to the port of a run that does not belong to it."""

    KINDS = ("silent", "closes", "http", "nested json", "long message", "zeros", "half an answer")

    def __init__(self, port: int, kind: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        nested = b"[" * 200_000
        said = {
            "http": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
            "nested json": b"\x00" + (1).to_bytes(4, "big") + len(nested).to_bytes(8, "big") + nested,
            "long message": b"\x02" + bytes(4) + b"\xff" * 8,
            "zeros": bytes(1 << 16),
            "half an answer": b"surgery_jax/2".ljust(16, b"\0") + bytes(50),
        }.get(kind, b"")
        try:
            self.socket.sendall(said)
        except OSError:  # it has been turned away meanwhile
            pass
        if kind == "closes":
            self.socket.close()

    def drip(self, nbytes: int = 1) -> None:
        """Send the next bytes of what never becomes an answer."""
        self.socket.sendall(bytes(nbytes))

    def is_turned_away(self) -> bool:
        """Whether the connection ends by itself, read to its end."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()
