"""The record of finished jobs: one user at a time, whole lines, and what cannot be found out is no change."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from surgery_jax.core.errors import StorageError
from surgery_jax.session.finished import FinishedJob, FinishedJobs, states_of


def test_one_who_is_refused_leaves_the_record_to_its_user(tmp_path: Path) -> None:
    path = tmp_path / "jobs.done"
    with FinishedJobs(str(path)):
        for _ in range(2):  # the second time, the file of the first user must still be there
            with pytest.raises(StorageError, match="another batch is at work"):
                FinishedJobs(str(path))
            assert path.exists()
    assert not path.exists()


def test_an_empty_record_that_somebody_else_has_replaced_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.done"
    with FinishedJobs(str(path)):
        path.unlink()
        path.write_text("")
    assert path.exists()


def entry_of(path: Path) -> FinishedJob:
    path.write_text("x")
    return FinishedJob({}, {str(path): states_of([str(path)])})


def test_a_file_that_cannot_be_looked_at_has_not_changed(tmp_path: Path) -> None:
    entry = entry_of(tmp_path / "out")
    assert entry.holds(lambda path: ())
    (tmp_path / "out").unlink()
    assert not entry.holds(lambda path: ())
    (tmp_path / "out").symlink_to("out")  # any error but that it is missing: here, a link to itself
    with pytest.raises(StorageError, match="cannot find out whether it has changed"):
        entry.holds(lambda path: ())
    with pytest.raises(StorageError, match="cannot find out whether it has changed"):
        states_of([str(tmp_path / "out")])


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_half_a_line_that_was_written_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "jobs.done"
    entry = entry_of(tmp_path / "out")
    with FinishedJobs(str(path)) as finished:
        finished.add({Path("one"): ("1", entry)}, sync=False)
        length = path.stat().st_size
        with largest_file(length + 20), pytest.raises(StorageError, match="cannot write the record"):
            finished.add({Path("two"): ("2", entry)}, sync=False)
        assert path.stat().st_size == length
        finished.add({Path("three"): ("3", entry)}, sync=False)
    with FinishedJobs(str(path)) as finished:
        assert list(finished.entries) == ["one", "three"]


def test_zeros_that_a_cut_of_power_left_of_a_line_are_cut_off_and_a_file_of_somebody_else_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "jobs.done"
    entry = entry_of(tmp_path / "out")
    with FinishedJobs(str(path)) as finished:
        finished.add({Path("one"): ("1", entry)}, sync=True)
    whole = path.read_bytes()
    half = whole[: len(whole) // 2]
    for lost, kept in ((bytes(100), b""), (whole + bytes(90), whole), (whole + half + bytes(9), whole)):
        path.write_bytes(lost)
        with FinishedJobs(str(path)) as finished:
            assert list(finished.entries) == (["one"] if kept else [])
            assert path.read_bytes() == kept
            finished.add({Path("two"): ("2", entry)}, sync=True)
    alien = bytes(20) + b"mine"
    path.write_bytes(alien)
    with pytest.raises(StorageError, match="not a record of finished jobs"):
        FinishedJobs(str(path))
    assert path.read_bytes() == alien
