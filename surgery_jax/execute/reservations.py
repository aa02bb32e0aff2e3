"""Rules by which a schedule says how much memory a piece of work may take and reserves. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from ..compile.blueprint import Blueprint
from ..core.cores import usable_cores
from ..io.decoded import block_bytes
from ..io.needs import LEAST_PIECE, PIECE, UNLIMITED, Needs, rounded
from ..storage.base import Entry

__all__ = [
    "DEVICE_BYTES",
    "PROCESS_BYTES",
    "Limits",
    "decode_needs",
    "default_workers",
    "device_bytes",
    "device_limit",
    "encode_needs",
    "move_needs",
    "peak_bytes",
    "piece_bytes",
    "tile_limit",
]

# What a process takes before its buffers, by measurement (Linux, x86-64, Python 3.11, jax 0.10.2 on CPU).
PROCESS_BYTES = 34 << 20
DEVICE_BYTES = 180 << 20  # more, once something is computed with JAX


class Limits(NamedTuple):
    """Bytes of host buffers, threads, bytes of each device, and devices, that a run may take; without a number of
    devices all that there are. in_order: a file is to be written from its beginning to its end, as nearly as may be,
    since who hashes it would have to read again what came too early; None: if it is part of a directory. waiting: so
    many threads more, then, since some wait for their turn."""

    memory: int
    workers: int
    device: int = UNLIMITED
    devices: int | None = None
    in_order: bool | None = False
    waiting: int = 0


def default_workers() -> int:
    """Threads: a few per core, because they wait for the disk and the device."""
    return min(16, max(4, usable_cores() * 2))


def tile_limit(memory_bytes: int, num_workers: int) -> int:
    """Bytes that one tile may take: every worker holds one, and half of the budget is for what is whole."""
    return memory_bytes // max(num_workers, 1) // 2


def device_limit(limits: Limits) -> int:
    """Bytes that one tile may take of a device: one is computed while another comes or goes."""
    return limits.device // 2


def device_bytes(plan: Blueprint) -> int:
    """What a task of a blueprint takes of a device."""
    return plan.task_bytes


def piece_bytes(memory_bytes: int, num_workers: int, most: int = PIECE) -> int:
    """The size of the buffer through which a task moves bytes; smaller where a sixteenth of a worker's share of the
    budget is."""
    return min(most, max(LEAST_PIECE, rounded(memory_bytes // max(num_workers, 1) // 16)))


def move_needs(piece: int) -> list[int]:
    """The buffers of a task that moves bytes: one to write from, and one to read through past the page cache."""
    return [piece, piece // 4]


def decode_needs(entry: Entry, piece: int) -> Needs:
    """What a task reserves that decodes a block of a tensor: a piece for writing, and what decoding takes."""
    return [piece], block_bytes(entry)


def encode_needs(size: int, workspace: int) -> Needs:
    """What is reserved to encode a file of so many bytes: these, and what encoding takes."""
    return [size], workspace


def peak_bytes(footprints: Sequence[int], memory_bytes: int, num_workers: int) -> int:
    """The most that tasks of these footprints can hold at once: one for every worker, within the budget."""
    return min(memory_bytes, sum(heapq.nlargest(max(num_workers, 1), footprints)))
