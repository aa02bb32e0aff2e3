"""Checkpoints and what lies beside them while a plan runs symbolically: opened by their headers, and to be written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..core.errors import Mark, PlanError, StorageError, SurgeryError, listing
from ..core.model_config import CONFIG, told_dtype
from ..core.quantised import companions
from ..core.specs import Spec
from ..kit.state import Found
from .frame import BROKEN, Consequence, Frame
from .namespace import Binding, Document, SymbolicModel
from .node import Node, Source
from .roots import Request, Save

__all__ = ["GraphFiles"]


class GraphFiles:
    """See `kit.state.Files` for the promises of the methods."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame

    def model(self, alias: str) -> SymbolicModel:
        """The names of an alias; an input's headers are read now."""
        found = self.frame.space.models[alias]
        if found is None:
            path, mark = self.frame.space.inputs[alias]
            found = SymbolicModel()
            try:
                self._attach(found, path, mark, alias)
            finally:
                self.frame.space.opened(alias, found)
        return found

    def _attach(self, model: SymbolicModel, path: str, mark: Mark, alias: str) -> None:
        saved = self._saved(path, mark)
        if saved is not None:
            if saved.request.kind == "tensor" and saved.request.format == "numpy":
                raise StorageError(f"{path} holds one array, not a checkpoint", where=mark, hint="load it with `to`")
            model.metadata, model.documents = dict(saved.metadata), dict(saved.documents)
            for name, node in saved.tensors:
                model.add(name, Binding(node, 0, 1))
            return
        try:
            key = _real_path(path)
            if key not in self.frame.checkpoints:
                self.frame.checkpoints[key] = self.frame.outside.open_checkpoint(path)
        except SurgeryError as error:
            self.frame.space.broken.add(alias)
            raise _asked_for_at(mark, error) from None
        checkpoint = self.frame.checkpoints[key]
        self.frame.identities |= checkpoint.identities
        model.metadata = dict(checkpoint.metadata)
        model.documents = {name: Document(path) for name, path in checkpoint.documents.items()}
        scales = companions((name, entry.spec.dtype) for name, entry in checkpoint.entries.items())
        for name, entry in checkpoint.entries.items():
            model.add(name, Binding(self._read(key, path, name, entry, scales.get(name, "")), 0, 1))
        self.frame.given[alias] = {name: slot.node for name, slot in model.slots.items()}

    def _read(self, checkpoint: str, path: str, name: str, entry: Any, companion: str = "") -> Node:
        self.frame.graph.needs_whole |= entry.blocks is not None
        return self.frame.graph.read(Source(checkpoint, name, entry, companion, path), entry.spec, self.frame.mark)

    def _saved(self, path: str, mark: Mark) -> Save | None:
        """What an earlier step of this plan writes at a path."""
        wanted = _real_path(path)
        for save in reversed(self.frame.demands.saves):
            written = _written_path(save.request)
            if written == wanted:
                return save
            if written.startswith(wanted + os.sep) or wanted.startswith(written + os.sep):
                raise StorageError(
                    f"{path} overlaps with {save.request.path}, which this plan writes at {save.request.mark}",
                    where=mark,
                    hint="load exactly what was saved",
                )
        return None

    def add_alias(self, alias: str, path: str | None = None) -> None:
        if alias in self.frame.space.models:
            raise PlanError(
                f"{self.frame.word}: alias {alias!r} already exists",
                where=self.frame.mark,
                found=f"aliases {listing(self.frame.space.models)}",
                hint="give `alias` a new name",
            )
        model = self.frame.space.add(alias, for_good=self.frame.word == "prefixes")
        if path is not None:
            self._attach(model, path, self.frame.mark, alias)

    def remove_alias(self, alias: str) -> None:
        self._need(alias)
        self.frame.space.remove(alias)

    def rename_alias(self, alias: str, new: str) -> None:
        self._need(alias)
        if new in self.frame.space.models:
            raise PlanError(f"{self.frame.word}: alias {new!r} already exists", where=self.frame.mark)
        self.frame.space.rename(alias, new)

    def _need(self, alias: str) -> None:
        if alias not in self.frame.space.models:
            raise PlanError(
                f"{self.frame.word}: unknown model alias: {alias!r}",
                where=self.frame.mark,
                expected="one of " + listing(self.frame.space.models),
            )

    def metadata(self, alias: str) -> Mapping[str, str]:
        return self.model(alias).metadata

    def document(self, alias: str, name: str) -> str | None:
        self._need(alias)
        found = self.model(alias).documents.get(name)
        if found is None or found.text is not None:
            return found and found.text
        try:
            read = self.frame.outside.read_document(found.path)
        except SurgeryError as error:
            raise _asked_for_at(self.frame.mark, error) from None
        self.frame.identities |= read.identities
        return str(read.text)

    def documents(self, alias: str) -> list[str]:
        self._need(alias)
        return list(self.model(alias).documents)

    def put_document(self, alias: str, name: str, text: str | None, *, path: str = "") -> None:
        self._need(alias)
        if text is None:
            self.frame.identities |= self._identified(path)
        self._change(alias, {**self.model(alias).documents, name: Document(path or name, text)})

    def copy_document(self, source: str, name: str, alias: str, new: str) -> None:
        self._need(alias)
        found = self.model(source).documents[name]
        self._change(alias, {**self.model(alias).documents, new: found})

    def drop_document(self, alias: str, name: str) -> None:
        self._change(alias, {key: found for key, found in self.model(alias).documents.items() if key != name})

    def _change(self, alias: str, documents: Mapping[str, Document]) -> None:
        self.frame.space.writable(alias).documents = documents

    def _identified(self, path: str) -> Mapping[str, Any]:
        try:
            known: Mapping[str, Any] = self.frame.outside.identify(path)
        except SurgeryError as error:
            raise _asked_for_at(self.frame.mark, error) from None
        return known

    def annotate(
        self, alias: str, format: str, metadata: Mapping[str, str], notes: Mapping[str, Callable[[Found], str]]
    ) -> None:
        self.model(alias)
        model = self.frame.space.writable(alias)
        model.format, model.metadata, model.notes = format, dict(metadata), dict(notes)

    def read_one(self, path: str, format: str) -> Node:
        saved = self._saved(path, self.frame.mark)
        if saved is not None:
            if len(saved.tensors) != 1:
                raise StorageError(
                    f"{path} holds {len(saved.tensors)} tensors", where=self.frame.mark, expected="exactly one"
                )
            return saved.tensors[0][1]
        try:
            single = self.frame.outside.open_single(path, format)
        except SurgeryError as error:
            raise _asked_for_at(self.frame.mark, error) from None
        self.frame.identities |= single.identities
        return self._read(f"{_real_path(path)} as {format}", path, single.name or path, single.entry)

    def save(
        self,
        path: str,
        format: str | None,
        shard: str | None,
        alias: str,
        name: str | None,
        options: Mapping[str, str],
        documents: tuple[str, ...] | None = None,
    ) -> None:
        if alias not in self.frame.space.models:
            raise PlanError(
                f"{self.frame.word}: unknown model alias: {alias!r}",
                where=self.frame.mark,
                expected=listing(self.frame.space.models),
            )
        model = self.model(alias)
        for key in [name] if name is not None else model.slots:
            self.frame.note_read(alias, key, model.slots[key].node)
        names = [name] if name is not None else list(model.slots)
        chosen = {key: self.frame.space.count(alias, key, 1 if name is None else 2) for key in names}
        if alias in self.frame.space.broken or any(slot.node is BROKEN for slot in chosen.values()):
            raise Consequence
        if self.frame.space.flags["dry-run"]:
            return
        kind = "tensor" if name is not None else "output" if self.frame.word == "output" else "alias"
        if format is None and name is None and not Path(path).suffix:
            format = model.format
        request = Request(path, format, shard, kind, self.frame.mark, options, documents)
        self.frame.outside.check_request(request)
        tensors = tuple((key, slot.node) for key, slot in chosen.items())
        beside = self._beside(request, alias, [node.spec for _, node in tensors])
        written = _written_path(request)
        self.frame.demands.saves = [save for save in self.frame.demands.saves if _written_path(save.request) != written]
        self.frame.demands.saves.append(Save(request, tensors, dict(model.metadata), dict(model.notes), beside))

    def _beside(self, request: Request, alias: str, specs: Sequence[Spec]) -> dict[str, Document]:
        """The documents that are written with a checkpoint; what `config.json` says of the dtype is made true.

        Raises:
            PlanError: a pattern matches none, or there is no place for them.
        """
        own, patterns = self.model(alias).documents, request.documents
        if request.kind == "tensor" or not self.frame.outside.is_directory(request):
            if patterns:
                raise PlanError(
                    f"{self.frame.word}: documents lie beside the tensors in a directory",
                    where=request.mark,
                    found=f"the file {request.path}",
                )
            return {}
        for pattern in patterns or ():
            if not any(fnmatchcase(name, pattern) for name in own):
                raise PlanError(
                    f"{self.frame.word}: no document of {alias} matches {pattern!r}",
                    where=request.mark,
                    found=listing(own) or "it has none",
                )
        taken = [name for name in own if patterns is None or any(fnmatchcase(name, each) for each in patterns)]
        found = {name: own[name] for name in taken}
        for known in found.values():
            if known.text is None:
                self.frame.identities |= self._identified(known.path)
        if CONFIG in found and (text := self.document(alias, CONFIG)) is not None:
            told = told_dtype(text, specs)
            found[CONFIG] = found[CONFIG] if told == text else Document(found[CONFIG].path, told)
        return found


def _asked_for_at(mark: Mark, error: SurgeryError) -> SurgeryError:
    """An error of a file, told with the place of the plan that asks for it."""
    if error.where is not None:
        error.problem = f"{error.where}: {error.problem}"
    error.where = mark
    return error


def _written_path(request: Request) -> str:
    path = request.path
    if request.kind == "tensor" and request.format == "numpy" and not path.endswith(".npy"):
        path += ".npy"
    return _real_path(path)


def _real_path(path: str) -> str:
    """The path without links.

    Raises:
        StorageError: no file can be called so.
    """
    try:
        return os.path.realpath(path)
    except ValueError as error:  # a NUL byte
        raise StorageError(f"not a path: {error}", found=repr(path)[:120]) from None
