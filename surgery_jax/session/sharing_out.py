"""Which jobs of a batch are those of a task. The first of the tasks to ask settles it for all: what changes on the disk
between the start of one and the start of another lets no job fall between them."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..core.errors import StorageError
from ..language.jobs import Job
from ..language.plan import Plan
from ..storage.files import parse_json, storage_error
from ..storage.formats import place_of_input
from ..storage.notices import Board, board_of
from ..storage.places.found import is_local, locate
from .finished import folder_of
from .passes import output_paths
from .portions import JobLoad, divide
from .reads import paths_read

__all__ = ["loads_of", "shares_of"]

_MOST = 64 << 20  # bytes of an untrusted division


def loads_of(plans: Sequence[Plan | None]) -> list[JobLoad]:
    """What jobs have to read, from the sizes of the files of their inputs and of what their steps load; None is a job
    whose plan is wrong."""
    known: dict[str, tuple[str, int]] = {}
    loads = []
    for plan in plans:
        inputs: dict[str, int] = {}
        for path in () if plan is None else paths_read(plan):
            if path not in known:
                known[path] = _sized(path)
            place, nbytes = known[path]
            inputs[place] = nbytes
        loads.append(JobLoad(inputs))
    return loads


def shares_of(
    jobs: Sequence[Job], plans: Sequence[Plan | None], count: int, record: str, *, is_settled: bool
) -> list[list[int]]:
    """The numbers of the jobs of each of so many tasks. If it is to be settled, others find the same in the folder of
    the first job.

    Raises:
        StorageError: the folder cannot be used.
    """
    outputs = [[] if plan is None else output_paths(plan) for plan in plans]
    folder = folder_of(record, next(filter(None, outputs), []))
    names = json.dumps([[job.name for job in jobs], outputs]).encode()
    board, name = board_of(folder), f"shares-{count}-{hashlib.sha256(names).hexdigest()[:16]}.json"
    found = _read(board, name, len(jobs), count)
    if found is None:
        found = divide(loads_of(plans), count)
        if is_settled:
            nonce = secrets.token_hex(8)  # no two have the same bytes
            try:
                board.make()
                own = board.put_first(name, json.dumps({"shares": found, "nonce": nonce}).encode() + b"\n")
            except OSError as error:
                raise storage_error(error, folder / name, "write which jobs are whose") from None
            if own is not None:
                own.close()
            found = _read(board, name, len(jobs), count) or found
    return found


def _read(board: Board, name: str, num_jobs: int, count: int) -> list[list[int]] | None:
    """What another task has settled.

    Raises:
        StorageError: it cannot be read, or is something else.
    """
    path = board.folder / name
    try:
        note = board.read(name, _MOST)
    except OSError as error:
        raise storage_error(error, path, "read which jobs are whose") from None
    if note is None or not note.data.endswith(b"\n"):  # not written to its end
        return None
    told = parse_json(note.data, path, "which jobs are whose")
    shares = told.get("shares", ()) if isinstance(told, Mapping) else ()
    with suppress(TypeError):
        if len(shares) == count and sorted(job for share in shares for job in share) == list(range(num_jobs)):
            return [list(share) for share in shares]
    raise StorageError("does not say which jobs are whose", where=str(path), hint="remove the file")


def _sized(path: str) -> tuple[str, int]:
    """Where an input lies, and about how many bytes it has: nothing if that cannot be told, since its job will say
    what is wrong with it."""
    try:
        place = place_of_input(path)
        return os.path.realpath(place) if is_local(place) else place, _nbytes(locate(place))
    except (OSError, ValueError, StorageError):
        return path, 0


def _nbytes(path: Path) -> int:
    if path.is_dir():
        return sum(_nbytes(entry) for entry in path.iterdir() if not entry.name.startswith("."))
    if path.suffix == ".json" and path.is_file():  # an index, whose files lie beside it
        return sum(entry.stat().st_size for entry in path.parent.iterdir() if entry.is_file())
    if not path.exists() and path.parent.is_dir():  # a pattern
        return sum(entry.stat().st_size for entry in path.parent.glob(path.name) if entry.is_file())
    return path.stat().st_size
