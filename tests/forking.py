"""The command `surgery-jax` in children of one process that has imported everything, since to import takes most of the
time of a short command.

Run as a program it is that process: `forking.py SOCKET`. A client sends what it was called with and its standard
streams, and ends with the exit code that comes back.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    said = json.dumps({"argv": sys.argv[2:], "cwd": os.getcwd(), "environment": dict(os.environ)}).encode()
    socket.send_fds(server, [len(said).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(said)
    code = server.recv(1)
sys.exit(code[0] if code else "the process that ran the command was lost")
"""


@contextmanager
def forking(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder for `PATH` with a program `surgery-jax` that is run by forked processes. Of the environment of a
    command all counts but what JAX reads when it is imported."""
    programs = folder / "programs"
    programs.mkdir()
    (folder / "client.py").write_text(CLIENT)
    address = folder / "socket"
    words = shlex.join([sys.executable, "-IS", str(folder / "client.py"), str(address)])
    (programs / "surgery-jax").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    (programs / "surgery-jax").chmod(0o700)
    server = subprocess.Popen(
        [sys.executable, __file__, str(address)], env=dict(environment), stdout=subprocess.PIPE, text=True
    )
    with server:
        try:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            yield programs
        finally:
            server.kill()


def serve(address: str) -> None:
    """Fork a child for each client, until the process is killed."""
    from faults.server import prepare

    prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        print("ready", flush=True)
        while True:
            client, _ = listening.accept()
            if not os.fork():
                listening.close()
                child(client)
            client.close()


def child(client: socket.socket) -> None:
    """Be the command that a client asks for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, streams, _, _ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as stream:
        asked = json.loads(stream.read(int.from_bytes(length, "big")))
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["surgery-jax", *asked["argv"]]
    code = 1
    try:
        from surgery_jax.cli.main import entry

        entry()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        client.sendall(bytes([code]))
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
