"""JAX as this program uses it: which devices, where compiled functions are kept, how long compiling takes, and traces
of what devices do."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.caches import cache_folder
from ..core.errors import PlanError
from ..core.process import is_own

if TYPE_CHECKING:
    from .schedule import Schedule

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h

__all__ = ["CompileClock", "check_fits_here", "device_trace", "has_only_processors", "local_devices", "settle"]

# what makes JAX look for other devices than processors
PLUGINS = ("jax_plugins", "libtpu")
LIBRARIES = ("PJRT_NAMES_AND_LIBRARY_PATHS", "TPU_LIBRARY_PATH")
PLATFORMS = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")


def has_only_processors() -> bool:
    """Whether JAX, which takes a second to import, can know of no other devices than processors."""
    asked = {os.environ[name].lower() for name in PLATFORMS if os.environ.get(name)}
    if asked:
        return asked == {"cpu"}
    has_plugins = any(map(find_spec, PLUGINS)) or bool(entry_points(group="jax_plugins"))
    return not has_plugins and not any(map(os.environ.get, LIBRARIES))


def settle() -> None:
    """Prepare the process for computing, if it is our own."""
    if is_own():
        _keep_freed_memory()


def local_devices(count: int | None = None) -> list[Any]:
    """The first `count` devices of this process, all by default. If the process is our own, compiled functions are kept
    between runs.

    Raises:
        PlanError: there are fewer.
    """
    import jax

    CompileClock.watch()
    settle()
    if is_own():
        _keep_compiled_functions()
    found = jax.local_devices()
    if count is not None and count > len(found):
        raise PlanError(
            f"there are no {count} devices",
            expected=f"--devices of at most {len(found)}",
            found=", ".join(str(device) for device in found[:8]),
        )
    return list(found[:count])


def check_fits_here(work: Schedule) -> None:
    """As `check_fits`, with the devices that there are, if work is spread over them. Called before a run, since that
    imports JAX.

    Raises:
        BudgetError: a task cannot be granted what it needs.
        PlanError: there are fewer devices than are asked for.
    """
    from .fits import check_fits

    check_fits(work)
    if any(group.place == "mesh" for group in work.groups):
        check_fits(work, len(local_devices(work.limits.devices)))


def _keep_compiled_functions() -> None:
    """Let JAX keep what it compiles in a folder, unless it was told one already."""
    import jax

    config: Any = jax.config
    # before 0.10.2, XLA writes a page of warnings for every function for a CPU that it finds in the cache
    is_quiet = jax.__version_info__ >= (0, 10, 2) or jax.default_backend() != "cpu"
    if config.jax_compilation_cache_dir is None and is_quiet:
        folder = cache_folder("compiled")
        if folder is not None:
            config.update("jax_compilation_cache_dir", str(folder))
            config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _keep_freed_memory() -> None:
    """Let the C library use memory again instead of returning it to the system after every result.

    Results are a few MB each and die as soon as they are written; touching fresh memory for the next one costs more
    than computing it. Where the library is not glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 256 << 20), (M_ARENA_MAX, 1)):
            mallopt(parameter, value)


class CompileClock:
    """How long JAX traces and compiles in this process while the clock is entered, whoever asks for it.

    Does not import JAX: functions are compiled only after `local_devices`, which lets JAX tell the clocks that are
    entered by then. It tells nobody any more once the last of them is left.
    """

    _entered: ClassVar[list[CompileClock]] = []
    _is_told: ClassVar[bool] = False
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> CompileClock:
        with self._lock:
            self._entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._entered.remove(self)
            if CompileClock._is_told and not self._entered:
                import jax.monitoring

                CompileClock._is_told = False
                with suppress(AssertionError, ValueError):  # somebody has removed all listeners
                    jax.monitoring.unregister_event_time_span_listener(CompileClock.tell)

    @classmethod
    def watch(cls) -> None:
        """Have JAX tell the clocks that are entered when it traces or compiles something."""
        import jax.monitoring

        with cls._lock:
            if cls._entered and not cls._is_told:
                cls._is_told = True
                jax.monitoring.register_event_time_span_listener(CompileClock.tell)

    def add(self, start: float, end: float) -> None:
        """Count a span of time; spans may lie in each other, since functions are traced inside others."""
        self._spans.append((start, end))

    @classmethod
    def tell(cls, event: str, start_time: float, end_time: float, **kwargs: str | int) -> None:
        """What JAX calls."""
        if event.startswith("/jax/core/compile/"):
            for clock in tuple(cls._entered):
                clock.add(start_time, end_time)

    @property
    def seconds(self) -> float:
        """The time that the spans cover together."""
        total, until = 0.0, float("-inf")
        for start, end in sorted(self._spans):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total


@contextmanager
def device_trace(folder: str | None) -> Iterator[None]:
    """Let JAX record what the devices do, if a folder is given."""
    if folder is None:
        yield
        return
    import jax

    with jax.profiler.trace(folder, create_perfetto_trace=True):
        yield
