"""A place in the memory of this process: all that a new place takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from surgery_jax.storage.places.base import Identity, Place, Reader, Status, Writer


@dataclass
class _Bytes(Reader, Writer):
    content: bytearray
    identity: Identity | None = None

    def read_into(self, offset: int, target: memoryview) -> int:
        part = memoryview(self.content)[offset : offset + target.nbytes]
        target[: part.nbytes] = part
        return part.nbytes

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.content[offset : offset + memoryview(data).nbytes] = memoryview(data).cast("B")

    def truncate(self, size: int) -> None:
        del self.content[size:]


class MemoryPlace(Place):
    scheme = "mem"

    def __init__(self) -> None:
        self.generations = count()
        self.files: dict[str, tuple[bytearray, int]] = {}  # content and generation by path

    def list(self, path: str) -> Iterable[str]:
        return list({name[len(path) + 1 :].split("/")[0]: 0 for name in self.files if name.startswith(path + "/")})

    def stat(self, path: str) -> Status | None:
        if path in self.files:
            return Status(False, len(self.files[path][0]))
        return Status(True) if self.list(path) else None

    def open(self, path: str) -> Reader:
        if path not in self.files:
            raise FileNotFoundError(2, "No such object", path)
        content, generation = self.files[path]
        return _Bytes(content, Identity((path,), len(content), (generation,)))

    def create(self, path: str, size: int) -> None:
        self.files[path] = bytearray(size), next(self.generations)

    def target(self, path: str) -> Writer:
        return _Bytes(self.files[path][0])

    def publish(self, created: str, path: str) -> None:
        self.files[path] = self.files.pop(created)

    def remove(self, path: str) -> None:
        self.files.pop(path, None)
