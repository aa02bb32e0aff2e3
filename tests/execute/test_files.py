"""Input files are read the same, whether their bytes are in memory or on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery_jax.core.errors import StorageError
from surgery_jax.io.buffers import OpenFiles, aligned
from surgery_jax.io.pace import MIN_DIRECT, WINDOW, Pace, cached_room
from surgery_jax.io.pagecache import is_cached

SIZE = 5 * MIN_DIRECT + 123


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("files") / "bytes"
    content = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    path.write_bytes(content.tobytes())
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path, content


def forget(path: Path) -> None:
    """Have the system drop the file from memory, as far as it does so."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, SIZE), st.integers(0, SIZE), st.sampled_from([1 << 19, 1 << 22]), st.booleans())
def test_any_range_arrives_from_the_disk_as_from_memory(
    stored: tuple[Path, np.ndarray], start: int, length: int, scratch: int, cold: bool
) -> None:
    path, content = stored
    length = min(length, SIZE - start)
    if cold:
        forget(path)
    target = np.zeros(length, np.uint8)
    files = OpenFiles()
    files.read(str(path), start, target, aligned(scratch))
    files.close()
    np.testing.assert_array_equal(target, content[start : start + length])


def test_a_file_that_ends_too_early_is_an_error_from_the_disk_too(stored: tuple[Path, np.ndarray]) -> None:
    path, _ = stored
    forget(path)
    with pytest.raises(StorageError, match="became shorter"):
        OpenFiles().read(str(path), SIZE - MIN_DIRECT, np.zeros(2 * MIN_DIRECT, np.uint8), aligned(1 << 20))


def test_what_was_just_read_is_in_memory_and_what_was_dropped_is_not(stored: tuple[Path, np.ndarray]) -> None:
    path, _ = stored
    path.read_bytes()
    with path.open("rb") as file:
        assert is_cached(file.fileno(), 0, SIZE)
        forget(path)
        if is_cached(file.fileno(), 0, SIZE):
            pytest.skip("this file system keeps files in memory, or the system does not tell")
        target = np.zeros(SIZE, np.uint8)
        OpenFiles().read(str(path), 0, target, aligned(1 << 20))
        assert not is_cached(file.fileno(), 0, SIZE), "reading past the page cache leaves it alone"


def test_the_faster_way_to_write_is_found_and_left_when_it_becomes_slow() -> None:
    time = 0.0
    pace = Pace(only_direct=False, clock=lambda: time)

    def write(windows: int, cached: float, direct: float) -> list[bool]:
        """The way of every write while a window takes so many seconds either way."""
        nonlocal time
        ways = []
        for _ in range(8 * windows):
            ways.append(pace.is_direct())
            time += (direct if ways[-1] else cached) / 8
            pace.note(ways[-1], WINDOW // 8)
        return ways

    first = write(4, cached=1.0, direct=2.0)
    assert 8 <= first.count(True) <= 10, "the other way is tried once"
    assert not any(write(4, cached=1.0, direct=2.0))
    assert write(8, cached=9.0, direct=2.0)[-40:] == [True] * 40
    assert all(Pace(only_direct=True).is_direct() for _ in range(3))


def test_what_the_page_cache_takes_is_what_the_system_says(tmp_path: Path) -> None:
    (tmp_path / "sys" / "vm").mkdir(parents=True)
    assert cached_room(tmp_path) == float("inf")
    (tmp_path / "meminfo").write_text("MemTotal:       200 kB\nMemAvailable:   100 kB\n")
    (tmp_path / "sys" / "vm" / "dirty_ratio").write_text("20\n")
    (tmp_path / "sys" / "vm" / "dirty_bytes").write_text("0\n")
    assert cached_room(tmp_path) == 20 << 10
    (tmp_path / "sys" / "vm" / "dirty_bytes").write_text("4096\n")
    assert cached_room(tmp_path) == 4096
