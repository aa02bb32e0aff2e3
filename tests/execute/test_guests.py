"""A call from Python leaves the program around it as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from running import Bench

# What a program can see of itself, before and after something was called, once that was called for the first time:
# modules that are imported, and the threads of JAX, stay.
PROGRAM = """
import ctypes, gc, json, locale, os, resource, signal, sys, threading, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, scipy.linalg
from jax._src import monitoring
import surgery_jax
from surgery_jax import Options, SurgeryError, load_plan

def blas():
    found = []
    for line in sorted({line.split()[-1] for line in open("/proc/self/maps") if "openblas" in line}):
        library = ctypes.CDLL(line)
        for name in ("scipy_openblas_get_num_threads64_", "scipy_openblas_get_num_threads", "openblas_get_num_threads"):
            if hasattr(library, name):
                found.append((line, getattr(library, name)()))
    return found

def umask():
    found = os.umask(0)
    os.umask(found)
    return found

def arenas():
    "How many heaps the C library makes for threads that ask at the same time: one if it was told so."
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.malloc_info.argtypes, libc.fclose.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
    barrier = threading.Barrier(4)
    def ask(_):
        barrier.wait()
        for held in [libc.malloc(1000) for _ in range(50)]:
            libc.free(held)
        barrier.wait()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    stream = libc.fopen(b"heaps.xml", b"w")
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    return Path("heaps.xml").read_text().count("<heap nr=") > 1

def state():
    return {
        "jax": {key: repr(value) for key, value in jax.config.values.items()},
        "x64": str(jnp.ones(1, np.float64).dtype),
        "listeners": [repr(listener) for listener in monitoring._event_time_span_listeners],
        "collector": [gc.isenabled(), gc.get_threshold(), len(gc.callbacks), gc.get_debug()],
        "set aside": [any(each is own for each in gc.get_objects()), gc.get_freeze_count() <= frozen],
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "blas": blas(),
        "limits": [resource.getrlimit(number) for number in range(16)],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": umask(),
        "numpy": np.geterr(),
        "warnings": [repr(each) for each in warnings.filters],
        "recursion": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "switching": sys.getswitchinterval(),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.unraisablehook)],
        "random": repr(np.random.get_state()),
        "several heaps": arenas(),
    }

def workers():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("surgery-")]

signal.signal(signal.SIGTERM, lambda *_: None)
own = [[]]
gc.freeze()
frozen = gc.get_freeze_count()
gc.set_threshold(701, 11, 12)
jnp.ones(3).block_until_ready()
run = lambda name: surgery_jax.run(load_plan(name), Options(overwrite=True, workers=3))
calls = {
    "run": lambda: run("good.yaml"),
    "failing run": lambda: run("failing.yaml"),
    "check": lambda: surgery_jax.check(load_plan("good.yaml"), Options(overwrite=True)),
    "failing check": lambda: surgery_jax.check(load_plan("wrong.yaml")),
    "apply": lambda: surgery_jax.apply(load_plan("good.yaml")),
    "inspect": lambda: surgery_jax.inspect("m.safetensors", stats=True),
    "spectrum": lambda: surgery_jax.spectrum("m.safetensors"),
    "diff": lambda: surgery_jax.diff("m.safetensors", "m.safetensors", eps=0.5),
    "batch": lambda: surgery_jax.batch("jobs.yaml", Options(overwrite=True), again=True),
}

def attempt(call):
    try:
        call()
        return "done"
    except SurgeryError as error:
        return type(error).__name__

def two():
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: attempt(lambda: run(name)), ["good.yaml", "other.yaml"]))

calls["two at once"] = two
ended, changed = {}, {}
before = state()
for name, call in calls.items():
    ended[name] = attempt(call)
    after = state()
    changed[name] = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
jax.jit(lambda x: x * 3 + 1)(jnp.ones(5)).block_until_ready()
kept = [str(path) for path in Path(os.environ["XDG_CACHE_HOME"]).rglob("*") if "digests" not in path.parts]
kept = [path for path in kept if os.path.isfile(path)]
def collected():
    gc.unfreeze(); gc.collect()
    return len(gc.get_objects())
few = collected()
for _ in range(5):
    attempt(calls["failing check"])
more = collected() - few
print(json.dumps([ended, changed, kept, workers(), more]))
"""

ENDED = {
    "run": "done", "failing run": "_Failed", "check": "done", "failing check": "Problems", "apply": "done",
    "inspect": "done", "spectrum": "done", "diff": "done", "batch": "done", "two at once": "done",
}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """How each call ended, what each changed, what was kept, what still works, and what is left of wrong plans."""
    root = tmp_path_factory.mktemp("guests")
    rng = np.random.default_rng(0)
    tensors = {f"h.{n}.w": rng.standard_normal((30, 20)).astype(np.float32) for n in range(200)}
    bench = Bench(root, m=tensors)
    low = {"phlora_": {"target": r"h\.[01]\.w", "rank": 2}}
    plans = {
        "good": [{"scale_": {"target": ".*", "by": 3}}, low],
        "other": [{"scale_": {"target": ".*", "by": 4}}, low],
        "failing": [low, {"assert": {"iszero": r"h\.0\.w"}}],
        "wrong": [{"copy": {"from": "(.*)", "to": r"new.\1"}}, {"delete": {"target": "nothing"}}],
    }
    for name, steps in plans.items():
        content = {"inputs": ["m::m.safetensors"], "transforms": steps, "output": f"{name}.safetensors"}
        (root / f"{name}.yaml").write_text(json.dumps(content))
    (root / "jobs.yaml").write_text("plan: good.yaml\njobs: [ { name: a, set: { output: a } } ]\n")
    assert bench.left()
    environment = os.environ | {"XDG_CACHE_HOME": str(root / "cache"), "JAX_PLATFORMS": "cpu"}
    environment["OPENBLAS_NUM_THREADS"] = "2"  # so that one that is left behind is told from it
    environment.pop("SURGERY_JAX_CACHE", None)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("call", ENDED)
def test_a_call_leaves_every_setting_of_the_process_as_it_was(told: list[dict[str, object]], call: str) -> None:
    assert told[0][call] == ENDED[call]
    assert told[1][call] == {}


def test_functions_of_the_program_are_kept_nowhere_and_no_worker_stays(told: list[object]) -> None:
    assert told[2] == [] and told[3] == []


def test_wrong_plans_leave_nothing_in_memory(told: list[object]) -> None:
    assert isinstance(told[4], int) and told[4] < 500


def test_the_command_line_keeps_compiled_functions(tmp_path: Path) -> None:
    bench = Bench(tmp_path, m={"w": np.ones(9, np.float32)})
    (tmp_path / "plan.yaml").write_text(json.dumps(bench.plan([{"scale_": {"target": "w", "by": 2}}])))
    environment = os.environ | {"SURGERY_JAX_CACHE": str(tmp_path / "kept"), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "surgery_jax", "run", "plan.yaml", "--quiet"]
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=tmp_path)
    assert any((tmp_path / "kept").iterdir())
