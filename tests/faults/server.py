"""Runs command lines in children of a process that has imported everything, with a fault armed in each.

Started with `inject.c` preloaded. Reads one JSON object a line: argv, cwd, root, mode, number, value, timeout_s, out
(a folder for what is said), log (whether the names of calls are wanted), limit (bytes of address space, or 0),
after_s (when the signal `value` is sent, twice, or null), goes_on (whether what was not brought to the disk before is
remembered), is_cut (whether all such is lost once the child was killed, as `value` decides). Answers one a line: code
(negative for a signal, null for a timeout), count (calls), hit (name of the call), peak (bytes), cpu_s (seconds of
processor time).
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from rebooting import reboot

PAGE = 4096  # bytes
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Dirty(ctypes.Structure):
    """A range of a file that was written and not brought to the disk since, as `inject.c` has it."""

    _fields_ = (
        ("device", ctypes.c_ulong),
        ("inode", ctypes.c_ulong),
        ("begin", ctypes.c_long),
        ("end", ctypes.c_long),
        ("serial", ctypes.c_long),
    )


def preloaded() -> ctypes.CDLL:
    """`inject.c`, which only a process that was started with it has."""
    library = ctypes.CDLL(None)
    library.fault_count.restype = ctypes.c_long
    library.fault_hit.restype = ctypes.c_char_p
    library.dirty_count.restype = ctypes.c_long
    library.dirty_ranges.restype = ctypes.POINTER(Dirty)
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    return library


def prepare() -> None:
    """Import what a child would import, JAX too, without starting a thread or a device."""
    import importlib
    import pkgutil

    import jax  # noqa: F401

    import surgery_jax

    for module in pkgutil.walk_packages(surgery_jax.__path__, "surgery_jax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def child(request: dict[str, Any], library: ctypes.CDLL) -> None:
    from surgery_jax.cli.main import entry

    out = request["out"]
    for name, number in (("stdout", 1), ("stderr", 2)):
        descriptor = os.open(f"{out}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    log = os.open(f"{out}/calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if request["log"] else -1
    os.chdir(request["cwd"])
    for number in ASKING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
    if request["limit"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["limit"], request["limit"]))
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    code = 1
    try:
        library.fault_arm(request["root"].encode(), request["mode"], request["number"], request["value"], log)
        sys.argv = ["surgery-jax", *request["argv"]]
        entry()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        library.fault_disarm()
        sys.stderr.flush()
        os._exit(code)


def cut_power(library: ctypes.CDLL, root: str, seed: int) -> None:
    """What is not on the disk is lost: of each file the end, or pages in which there are zeros now; or anything, in
    what lies in hidden places, where a run must bear whatever it finds."""
    draw = random.Random(seed)
    lost: dict[tuple[int, int], list[tuple[int, int]]] = {}
    found = library.dirty_ranges()
    for number in range(library.dirty_count()):
        one = found[number]
        lost.setdefault((one.device, one.inode), []).append((one.begin, one.end))
    for journal in Path(root).rglob(".*.surgery-*/done-*"):
        reboot(journal)
    library.dirty_forget()
    for path in sorted(path for path in Path(root).rglob("*") if path.is_file()):
        status = path.lstat()
        ranges = lost.pop((status.st_dev, status.st_ino), [])
        how = draw.choice(["kept", "cut", "pages", "pages", "all"])
        if not ranges or how == "kept":
            continue
        with path.open("r+b") as stream:
            if how == "cut" and max(end for _, end in ranges) >= status.st_size:
                stream.truncate(draw.randrange(min(begin for begin, _ in ranges), status.st_size + 1))
                continue
            for begin, end in sorted(ranges):
                for at in range(begin - begin % PAGE, end, PAGE):
                    first, stop = max(begin, at), min(end, at + PAGE)
                    if how == "all" or draw.random() < 0.5:
                        stream.seek(first)
                        is_zero = ".surgery-" not in str(path) or draw.random() < 0.6
                        stream.write(bytes(stop - first) if is_zero else draw.randbytes(stop - first))


def serve() -> None:
    library = preloaded()
    prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if not request["goes_on"]:
            library.dirty_forget()
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)  # until the child is ready to be ended by one
        pid = os.fork()
        if not pid:
            child(request, library)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
        watch = os.pidfd_open(pid)
        is_sent = False
        for wait_s in () if request["after_s"] is None else (request["after_s"], 0.01):
            if not select.select([watch], [], [], wait_s)[0]:
                os.kill(pid, request["value"])
                is_sent = True
        ready, _, _ = select.select([watch], [], [], request["timeout_s"])
        if not ready:
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        os.close(watch)
        if request["is_cut"] and os.WIFSIGNALED(status):
            cut_power(library, request["root"], request["value"])
        answer = {
            "code": os.waitstatus_to_exitcode(status) if ready else None,
            "count": library.fault_count(),
            "hit": "any time" if is_sent else library.fault_hit().decode(),
            "peak": usage.ru_maxrss * 1024,
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
