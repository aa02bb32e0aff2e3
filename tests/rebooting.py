"""Journals as they are found when the system has been started anew."""

from __future__ import annotations

from pathlib import Path

from surgery_jax.storage.journal import framed, unframed


def reboot(journal: Path) -> None:
    """Let a journal have been written before the system was started; all else stays where it is."""
    data = journal.read_bytes()
    with journal.open("r+b") as stream:
        for end, body in unframed(data):
            if body[:1] == b"B":
                frame = framed(b"B" + b"?" * (len(body) - 1))
                stream.seek(end - len(frame))
                stream.write(frame)
