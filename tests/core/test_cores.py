"""Cores are counted as the process may use them, not as the machine has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from surgery_jax.core.cores import count_cores, usable_cores

THERE = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@pytest.fixture
def own_group(tmp_path: Path) -> Path:
    path = tmp_path / "cgroup"
    path.write_text("3:cpuset:/other\n0::/pod/box\n")
    return path


def limit(place: Path, text: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "cpu.max").write_text(text)


def test_without_a_limit_all_cores_of_the_affinity_count(tmp_path: Path, own_group: Path) -> None:
    limit(tmp_path / "groups" / "pod" / "box", "max 100000\n")
    assert count_cores(tmp_path / "groups", own_group) == THERE
    assert count_cores(tmp_path / "nowhere", tmp_path / "nothing") == THERE
    assert 1 <= usable_cores() <= THERE


@pytest.mark.parametrize("quota", [1, 50_000, 100_000])
def test_a_quota_counts_also_one_of_a_group_above_and_a_part_of_a_core_is_one(
    tmp_path: Path, own_group: Path, quota: int
) -> None:
    limit(tmp_path / "groups" / "pod", f"{quota} 100000\n")
    limit(tmp_path / "groups" / "pod" / "box", "900000 100000\n")
    assert count_cores(tmp_path / "groups", own_group) == 1


@pytest.mark.skipif(THERE < 2, reason="needs two cores")
def test_a_core_and_a_half_are_two(tmp_path: Path, own_group: Path) -> None:
    limit(tmp_path / "groups" / "pod" / "box", "150000 100000\n")
    assert count_cores(tmp_path / "groups", own_group) == 2


@pytest.mark.parametrize("text", ["", "100000", "0 0", "x y", "-1 100000", "\0"])
def test_a_limit_that_cannot_be_understood_leaves_at_least_one(tmp_path: Path, own_group: Path, text: str) -> None:
    limit(tmp_path / "groups" / "pod" / "box", text)
    assert count_cores(tmp_path / "groups", own_group) in (1, THERE)


@pytest.mark.parametrize("name", ["0::/../../elsewhere", "0::/../pod", "", "0::/"])
def test_a_group_that_lies_outside_of_what_is_seen_says_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "groups").mkdir()
    (tmp_path / "cgroup").write_text(name)
    assert count_cores(tmp_path / "groups", tmp_path / "cgroup") == THERE


@pytest.mark.skipif(sys.platform != "linux", reason="affinity can be set on Linux")
def test_a_process_that_is_held_to_one_core_counts_one() -> None:
    asked = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from surgery_jax.core.cores import usable_cores;"
        "from surgery_jax.execute.reservations import default_workers;"
        "print(usable_cores(), default_workers())"
    )
    found = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["1", "4"]
