"""The results of tasks: written to their places, and looked at by sinks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..compile.blueprint import Blueprint
from ..compile.program import Component
from ..io.outputs import OutputFile
from .tasks import Tile
from .verdicts import Findings

__all__ = ["Results"]


class Results:
    """Where results go: output files, and the findings of a run."""

    def __init__(self, files: Sequence[OutputFile], findings: Findings) -> None:
        self.files = files
        self.findings = findings

    def put(self, plan: Blueprint, tile: Tile, outputs: dict[int, np.ndarray], bounce: np.ndarray) -> None:
        """Put outputs, by the number of the value, in their places; neighbours in a file are written together."""
        for index, value in enumerate(plan.leaving):
            if value not in outputs:
                continue
            flat = np.ascontiguousarray(outputs[value]).reshape(-1)
            width = flat.size // plan.rows  # elements of a row
            row_bytes = flat.nbytes // plan.rows
            parts: list[tuple[int, int, int, int]] = []  # (file, offset there, begin and end here)
            at = 0
            for component, start, count in tile.segments:
                output = component.outputs[index]
                # rows that the tile before has written are left alone: no byte is ever written by two workers
                first, begin, rows = start + tile.seen, at + tile.seen, count - tile.seen
                shift = (begin - first) * row_bytes  # from a byte of the value to its place in the buffer
                for dest in output.dests:
                    for start_byte, offset, nbytes in dest.parts(first * row_bytes, rows * row_bytes):
                        parts.append((dest.file, offset, start_byte + shift, start_byte + shift + nbytes))
                for sink in output.sinks:
                    self.findings.add(sink, first * width, flat[begin * width : (begin + rows) * width])
                at += count
            raw = _bytes_of(flat)
            for file, offset, begin, end in _joined(parts):
                self.files[file].write(offset, raw[begin:end], bounce)

    def tell(self, component: Component, results: dict[int, np.ndarray], bounce: np.ndarray) -> None:
        """Put statistics where they are wanted."""
        for output in component.outputs:
            if output.value in results:
                array = results[output.value]
                for sink in output.sinks:
                    self.findings.add(sink, 0, array)
                for dest in output.dests:
                    for start, offset, nbytes in dest.parts(0, array.nbytes):
                        self.files[dest.file].write(offset, _bytes_of(array)[start : start + nbytes], bounce)


def _joined(parts: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Parts in the order of their places, neighbours joined."""
    found: list[tuple[int, int, int, int]] = []
    for file, offset, begin, end in sorted(parts):
        last = found[-1] if found else None
        if last is not None and last[0] == file and last[1] + last[3] - last[2] == offset and last[3] == begin:
            found[-1] = (file, last[1], last[2], end)
        else:
            found.append((file, offset, begin, end))
    return found


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
