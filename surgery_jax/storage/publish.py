"""Making a whole output appear at once, or not at all.

An output is built in a hidden directory beside its final place, then renamed; a directory is exchanged with the old one
in one step, after the files in it that are not of the old checkpoint have been linked into the new one. Renames are
remembered, so that a commit that fails half way, or whose neighbour fails, can be taken back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path

from ..core.errors import StorageError
from ..core.interrupts import held, note_kept
from ..core.specs import format_bytes
from . import companions
from .base import Layout
from .companions import State
from .files import storage_error
from .formats import OutputPlan
from .journal import Finished
from .labels import label, label_directory
from .laying import lay, lay_again, open_made, remove_others
from .places.base import HandedPart
from .proofs import PROOFS, RECEIPT
from .renames import Renames
from .stages import Begun, Stage, StagingAddress
from .targets import check_space, check_target, final_place

__all__ = ["Staging", "StagingAddress", "check_space", "check_target", "storage_error"]


class Staging:
    """One output while it is being written. Others write to the files `place(index)`; then `commit_all`, and `abort` in
    any case."""

    is_on_disk = True

    def __init__(
        self,
        plan: OutputPlan,
        layout: Layout,
        told: StagingAddress | None = None,
        *,
        overwrite: bool = True,
        begun: Begun | None = None,
    ) -> None:
        """Make the hidden directory and all files in their full length; or take over what another run has `begun`; or
        open what another process has made, by what its `tell` told. That other process publishes; this one only helps
        to write.

        What lies at the place now is what may be replaced, if `overwrite`, and nothing that comes later.

        Raises:
            StorageError: something is in the way, or the operating system refuses; nothing is left behind.
        """
        self.plan = plan
        self.layout = layout
        self._final = final_place(plan.path)
        self._parents: list[Path] = []
        self._renames = Renames()
        self._stage: Stage | None = None
        self._finished = self._synced = False
        self._seen: dict[str, State] = {}
        self._sealed: dict[str, int] = {}  # sizes of what another run has encoded, by name
        self._kept: dict[str, State] = {}  # what was linked into the new directory, by name
        self.kept: list[Finished] = []  # what is there of an earlier run and no journal of its speaks of
        self.renewed: set[int] = set()  # numbers of files of which nothing counts that another run has written
        if told is not None:
            self._join(told)
            return
        try:
            # Now, and not when publishing: until then, other outputs of the same run may appear in the directory.
            self._seen = self._state(self._final)
            check_target(plan, overwrite, layout.documents)
            self._in_place = _stays(self._final)
            if begun is None:
                self._make()
            else:
                self._take_over(begun)
        except OSError as error:
            self.abort()
            raise storage_error(error, plan.path, "write there") from None
        except BaseException:
            self.abort()
            raise

    def _make(self) -> None:
        above = self._final if self._in_place else self._final.parent
        missing = [parent for parent in (above, *above.parents) if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir()
            self._parents.append(parent)
        self._stage = Stage.make(self._final, above)
        self._built = self._stage.new
        if self.layout.is_directory:
            self._built.mkdir()
            if self._final.is_dir():
                self._built.chmod(stat.S_IMODE(self._final.stat().st_mode))
        for index, file in enumerate(self.layout.files):
            lay(self.place(index), file)

    def _take_over(self, begun: Begun) -> None:
        self._stage, self._in_place = begun.stage, begun.stage.path.parent == self._final
        self._built = begun.stage.new
        if self.layout.is_directory:
            remove_others(self._built, self.layout.files)
            if self._final.is_dir():
                self._built.chmod(stat.S_IMODE(self._final.stat().st_mode))
        for index, file in enumerate(self.layout.files):
            if not lay_again(self.place(index), file, begun.sealed.get(index, file.size)):
                self.renewed.add(index)
            elif index in begun.sealed:
                self._sealed[file.name] = begun.sealed[index]

    @property
    def stage(self) -> Stage | None:
        """Where it is built, if that is a directory of this machine's."""
        return self._stage

    @property
    def root(self) -> Path:
        """The directory or the file that is being built."""
        return self._built

    def tell(self) -> StagingAddress:
        """What another process must know to write here too."""
        assert self._stage is not None
        return {
            "stage": str(self._stage.path),
            "parents": [str(parent) for parent in self._parents],
            "sealed": self._sealed,
            "uploads": {},
            "may_go_on": True,
        }

    def _join(self, told: StagingAddress) -> None:
        self._stage = Stage(Path(told["stage"]))
        self._built = self._stage.new
        self._parents = [Path(parent) for parent in told["parents"]]
        try:
            for index, file in enumerate(self.layout.files):
                path = Path(self.place(index))
                size = told["sealed"].get(file.name, file.size)
                os.close(open_made(path, size))
        except OSError as error:
            raise StorageError(
                "the directory that process 0 writes to is not the same here",
                where=self.plan.path,
                expected=f"{path}, of {format_bytes(size)}",
                found=error.strerror,
                hint="the outputs of several processes need a file system that all of them share",
            ) from None

    def write_head(self, head: Mapping[str, object]) -> None:
        """Say beside what is built which run this is, for one that goes on."""
        if self._stage is not None:
            self._stage.write_head(head)

    def hand_in(self) -> Mapping[str, Sequence[HandedPart]] | None:
        """All that this process writes is written: what the one that publishes must hear, as JSON.

        Raises:
            StorageError: it could not be written.
        """
        return None

    def take_in(self, told: Mapping[str, Sequence[HandedPart]]) -> None:
        """What another process has handed in.

        Raises:
            StorageError: it cannot be put together with the rest.
        """

    def release(self) -> None:
        """Leave everything to the process that publishes: `abort` removes nothing any more."""
        self._stage = None
        self._parents.clear()

    def place(self, index: int) -> str:
        """Where `layout.files[index]` is until it is published."""
        name = self.layout.files[index].name
        return str(self._built / name if name else self._built)

    def add(self, name: str, text: str) -> str:
        """Put one more file beside those of the layout of a directory; where it is until it is published.

        Raises:
            StorageError: the operating system refuses.
        """
        try:
            (self._built / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise storage_error(error, self.plan.path, f"write {name}") from None
        return str(self._built / name)

    def finish(self, sync: bool = False) -> None:
        """All bytes are in place: let the format complete its files, and bring them to the disk if `sync`.

        Raises:
            StorageError: that failed.
        """
        if not self._finished:
            try:
                for name, content in self.layout.finish(self._built) if self.layout.finish is not None else ():
                    (self._built / name).parent.mkdir(parents=True, exist_ok=True)
                    (self._built / name).write_bytes(content)
                if self._stage is not None and self._built.is_file():
                    label(self._built, self._stage.read_head())
            except OSError as error:
                raise storage_error(error, self.plan.path, "complete it") from None
            self._finished = True
        if sync and not self._synced:
            try:
                companions.sync_all([*self._built.rglob("*"), self._built])
            except OSError as error:
                raise storage_error(error, self.plan.path, "bring it to the disk") from None
            self._synced = True

    def finished_files(self) -> dict[str, Path]:
        """The files of a finished output: where they will be, as the plan spells it, and where they are until then."""
        if not self._built.is_dir():
            return {self.plan.path: self._built}
        found = sorted(path for path in self._built.rglob("*") if path.is_file())
        return {str(Path(self.plan.path) / path.relative_to(self._built)): path for path in found}

    def staying(self) -> dict[str, Path]:
        """The files that lie below a directory and stay when the output appears there, by name.

        Raises:
            StorageError: the directory cannot be read.
        """
        return {name: entry for name, entry in self._strangers() if entry.is_file()}

    def links(self) -> list[str]:
        """The symbolic links that stay there, by name.

        Raises:
            StorageError: the directory cannot be read.
        """
        return [name for name, entry in self._strangers() if entry.is_symlink()]

    def _strangers(self) -> Iterator[tuple[str, Path]]:
        try:
            if self.layout.is_directory and self._final.is_dir():
                yield from companions.strangers(self._final, self._built, self._seen)
        except OSError as error:
            raise storage_error(error, self.plan.path, "read the directory") from None

    # -- what is there ------------------------------------------------------------------------------------------

    def _state(self, place: Path) -> dict[str, State]:
        """What there is to be replaced: a file, or those of a directory that are of the old checkpoint."""
        if not os.path.lexists(place):
            return {}
        if not place.is_dir() or not self.layout.is_directory:
            return {".": companions.state_of(place)}
        own = [*self.plan.format.stale(place), *(place / name for name in (*self.layout.documents, *PROOFS))]
        return {str(path.relative_to(place)): companions.state_of(path) for path in own if os.path.lexists(path)}

    def _check_seen(self, place: Path, fresh: Set[Path]) -> dict[str, State]:
        """What is there and is to go; `fresh` are the places of this run's outputs, which are not old.

        Raises:
            StorageError: somebody else has changed it since the beginning.
        """
        own = {str(path.relative_to(self._final)) for path in fresh if path.is_relative_to(self._final)} - {"."}
        seen, found = (
            {name: state for name, state in states.items() if name not in own}
            for states in (self._seen, self._state(place))
        )
        if seen != found:
            raise self._disturbed()
        return seen

    def _disturbed(self) -> StorageError:
        return StorageError(
            "cannot publish it: what is there was changed by somebody else while this run was at work",
            where=self.plan.path,
            hint="what is there stays; run again, with --overwrite if it is to be replaced",
        )

    # -- publishing ---------------------------------------------------------------------------------------------

    def _prepare(self, sync: bool, fresh: Set[Path]) -> None:
        """Link into the new directory what stays of the old one."""
        try:
            old = self._check_seen(self._final, fresh)
            self._label()
            if not self._in_place and self.layout.is_directory and self._final.is_dir():
                self._kept = companions.link_others(self._final, self._built, {self._final / name for name in old})
                companions.give_to_owner(self._final, self._built)
                if sync:
                    companions.sync_all([*(path for path in self._built.rglob("*") if path.is_dir()), self._built])
        except OSError as error:
            raise storage_error(error, self.plan.path, "publish it") from None

    def _label(self) -> None:
        """Let a directory without a receipt say which run has made it."""
        if self._stage is not None and self.layout.is_directory and not (self._built / RECEIPT).exists():
            names = [str(path.relative_to(self._built)) for path in self.finished_files().values()]
            place = self._final if self._in_place else self._built
            label_directory(place, self._stage.read_head(), self._built, names)

    def _publish(self, sync: bool, fresh: Set[Path]) -> None:
        """Rename all into its place."""
        assert self._stage is not None
        try:
            old = self._check_seen(self._final, fresh)
            if not os.path.lexists(self._final):
                self._renames.move(self._built, self._final)
            elif self._in_place:
                self._exchange_files(list(old))
            else:
                before = self._renames.swap(self._built, self._final, self._stage.old)
                self._check_seen(before, fresh)
                if self.layout.is_directory:
                    self._carry(before, old)
            if sync:
                companions.sync(self._final.parent)
                if self._final.is_dir():
                    companions.sync(self._final)
                for parent in self._parents:
                    companions.sync(parent.parent)
        except FileExistsError:
            raise self._disturbed() from None
        except OSError as error:
            raise storage_error(error, self.plan.path, "publish it") from None

    def _carry(self, before: Path, old: Mapping[str, State]) -> None:
        """Bring along what came into the old directory since its files were linked, and the hidden directories of
        outputs within it."""
        for entry in sorted(before.iterdir()):
            if entry.name in old or (entry.name in self._kept and companions.state_of(entry) == self._kept[entry.name]):
                continue
            place = self._final / entry.name
            if entry.name in self._kept and not place.is_dir():
                place.unlink()
            if not place.is_dir():
                self._renames.move(entry, place)

    def _exchange_files(self, old: Sequence[str]) -> None:
        """The directory stays, its files change one by one. What names the others is the last of the old ones to go,
        and the first of the new ones to come: until all are there, what is there cannot be read."""
        assert self._stage is not None
        laid = list(dict.fromkeys(Path(file.name).parts[0] for file in self.layout.files))
        names = [entry.name for entry in sorted(self._built.iterdir())]
        if names == list(old) and len(names) == 1:
            self._renames.swap(self._built / names[0], self._final / names[0], self._stage.old)
            return
        self._stage.old.mkdir()
        for name in reversed(old):
            place = self._stage.old / name
            place.parent.mkdir(parents=True, exist_ok=True)
            self._renames.move(self._final / name, place)
        for name in sorted(names, key=lambda name: -laid.index(name) if name in laid else -len(laid)):
            self._renames.move(self._built / name, self._final / name)

    def _take_back(self) -> StorageError | None:
        """Put back what was there before; gives what to say if that cannot be done."""
        try:
            self._renames.undo()
        except OSError as error:
            problem = storage_error(error, self.plan.path, "put back what was there before")
            self._renames.forget()
            if self._stage is not None:
                problem.hint = f"it is kept in {self._stage.path}"
                self._stage.close()
                self._stage = None
            return problem
        return None

    def _settle(self) -> None:
        """All outputs are there: `abort` takes nothing back any more."""
        self._renames.forget()
        self._parents.clear()

    def _clean(self) -> None:
        """After success: nothing of the old can be wanted back. Does not fail: what cannot be removed is left."""
        if self._stage is not None:
            self._stage.remove()
            self._stage = None

    def abort(self, *, keep: bool = False) -> StorageError | None:
        """Take everything back that is not committed; does nothing the second time. Does not fail: gives what to say
        if what was there before could not be put back. With `keep` what is finished stays, for a run that goes on.

        Of several outputs abort the last one first: an earlier one may have made the directory of a later one.
        """
        with held():
            problem = self._take_back()
            if self._stage is not None:
                if keep and self._stage.has_finished:
                    self._stage.close()
                    self._parents.clear()
                    note_kept(self.plan.path)
                else:
                    self._stage.remove()
                self._stage = None
            while self._parents:
                with suppress(OSError):  # somebody else may have put something there
                    self._parents.pop().rmdir()
        return problem


# ---------------------------------------------------------------------------------------------------------- details


def _stays(final: Path) -> bool:
    """Whether a directory may not be exchanged as a whole: it is a mount point or has one in it, is the user's working
    directory, or in a directory that we may not write. Then its files are exchanged one by one."""
    return final.is_dir() and (
        final.is_mount()
        or final == Path.cwd()
        or not os.access(final.parent, os.W_OK)
        or any(entry.is_mount() for entry in final.iterdir())
    )
