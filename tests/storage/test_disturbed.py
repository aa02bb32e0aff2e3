"""Whenever a process is killed or a call fails, what was there or what is new is there; nothing is left for good."""

import json
import os
import shutil
import signal
import subprocess
import sys
from errno import EIO
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, HERE / "faults.c", "-ldl"], check=True)
    return made


def disturbed(library: Path, root: Path, **settings: Any) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, HERE / "disturbed.py", root / "place", json.dumps(settings)],
        env=os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": f"{HERE.parent}:{HERE.parents[1]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(rows) > 4
    return rows


@pytest.mark.parametrize("place", ["file", "directory", "new"])
def test_a_process_that_is_killed_leaves_the_old_output_or_the_new_one(place: str, library: Path, root: Path) -> None:
    rows = disturbed(library, root, place=place, signal=signal.SIGKILL)
    for row in rows:
        assert row["is_old"] or row["is_new"], row
        assert (row["again"], row["is_new_then"], row["hidden_then"]) == (0, True, []), row
    assert {row["ended"] for row in rows} == {-signal.SIGKILL}
    assert {True} == {any(row[which] for row in rows) for which in ("is_old", "is_new")}


@pytest.mark.parametrize("place", ["file", "directory", "new", "working directory"])
@pytest.mark.parametrize("lacks", [0, 1])
def test_what_a_killed_process_had_moved_away_is_put_back(place: str, lacks: int, library: Path, root: Path) -> None:
    for row in disturbed(library, root, place=place, signal=signal.SIGKILL, lacks=lacks):
        assert row["is_old"] or row["is_new"] or row["hidden"], row
        assert (row["again"], row["is_new_then"], row["hidden_then"]) == (0, True, []), row


@pytest.mark.parametrize("place", ["file", "directory", "new", "working directory"])
@pytest.mark.parametrize("lacks", [0, 1])
def test_a_call_that_fails_changes_nothing_or_does_not_matter(
    place: str, lacks: int, library: Path, root: Path
) -> None:
    for row in disturbed(library, root, place=place, errno=EIO, lacks=lacks):
        assert row["is_new" if row["ended"] == 0 else "is_old"], row
        assert (row["again"], row["is_new_then"]) == (0, True), row
        assert row["ended"] == 0 or "Input/output error" in row["told"]


def test_what_cannot_be_put_back_is_told_after_what_went_wrong_first(library: Path, root: Path) -> None:
    rows = disturbed(library, root, place="directory", errno=EIO, lacks=1, all=1)
    torn = [row for row in rows if not row["is_old"] and not row["is_new"]]
    assert torn
    for row in torn:
        first, second = row["told"].split("cannot put back what was there before: Input/output error")
        assert "cannot publish it: Input/output error" in first
        assert f"it is kept in {row['hidden'][0]}" in second
    for row in rows:
        assert (row["again"], row["is_new_then"], row["hidden_then"]) == (0, True, []), row


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path
