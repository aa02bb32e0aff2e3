"""The least that writing so many bytes takes: four threads write them, from one buffer that stays in a cache.

    floor.py OUT SOURCE [--experts 8] [--direct]

As many bytes as there are in SOURCE with every matrix of an MLP `experts` times. With --direct they pass
the page cache.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import threading
from pathlib import Path

BUFFER = 8 << 20  # bytes; a multiple of every block size
THREADS = 4


def upcycled_bytes(source: Path, experts: int) -> int:
    """The bytes of all tensors of a checkpoint when those of MLPs are there so many times."""
    total = 0
    for file in source.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                total += (end - begin) * (experts if ".mlp." in name else 1)
    return total


def write(path: Path, nbytes: int, is_direct: bool) -> None:
    """Write a file of at least so many bytes, each thread a part of it."""
    buffer = mmap.mmap(-1, BUFFER)  # begins on a page, as direct writing wants
    buffer.write(os.urandom(BUFFER))
    flags = os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if is_direct else 0)
    file = os.open(path, flags, 0o644)
    pieces = math.ceil(nbytes / BUFFER)
    os.truncate(path, pieces * BUFFER)

    def work(first: int) -> None:
        for piece in range(first, pieces, THREADS):
            os.pwrite(file, buffer, piece * BUFFER)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(file)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--direct", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    write(args.out / "floor.bin", upcycled_bytes(args.source, args.experts), args.direct)


if __name__ == "__main__":
    main()
