"""The jobs of a batch as a pass sees them: what they read is opened once, and what they read and write is known."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import PlanError
from ..execute.options import Options
from ..graph.node import Graph
from ..language.jobs import Job
from ..storage import formats
from ..storage.base import Checkpoint, Single
from ..storage.documents import DocumentText
from ..storage.identity import Identity
from .compiled import StorageOutside
from .finished import FileState, states_of
from .ledger import Ready

__all__ = ["Conflicts", "FilesNow", "JobHeaders", "JointPass"]

MAX_FILES = 200  # of the outputs of a pass: they are open all the time
MAX_NODES = 500_000  # of the graph of a pass, some hundred bytes each
DOCUMENT = "\0document "  # before the path of an input that is a file as it is, whatever it looks like


class JobHeaders(StorageOutside):
    """The outside world of the jobs of a pass: headers are read once, and the files of each job are known."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.opened: dict[str, tuple[FileState, ...]] = {}  # by the current job, before their headers were read
        self._known: dict[str, tuple[Checkpoint, tuple[FileState, ...]]] = {}

    def open_checkpoint(self, path: str) -> Checkpoint:
        key = os.path.realpath(path)
        if key not in self._known:
            found = super().open_checkpoint(path)
            self._known[key] = found, states_of(found.files)
        found, self.opened[path] = self._known[key]
        return found

    def open_single(self, path: str, format: str) -> Single:
        self.opened[path] = states_of([path])
        return super().open_single(path, format)

    def open_plan(self, path: str) -> Any:
        self.opened[path] = states_of([path])
        return super().open_plan(path)

    def read_document(self, path: str) -> DocumentText:
        self.opened[DOCUMENT + path] = states_of([path])
        return super().read_document(path)

    def identify(self, path: str) -> dict[str, Identity]:
        self.opened[DOCUMENT + path] = states_of([path])
        return super().identify(path)


class JointPass:
    """Jobs that are run together."""

    def __init__(self, options: Options) -> None:
        self.graph = Graph()
        self.headers = JobHeaders(options)
        self.jobs: list[Ready] = []

    @property
    def is_full(self) -> bool:
        """Whether more jobs would take too much at once."""
        files = sum(len(layout.files) for ready in self.jobs for _, layout in ready.compiled.outputs)
        return files >= MAX_FILES or self.graph.size >= MAX_NODES


class FilesNow:
    """The files of inputs as they are now; those of a base are looked up once for all jobs."""

    def __init__(self) -> None:
        self._known: dict[str, Sequence[str]] = {}

    def of(self, path: str) -> Sequence[str]:
        """Those of one input.

        Raises:
            StorageError: it cannot be read.
        """
        if path.startswith(DOCUMENT):
            return (path.removeprefix(DOCUMENT),)
        if path not in self._known:
            place, _ = formats.split_part(path)
            self._known[path] = (place,) if formats.is_one_file(place) else formats.open_checkpoint(path).files
        return self._known[path]


class Conflicts:
    """Which files the jobs of a batch read and write."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._writers: dict[str, int] = {}
        self._readers: dict[str, int] = {}

    def note(self, number: int, outputs: Sequence[str], inputs: Mapping[str, Sequence[FileState]]) -> None:
        """Note what a job reads and writes; jobs that share a pass cannot read what others of it write.

        Raises:
            PlanError: another job writes the same, or one reads what the other writes.
        """
        mark = self._jobs[number].mark
        writes = [os.path.realpath(path) for path in outputs]
        reads = {os.path.realpath(path) for path in inputs if not path.startswith(DOCUMENT)}
        for states in inputs.values():
            for state in states:
                file = os.path.realpath(state[0])
                reads |= {file, str(Path(file).parent)}
        for table, paths, what in (
            (self._writers, writes, "writes what {} writes: {}"),
            (self._readers, writes, "writes what {} reads: {}"),
            (self._writers, reads, "reads what {} writes: {}"),
        ):
            for path in paths:
                other = table.get(path, number)
                if other != number:
                    told = what.format(f"job {self._jobs[other].name!r}", os.path.relpath(path))
                    raise PlanError(
                        f"job {self._jobs[number].name!r} {told}",
                        where=mark,
                        hint="jobs of a batch are independent: give each its own output, with ${job}",
                    )
        for path in writes:
            self._writers.setdefault(path, number)
        for path in reads:
            self._readers.setdefault(path, number)
