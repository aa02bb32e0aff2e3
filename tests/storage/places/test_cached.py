"""Ranges of remote inputs that are kept on this machine."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import assert_same_bits, read_checkpoint
from safetensors.numpy import save
from servers import Files

from surgery_jax import Options, plan_of, run
from surgery_jax.cli.main import main
from surgery_jax.storage.places.cached import BLOCK, RangeCache, keep_ranges
from surgery_jax.storage.places.looking import StoredObject

TENSORS = {f"t.{n}": np.random.default_rng(n).normal(size=(400, 500)).astype(np.float32) for n in range(3)}
CONTENT = np.random.default_rng(0).integers(0, 256, 5 * BLOCK + 77, np.uint8).tobytes()
OBJECT = StoredObject(len(CONTENT), '"1"')


@pytest.fixture(autouse=True)
def nowhere() -> Any:
    yield
    keep_ranges(None, 0)


class Store:
    """Counts what is read of it."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.calls, self.nbytes = content, 0, 0

    def read(self, offset: int, targets: Any) -> None:
        self.calls += 1
        for target in targets:
            target[:] = self.content[offset : offset + target.nbytes]
            offset, self.nbytes = offset + target.nbytes, self.nbytes + target.nbytes


def read(cache: RangeCache, store: Store, offset: int, *sizes: int, version: StoredObject = OBJECT) -> bytes:
    targets = [bytearray(size) for size in sizes]
    cache.read("s3://b/k", version, offset, [memoryview(target) for target in targets], store.read)
    return b"".join(targets)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(CONTENT) - 1), st.lists(st.integers(1, 2 * BLOCK), min_size=1, max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_any_ranges_come_as_they_are_at_the_store(tmp_path_factory: Any, ranges: list[tuple[int, list[int]]]) -> None:
    cache, store = RangeCache(tmp_path_factory.mktemp("c"), 1 << 40), Store()
    for offset, sizes in ranges * 2:
        left = len(CONTENT) - offset
        wanted = [min(size, left // len(sizes)) for size in sizes]
        assert read(cache, store, offset, *wanted) == CONTENT[offset : offset + sum(wanted)]
    assert store.nbytes <= len(CONTENT)


def test_blocks_that_are_missing_side_by_side_are_one_request(tmp_path: Path) -> None:
    cache, store = RangeCache(tmp_path, 1 << 40), Store()
    read(cache, store, 2 * BLOCK + 5, 10)
    read(cache, store, 0, len(CONTENT))
    assert (store.calls, store.nbytes) == (3, len(CONTENT))


def test_another_version_and_what_was_damaged_are_fetched_again(tmp_path: Path) -> None:
    cache, store = RangeCache(tmp_path, 1 << 40), Store()
    read(cache, store, 0, BLOCK)
    other = Store(CONTENT[::-1])
    assert read(cache, other, 0, BLOCK, version=StoredObject(len(CONTENT), '"2"')) == CONTENT[::-1][:BLOCK]
    for number, file in enumerate(sorted(tmp_path.glob("??/*"))):
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] if number else whole[:-1] + bytes([whole[-1] ^ 1]))
    assert read(cache, store, 0, BLOCK) == CONTENT[:BLOCK]
    assert store.calls == 2


def test_no_more_is_kept_than_allowed_and_what_was_used_last_stays(tmp_path: Path) -> None:
    limit = 4 * (BLOCK + 4)
    cache, store = RangeCache(tmp_path, limit), Store()
    for number in (0, 1, 2, 0, 3, 0, 4):
        read(cache, store, number * BLOCK, 9)
        assert sum(file.stat().st_size for file in tmp_path.glob("??/*")) <= limit
    calls = store.calls
    read(cache, store, 0, 9)
    assert store.calls == calls


def test_several_may_share_a_directory(tmp_path: Path) -> None:
    caches = [RangeCache(tmp_path, 3 * BLOCK) for _ in range(2)]  # as processes have them, with too little room
    wrong: list[int] = []

    def go(number: int) -> None:
        for at in np.random.default_rng(number).integers(0, len(CONTENT) - BLOCK, 12).tolist():
            if read(caches[number % 2], Store(), at, BLOCK) != CONTENT[at : at + BLOCK]:
                wrong.append(at)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_run_reads_again_from_the_disk_and_never_what_has_changed(web: Files, tmp_path: Path) -> None:
    web.files["/m.safetensors"] = save(TENSORS)

    def go(name: str) -> int:
        web.asked.clear()
        plan = {"inputs": [f"m::{web.url}/m.safetensors"], "output": str(tmp_path / name)}
        run(plan_of(plan), Options(sync=False, receipt=False, cache=str(tmp_path / "kept")))
        ranges = [
            asked.headers["Range"].removeprefix("bytes=").split("-") for asked in web.asked if asked.method == "GET"
        ]
        return sum(int(last) - int(first) + 1 for first, last in ranges)

    assert go("one.safetensors") > 2_000_000
    assert go("two.safetensors") <= 2 * (256 << 10)  # the beginnings, which tell the version
    web.files["/m.safetensors"] = save({name: 2 * array for name, array in TENSORS.items()})
    go("three.safetensors")
    for name, array in TENSORS.items():
        assert_same_bits(read_checkpoint(tmp_path / "two.safetensors")[name], array)
        assert_same_bits(read_checkpoint(tmp_path / "three.safetensors")[name], 2 * array)
    assert (tmp_path / "kept").stat().st_mode & 0o77 == 0


def test_a_directory_that_cannot_be_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["convert", "a", str(tmp_path / "b"), "--cache", str(tmp_path / "file")]) == 3
    assert "keep ranges of remote inputs there" in capsys.readouterr().err
    assert main(["convert", "a", str(tmp_path / "b"), "--cache", "s3://bucket/kept"]) == 3
    assert "it is not on this machine" in capsys.readouterr().err
