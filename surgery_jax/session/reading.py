"""What expressions of a plan ask of its inputs, read from the disk."""

from __future__ import annotations

import json
from collections.abc import Collection

from ..core.errors import Mark, StorageError
from ..core.strict_json import read_json
from ..language.expressions import Named
from ..storage import formats
from ..storage.files import read_text, storage_error
from ..storage.places.found import locate

__all__ = ["Headers"]

CONFIG = "config.json"


class Headers:
    """Reads configurations and the names of tensors; the headers of each checkpoint once."""

    def __init__(self) -> None:
        self._names: dict[str, Collection[str]] = {}

    def config(self, path: str) -> Named | None:
        """The `config.json` in a directory, or beside a file; None if there is none.

        Raises:
            StorageError: it cannot be read, or is no JSON object.
        """
        place = locate(path.partition("#")[0])
        try:
            file = (place if place.is_dir() else place.parent) / CONFIG
            if not place.exists() or not file.exists():
                return None
        except OSError as error:
            raise storage_error(error, place, "look at it") from None
        text = read_text(file, "the configuration")
        try:
            found = read_json(text)
        except json.JSONDecodeError as error:
            where = Mark(str(file), error.lineno, error.colno)
            raise StorageError("the configuration is no JSON", where=where, found=error.msg) from None
        except ValueError as error:
            raise StorageError("the configuration is no JSON", where=str(file), found=str(error)) from None
        if not isinstance(found, dict):
            where = Mark(str(file), 1, 1)
            raise StorageError("the configuration is no JSON object", where=where, found=json.dumps(found)[:80])
        return Named(found, str(file))

    def names(self, path: str) -> Collection[str]:
        """The names of all tensors of a checkpoint.

        Raises:
            SurgeryError: it cannot be read.
        """
        if path not in self._names:
            self._names[path] = list(formats.open_checkpoint(path).entries)
        return self._names[path]
