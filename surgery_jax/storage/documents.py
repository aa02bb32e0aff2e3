"""Documents: the small files beside the tensors of a checkpoint that tell of the model, such as `config.json`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from .base import Format
from .files import read_text, storage_error
from .identity import Identity, remembering

__all__ = ["DocumentText", "documents_beside", "read_document"]

CONFIG = "config.json"
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
