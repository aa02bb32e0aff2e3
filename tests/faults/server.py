"""Runs command lines in children of a process that has imported everything, with a fault armed in each.

Started with `inject.c` preloaded. Reads one JSON object a line: argv, cwd, root, mode, number, value, timeout_s, out
(a folder for what is said), log (whether the names of calls are wanted), limit (bytes of address space, or 0). Answers
one a line: code (negative for a signal, null for a timeout), count (calls), hit (name of the call), peak (bytes).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import traceback
from typing import Any


def preloaded() -> ctypes.CDLL:
    """`inject.c`, which only a process that was started with it has."""
    library = ctypes.CDLL(None)
    library.fault_count.restype = ctypes.c_long
    library.fault_hit.restype = ctypes.c_char_p
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    return library


def prepare(names: list[str]) -> None:
    """Import what a child would import, without starting a thread or a device."""
    import importlib
    import pkgutil

    import surgery_jax

    for module in pkgutil.walk_packages(surgery_jax.__path__, "surgery_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in names:
        importlib.import_module(name)


def child(request: dict[str, Any], library: ctypes.CDLL) -> None:
    from surgery_jax.cli.main import main

    out = request["out"]
    for name, number in (("stdout", 1), ("stderr", 2)):
        descriptor = os.open(f"{out}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    log = os.open(f"{out}/calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if request["log"] else -1
    os.chdir(request["cwd"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if request["limit"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["limit"], request["limit"]))
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    code = 1
    try:
        library.fault_arm(request["root"].encode(), request["mode"], request["number"], request["value"], log)
        code = main(request["argv"])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        library.fault_arm(b"/nowhere", 0, 0, 0, -1)
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    library = preloaded()
    prepare(sys.argv[1:])
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            child(request, library)
        watch = os.pidfd_open(pid)
        ready, _, _ = select.select([watch], [], [], request["timeout_s"])
        if not ready:
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        os.close(watch)
        answer = {
            "code": os.waitstatus_to_exitcode(status) if ready else None,
            "count": library.fault_count(),
            "hit": library.fault_hit().decode(),
            "peak": usage.ru_maxrss * 1024,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
