"""Settings of the whole suite: how Hypothesis draws, what is a test, and what processes keep for each other. Devices
and the rest of the environment are the tests' own affair."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("local", deadline=None)  # the first call of a jitted function compiles it
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# Whoever began one of these last would be alone at the end.
LONGEST = (
    "merging/test_methods.py",
    "ops/test_contract.py",
    "execute/test_sharding.py",
    "plans/test_upcycling.py",
    "proof/test_registry.py",
    "execute/test_devices.py",
    "ops/test_lowrank.py",
    "test_docs.py",
    "execute/test_hosts.py",
    "asserts/test_values.py",
    "test_benchmarks.py",
    "storage/places/test_writing.py",
    "storage/test_orbax_mesh.py",
    "plans/test_library.py",
    "execute/test_stacks.py",
    "execute/test_meeting.py",
    "session/test_batch_tasks.py",
    "session/test_resume_hosts.py",
    "execute/test_runs.py",
)
QUIET_JAX = (0, 10, 2)  # before it, XLA writes a page of warnings for every function that it finds in the cache


def pytest_configure(config: pytest.Config) -> None:
    """Let the tests and the processes that they start keep their bytecode and what JAX compiles: half of the time
    would be spent on doing both again. What is compiled is found by its whole content, so that no change goes unseen;
    `--cache-clear` forgets it.
    """
    for library in ("OMP", "OPENBLAS"):  # there is a process for each core: more threads would only wait for each other
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    cache = getattr(config, "cache", None)  # none where the plugin is switched off
    if cache is not None and tuple(int(part) for part in version("jax").split(".")[:3]) >= QUIET_JAX:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("compiled")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        # of what another process is just writing; JAX then compiles it
        config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others stay in their order."""
    root = Path(__file__).parent
    order = {root / path: number for number, path in enumerate(LONGEST)}
    assert all(path.exists() for path in order), "LONGEST names a file that is not there"
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Helpers hold no tests; the search for examples would import them a second time, under another name."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None
