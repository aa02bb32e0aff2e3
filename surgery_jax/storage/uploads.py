"""Outputs at places other than the local one: files are created under hidden names, written, and appear one by one.

Such places cannot exchange directories. What names the files of an old checkpoint goes first, files that the new one
does not have go last, and in between the new ones come in the order of the layout: the weights, the index, documents,
proofs. So others see no index before all is there. From before the first to after the last of these, a place that can
marks the directory as one that is not whole, and readers of ours refuse it. If publishing fails half way, what has
appeared is removed again, but files that it replaced are gone.
"""

from __future__ import annotations

import secrets
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ..core.errors import StorageError
from ..core.interrupts import held
from .base import LaidFile, Layout
from .files import storage_error
from .formats import OutputPlan
from .laying import lay
from .places.base import MARKER
from .places.found import is_local, locate, place_of
from .proofs import proofs_in
from .publish import Staging, StagingAddress
from .stages import Begun
from .targets import check_target

__all__ = ["Upload", "open_staging"]


def open_staging(
    plan: OutputPlan,
    layout: Layout,
    told: StagingAddress | None = None,
    *,
    overwrite: bool = True,
    begun: Begun | None = None,
) -> Staging:
    """An output that is being written, wherever it lies; the arguments are those of `Staging`.

    Raises:
        StorageError: something is in the way, or the place refuses; nothing is left behind.
    """
    if is_local(plan.path):
        return Staging(plan, layout, told, overwrite=overwrite, begun=begun)
    return Upload(plan, layout, told, overwrite=overwrite)


_AT_ONCE = 16  # files that appear at the same time


class Upload(Staging):
    """An output at a place that knows single files only."""

    is_on_disk = False

    def __init__(
        self, plan: OutputPlan, layout: Layout, told: StagingAddress | None = None, *, overwrite: bool = True
    ) -> None:
        """Create all files in their full length; or write to those that another process has created."""
        self.plan, self.layout = plan, layout
        self._final = locate(plan.path)
        self._place = place_of(plan.path)
        self._stage = None
        self.renewed = set()
        self._finished = False
        self._old: list[str] = []  # what an old checkpoint has, what names its files first
        self._changed = False  # whether something of it is gone
        self._created: dict[str, str] = {}  # names below the output and where they are until they are published
        self._appeared: list[str] = []
        self._marker: bool | None = None  # whether the directory had one, once it is marked
        if told is not None:
            self._built = locate(told["stage"])
            return
        above = self._final.parent if len(self._final.parts) > 2 else self._final
        self._built = above / f".{self._final.name[:40]}.surgery-{secrets.token_hex(4)}"
        try:
            check_target(plan, overwrite, layout.documents)
            old = [*plan.format.stale(self._final), *proofs_in(self._final)] if layout.is_directory else []
            self._old = list(dict.fromkeys(file for path in old for file in self._files(path)))
            for file in layout.files:
                self._create(file)
        except OSError as error:
            self.abort()
            raise storage_error(error, plan.path, "write there") from None
        except BaseException:
            self.abort()
            raise

    def _files(self, path: Path) -> list[str]:
        """What a path stands for: a file, or all that are below a directory."""
        if not path.is_dir():
            return [str(path)]
        return [f"{path}/{name}" for name in self._place.below(str(path))]

    def _create(self, file: LaidFile) -> None:
        self._created[file.name] = str(self._built / file.name if file.name else self._built)
        lay(
            self._created[file.name],
            file,
            self._named(file.name),
            is_revised=file.is_revised or file.encode is not None,
        )

    def tell(self) -> StagingAddress:
        """What another process must know to write here too."""
        return {"stage": str(self._built), "parents": []}

    def release(self) -> None:
        """Leave everything to the process that publishes."""
        self._created.clear()

    def add(self, name: str, text: str) -> str:
        """Put one more file beside those of the layout of a directory; where it is until it is published."""
        try:
            data = text.encode()
            self._create(LaidFile(name, len(data), ((0, data),)))
        except OSError as error:
            raise storage_error(error, self.plan.path, f"write {name}") from None
        return str(self._built / name)

    def finish(self, sync: bool = False) -> None:
        """All bytes are in place: let the format complete its files."""
        try:
            if self.layout.finish is not None and not self._finished:
                for name, content in self.layout.finish(self._built):
                    self._create(LaidFile(name, len(content), ((0, content),)))
            for staged in self._created.values():
                self._place.settle(staged)
            self._mark()
        except OSError as error:
            raise storage_error(error, self.plan.path, "complete it") from None
        self._finished = True

    def _mark(self) -> None:
        """Say that the directory is not whole, before anything in it changes."""
        if self._marker is None and self.layout.is_directory:
            self._marker = self._place.stat(f"{self._final}/{MARKER}") is not None
            self._place.mark(str(self._final), is_whole=False)

    def finished_files(self) -> dict[str, Path]:
        """The files of a finished output: where they will be, and where they are until then."""
        return {self._named(name): locate(staged) for name, staged in sorted(self._created.items())}

    def _named(self, name: str) -> str:
        return str(self._final / name if name else self._final)

    def staying(self) -> dict[str, Path]:
        """Nothing is known of it: what lies below a name may be very much."""
        return {}

    def links(self) -> list[str]:
        """There are none."""
        return []

    def _prepare(self, sync: bool, fresh: Set[Path]) -> None:
        """Nothing: what stays of the old directory stays where it is."""

    def _publish(self, sync: bool, fresh: Set[Path]) -> None:
        """Let the files appear, and say that all are there."""
        try:
            new = {self._named(name) for name in self._created}
            for path in self._old[:1]:
                self._changed = True
                self._place.remove(path)
            self._changed = self._changed or bool(self._old)
            weights = {self.layout.files[number].name for number, _ in self.layout.places.values()}
            with ThreadPoolExecutor(_AT_ONCE, "surgery-publish") as pool:  # they wait for the store
                list(pool.map(self._appear, [name for name in self._created if name in weights]))
            for name in self._created:
                if name not in weights:
                    self._appear(name)
            for path in self._old[1:]:
                if path not in new:
                    self._place.remove(path)
            if self._marker is not None:
                self._place.mark(str(self._final), is_whole=True)
        except OSError as error:
            raise storage_error(error, self.plan.path, "publish it") from None

    def _appear(self, name: str) -> None:
        self._place.publish(self._created[name], self._named(name))
        self._appeared.append(self._named(name))

    def _take_back(self) -> StorageError | None:
        """Remove what has appeared; a directory that something is missing from now stays marked."""
        with suppress(OSError):
            for path in self._appeared:
                self._place.remove(path)
            if self._marker and not self._changed:
                self._place.mark(str(self._final), is_whole=True)
            elif self._marker is False and not self._changed:
                self._place.remove(f"{self._final}/{MARKER}")
        self._appeared.clear()
        self._marker = None
        return None

    def _clean(self) -> None:
        self._marker = None
        self._appeared.clear()
        self._created.clear()

    def abort(self, *, keep: bool = False) -> StorageError | None:
        """Remove everything that is not committed; does nothing the second time. Nothing is kept: nobody could tell
        later that this process is dead."""
        with held():
            self._take_back()
            for staged in self._created.values():
                with suppress(OSError):
                    self._place.remove(staged)
            self._created.clear()
        return None
