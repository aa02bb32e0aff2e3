"""Uploads that an earlier run has begun and not ended, and that another one goes on with.

A run that may be gone on with leaves an object beside the hidden names of what it sends: what run it is, and what its
uploads are known by. What of a file is finished the store itself says: a part is sent once, when all of its bytes are
there, and the store has compared their checksum. Nobody can tell whether who has begun an upload still lives; two who
work on the same one send the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .places.found import locate, place_of
from .stages import parsed

__all__ = ["JOURNAL", "BegunUpload", "begun_uploads", "discard_uploads", "stage_prefix", "write_journal"]

JOURNAL = ".journal"
_MOST = 64 << 20  # bytes of an untrusted journal: inputs of 100 000 files take 10 MB


@dataclass(frozen=True)
class BegunUpload:
    """What an earlier run has begun: its hidden name, what it says of itself, and what its uploads are known by, by the
    names of files."""

    stage: str
    head: Mapping[str, object]
    uploads: Mapping[str, str] = field(default_factory=dict)


def stage_prefix(final: Path) -> tuple[Path, str]:
    """The directory in which the hidden names of an output lie, and how they begin."""
    above = final.parent if len(final.parts) > 2 else final
    return above, f".{final.name[:40]}.surgery-"


def write_journal(begun: BegunUpload) -> None:
    """Say at the store what is begun.

    Raises:
        OSError: it refuses.
    """
    text = json.dumps({"head": begun.head, "uploads": begun.uploads}).encode()
    place = place_of(begun.stage)
    known = place.glance(f"{begun.stage}{JOURNAL}", 0)
    place.put_if(f"{begun.stage}{JOURNAL}", text, None if known is None else known[0])


def begun_uploads(path: str) -> Iterator[BegunUpload]:
    """What earlier runs have begun of an output; what cannot be understood is none.

    Raises:
        OSError: the store does not say.
    """
    place = place_of(path)
    above, prefix = stage_prefix(locate(path))
    for name in sorted(place.list(str(above))):
        if name.startswith(prefix) and name.endswith(JOURNAL):
            stage = f"{above}/{name.removesuffix(JOURNAL)}"
            found = place.glance(f"{stage}{JOURNAL}", _MOST)
            told = parsed(b"" if found is None else found[1])
            head, uploads = told.get("head"), told.get("uploads")
            if isinstance(head, dict) and isinstance(uploads, dict):
                yield BegunUpload(stage, head, {file: str(upload) for file, upload in uploads.items()})


def discard_uploads(path: str) -> Iterator[str]:
    """End what runs have begun of an output, and remove what they have left; a sentence each.

    Raises:
        OSError: the store refuses.
    """
    final = locate(path)
    for begun in begun_uploads(path):
        place = place_of(path)
        for name, told in begun.uploads.items():
            place.discard(str(final / name if name else final), told)
        place.clear(begun.stage)
        yield f"{begun.stage}: removed, with its uploads"
