"""Outputs at places other than the local one: files are created under hidden names, written, and appear one by one.

Such places cannot exchange directories. What names the files of an old checkpoint goes first, files that the new one
does not have go last, and in between the new ones come in the order of the layout: the weights, the index, documents,
proofs. So others see no index before all is there. From before the first to after the last of these, a place that can
marks the directory as one that is not whole, and readers of ours refuse it. If publishing fails half way, what has
appeared is removed again, but files that it replaced are gone.

Several processes write the same files in parts: the one that creates a file begins its upload, the others send to that
upload the parts that they fill, and put aside what they have of parts whose other bytes come from elsewhere. Which of
them outlives the others ends the uploads and removes what any of them has put aside.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ..core.errors import StorageError
from ..core.interrupts import held, note_kept
from .base import LaidFile, Layout
from .continued import JOURNAL, BegunUpload, stage_prefix, write_journal
from .files import storage_error
from .formats import OutputPlan
from .journal import Finished
from .laying import write_known
from .places.base import MARKER, HandedPart
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
    begun: Begun | BegunUpload | None = None,
) -> Staging:
    """An output that is being written, wherever it lies; the arguments are those of `Staging`.

    Raises:
        StorageError: something is in the way, or the place refuses; nothing is left behind.
    """
    if not is_local(plan.path):
        assert not isinstance(begun, Begun)
        return Upload(plan, layout, told, overwrite=overwrite, begun=begun)
    assert not isinstance(begun, BegunUpload)
    return Staging(plan, layout, told, overwrite=overwrite, begun=begun)


_AT_ONCE = 16  # files that appear at the same time


class Upload(Staging):
    """An output at a place that knows single files only."""

    is_on_disk = False

    def __init__(
        self,
        plan: OutputPlan,
        layout: Layout,
        told: StagingAddress | None = None,
        *,
        overwrite: bool = True,
        begun: BegunUpload | None = None,
    ) -> None:
        """Create all files in their full length; or go on with those that another run has `begun`; or write to those
        that another process has created."""
        self.plan, self.layout = plan, layout
        self._final = locate(plan.path)
        self._place = place_of(plan.path)
        self._stage = None
        self.renewed, self.kept = set(), []
        self._begun, self._may_go_on = begun, False
        self._finished = False
        self._old: list[str] = []  # what an old checkpoint has, what names its files first
        self._changed = False  # whether something of it is gone
        self._created: dict[str, str] = {}  # names below the output and where they are until they are published
        self._appeared: list[str] = []
        self._marker: bool | None = None  # whether the directory had one, once it is marked
        self._is_shared = told is not None or begun is not None  # there may be what this process does not know of
        if told is not None:
            self._join(told)
            return
        above, prefix = stage_prefix(self._final)
        self._built = above / f"{prefix}{secrets.token_hex(4)}" if begun is None else locate(begun.stage)
        self._shared = str(self._built)
        try:
            check_target(plan, overwrite, layout.documents)
            old = [*plan.format.stale(self._final), *proofs_in(self._final)] if layout.is_directory else []
            self._old = list(dict.fromkeys(file for path in old for file in self._files(path)))
            for number, file in enumerate(layout.files):
                self._create(file, number)
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

    def _create(self, file: LaidFile, number: int | None = None) -> None:
        staged = self._created[file.name] = str(self._built / file.name if file.name else self._built)
        self._place.stage(staged, self._named(file.name), file.size, is_revised=self._is_revised(file))
        if number is not None and self._begun is not None and file.name in self._begun.uploads:
            found = self._place.resume(staged, self._begun.uploads[file.name])
            self.kept += [Finished(((number, offset, size),), is_sure=True) for offset, size in found]
        write_known(staged, file)

    def _is_revised(self, file: LaidFile) -> bool:
        return file.is_revised or file.encode is not None

    def write_head(self, head: Mapping[str, object]) -> None:
        """Say at the store which run this is, and leave what it has sent to one that goes on with it, if it breaks off.

        Raises:
            StorageError: the store refuses.
        """
        from .places.remote import submit  # with all that speaks to servers

        self._may_go_on = True
        try:
            names = [file.name for file in self.layout.files]
            told = submit(self._place.share, [self._created[name] for name in names])
            uploads = dict(zip(names, told, strict=True))
            write_journal(BegunUpload(str(self._built), head, uploads))
        except OSError as error:
            raise storage_error(error, self.plan.path, "note there what is begun") from None

    # -- several processes ---------------------------------------------------------------------------------------

    def tell(self) -> StagingAddress:
        """What another process must know to write here too."""
        from .places.remote import submit  # with all that speaks to servers

        self._is_shared = True
        try:
            told = submit(self._place.share, self._created.values())
        except OSError as error:
            raise storage_error(error, self.plan.path, "write there") from None
        return {
            "stage": str(self._built),
            "parents": [],
            "sealed": {},
            "uploads": dict(zip(self._created, told, strict=True)),
            "may_go_on": self._may_go_on,
        }

    def _join(self, told: StagingAddress) -> None:
        self._built = locate(f"{told['stage']}.of-{secrets.token_hex(4)}")  # what begins like the stage goes with it
        self._shared, self._may_go_on = told["stage"], told["may_go_on"]
        for file in self.layout.files:
            own = self._created[file.name] = str(self._built / file.name if file.name else self._built)
            is_revised = self._is_revised(file)
            self._place.join(own, self._named(file.name), file.size, told["uploads"][file.name], is_revised=is_revised)

    def hand_in(self) -> Mapping[str, Sequence[HandedPart]]:
        """All that this process writes is written: what the one that publishes must hear."""
        try:
            return {name: self._place.hand_in(own) for name, own in self._created.items()}
        except OSError as error:
            raise storage_error(error, self.plan.path, "write") from None

    def take_in(self, told: Mapping[str, Sequence[HandedPart]]) -> None:
        """What another process has handed in."""
        try:
            for name, parts in told.items():
                self._place.take_in(self._created[name], parts)
        except OSError as error:
            raise storage_error(error, self.plan.path, "put together what several processes wrote") from None

    def release(self) -> None:
        """Leave everything to the process that publishes."""
        for own in self._created.values():
            self._place.leave(own)
        self._created.clear()
        self._is_shared = self._may_go_on = False

    # ------------------------------------------------------------------------------------------------------------

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

    def _settle(self) -> None:
        self._marker = None
        self._appeared.clear()
        self._created.clear()

    def _clean(self) -> None:
        self._clear()

    def abort(self, *, keep: bool = False) -> StorageError | None:
        """Remove everything that is not committed; does nothing the second time. With `keep` what a run that may be
        gone on with has sent stays."""
        with held():
            self._take_back()
            is_kept = keep and self._may_go_on and bool(self._created)
            for staged in self._created.values():
                with suppress(OSError):
                    (self._place.keep if is_kept else self._place.remove)(staged)
            self._created.clear()
            if is_kept:
                note_kept(self.plan.path)
                self._is_shared = self._may_go_on = False
            self._clear()
        return None

    def _clear(self) -> None:
        """Nothing is to be gone on with."""
        with suppress(OSError):
            if self._is_shared:
                self._place.clear(self._shared)
            elif self._may_go_on:
                self._place.remove(f"{self._shared}{JOURNAL}")
        self._is_shared = self._may_go_on = False
