"""`document`: give a checkpoint a document, or take one from it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath

from ..core.errors import PlanError, listing
from ..kit.base import Directive, text
from ..kit.state import State


@dataclass(frozen=True)
class DocumentStep(Directive):
    """Copy, write or delete documents: the small files beside the tensors that tell of a model.

    What is there under the name is replaced. `copy` takes the documents of another checkpoint, `from`, whose names
    match a pattern; without `from` it takes a file. `write` takes a name, and what it says is `text`.
    """

    word = "document"
    examples = (
        "document: { copy: 'tokenizer*', from: base }",
        "document: { copy: README.md, to: MODEL.md }",
        "document: { write: NOTICE, text: merged }",
        "document: { delete: '*.py' }",
    )

    copy: str | None = text("pattern of names, or with no `from` the path of a file", None)
    write: str | None = text("the name of a text", None)
    delete: str | None = text("pattern of names", None)
    from_: str | None = text("the checkpoint whose documents are copied", None)
    to: str | None = text("the new name of the one document that is copied", None)
    text_: str | None = text("what is written", None)
    alias: str | None = text("which checkpoint", None)

    def build(self, state: State) -> None:
        if sum(word is not None for word in (self.copy, self.write, self.delete)) != 1:
            raise PlanError("document: one of copy, write and delete")
        if self.copy is None and (self.from_ is not None or self.to is not None):
            raise PlanError("document: from and to belong to copy")
        if (self.write is None) != (self.text_ is None):
            raise PlanError("document: write takes a name, and text what it says")
        alias = self._alias(state)
        if self.copy is not None:
            self._copy(state, alias, self.copy)
        elif self.write is not None:
            state.files.put_document(alias, _name(self.write), self.text_)
        else:
            for name in _matching(state, alias, str(self.delete)):
                state.files.drop_document(alias, name)

    def _copy(self, state: State, alias: str, wanted: str) -> None:
        if self.from_ is None:
            state.files.put_document(alias, _name(self.to or PurePath(wanted).name), None, path=wanted)
            return
        found = _matching(state, self.from_, wanted)
        if self.to is not None and len(found) > 1:
            raise PlanError("document.to: one name for several documents", found=listing(found))
        for name in found:
            state.files.copy_document(self.from_, name, alias, _name(self.to or name))

    def _alias(self, state: State) -> str:
        aliases = state.names.aliases()
        alias = self.alias or state.default_alias or (aliases[0] if len(aliases) == 1 else None)
        if alias is None:
            raise PlanError("document needs an alias", expected="one of " + ", ".join(aliases))
        return alias

    def contributes(self, state: State) -> str | None:
        return self.alias or state.default_alias


def _matching(state: State, alias: str, pattern: str) -> list[str]:
    names = state.files.documents(alias)
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise PlanError(
            f"document: no document of {alias} matches {pattern!r}",
            found=listing(names) or f"{alias} has none",
            hint=None if names else "documents lie beside the tensors of a directory, one of them config.json",
        )
    return found


def _name(name: str) -> str:
    """A name that lies beside the tensors.

    Raises:
        PlanError: it leads elsewhere.
    """
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts or name.startswith("."):
        raise PlanError("document: not the name of a document", found=repr(name), expected="a name without .. or /")
    return name
