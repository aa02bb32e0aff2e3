"""Documents: the small files beside the tensors of a checkpoint that tell of the model, such as `config.json`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from ..core.errors import StorageError
from ..core.model_config import CONFIG
from .base import Format, LaidFile, Layout
from .files import check_regular, read_text, storage_error
from .identity import Identity, identities_of, remembering
from .places.found import locate

__all__ = ["DocumentSource", "DocumentText", "documents_beside", "identify", "read_document", "with_documents"]

_FOLDERS = ("additional_chat_templates",)  # directories of documents, beside which no others are looked into


class DocumentText(NamedTuple):
    """What a document says, and what its file was then."""

    text: str
    identities: Mapping[str, Identity]


def documents_beside(path: Path, format: Format, files: Collection[str]) -> dict[str, str]:
    """The paths of the documents of a checkpoint by name, in order; `files` are those that are read as tensors.

    They lie in its directory. Where `path` is a file, others may lie there for reasons of their own: then only if one
    of them is the configuration of a model.

    Raises:
        StorageError: the directory cannot be read.
    """
    directory = path if path.is_dir() else path.parent
    try:
        if directory != path and not (directory / CONFIG).is_file():
            return {}
        places = [directory, *(directory / name for name in _FOLDERS if (directory / name).is_dir())]
        found = [entry for place in places for entry in sorted(place.iterdir())]
        return {
            entry.relative_to(directory).as_posix(): str(entry)
            for entry in found
            if format.is_document(entry.name) and str(entry) not in files and not entry.is_dir()
        }
    except OSError as error:
        raise storage_error(error, directory, "read the directory") from None


def read_document(path: Path) -> DocumentText:
    """The text of a document.

    Raises:
        StorageError: it cannot be read, or is no text.
    """
    with remembering() as opened:
        text = read_text(path, "the document")
    return DocumentText(text, opened)


def identify(path: str) -> dict[str, Identity]:
    """What the file of a document is now.

    Raises:
        StorageError: there is no such file.
    """
    check_regular(locate(path))
    return identities_of([path], {})


class DocumentSource(Protocol):
    """What a document is: a text, or where that is None the file at a path."""

    @property
    def path(self) -> str: ...

    @property
    def text(self) -> str | None: ...


def with_documents(layout: Layout, documents: Mapping[str, DocumentSource]) -> Layout:
    """The layout of a directory with documents beside its tensors.

    Raises:
        StorageError: a document has no file, or the name of one of the checkpoint's files.
    """
    taken = {file.name for file in layout.files}
    files = list(layout.files)
    for name, document in documents.items():
        if name in taken:
            raise StorageError(f"the document {name!r} would replace a file of the checkpoint", where=document.path)
        if document.text is None:
            files.append(LaidFile(name, check_regular(locate(document.path)).st_size, source=document.path))
        else:
            data = document.text.encode()
            files.append(LaidFile(name, len(data), ((0, data),)))
    return replace(layout, files=tuple(files), documents=tuple(documents))
