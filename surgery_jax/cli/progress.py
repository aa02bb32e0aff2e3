"""How far the work is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from ..core.specs import format_bytes
from .streams import note
from .text import seconds

__all__ = ["Display", "shown"]

BAR_S = 0.2  # between drawings of the bar
LINE_S = 10.0  # between lines of a log
WINDOW_S = 15.0  # over which the rate is taken: long enough to be steady, short enough to notice a change
WIDTH = 24  # of the bar


class Display:
    """Shows bytes done of bytes in all; call it as often as you like."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._bar = stream.isatty()
        self._shown = clock()
        self._samples: deque[tuple[float, int]] = deque([(self._shown, 0)])
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if now - self._shown < (BAR_S if self._bar else LINE_S):
            return
        self._shown = now
        self._samples.append((now, done))
        while now - self._samples[0][0] > WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()
        text = self._text(done, total)
        if self._bar:
            width = shutil.get_terminal_size().columns - 1
            text = "\r" + text[:width] + "\x1b[K"
            self._drawn = True
        note(text, "" if self._bar else "\n", self._stream)

    def _text(self, done: int, total: int) -> str:
        share = done / total if total else 0.0
        (began, before), (now, _) = self._samples[0], self._samples[-1]
        rate = (done - before) / (now - began) if now > began else 0.0
        parts = [f"{share:4.0%}", f"{format_bytes(done)} of {format_bytes(total)}", f"{format_bytes(rate)}/s"]
        if rate > 0:
            parts.append(f"{seconds(max(total - done, 0) / rate)} left")
        filled = min(WIDTH, int(share * WIDTH))
        return (f"[{'#' * filled}{'-' * (WIDTH - filled)}] " if self._bar else "") + "  ".join(parts)

    def clear(self) -> None:
        """Remove the bar."""
        if self._drawn:
            note("\r\x1b[K", "", self._stream)
            self._drawn = False


@contextmanager
def shown(quiet: bool) -> Iterator[Display | None]:
    """What to show progress with on stderr; nothing if quiet."""
    display = None if quiet else Display(sys.stderr)
    try:
        yield display
    finally:
        if display is not None:
            display.clear()
