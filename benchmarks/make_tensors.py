"""Writes a checkpoint of float32 tensors of one shape, as fast as the disk allows: many small ones, or a large one.

    make_tensors.py OUT [--count 1] --shape N [N ...] [--seed 0]

The names are `group0.0.weight` to `group19.K.weight`: twenty groups of equal size, one after the other. Same arguments,
same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from make_llama import BLOCK, write_header

GROUPS = 20


def write(out: Path, count: int, shape: tuple[int, ...], seed: int) -> int:
    """Writes the file and returns the bytes of its tensors."""
    out.mkdir(parents=True, exist_ok=True)
    names = [f"group{number * GROUPS // count}.{number}.weight" for number in range(count)]
    remaining = count * int(np.prod(shape))
    total = 4 * remaining
    block = np.random.default_rng(seed).standard_normal(min(BLOCK, remaining), dtype=np.float32)
    with (out / "model.safetensors").open("wb") as file:
        write_header(file, dict.fromkeys(names, shape), 4, "F32")
        while remaining:
            piece = block[:remaining]
            piece.tofile(file)
            remaining -= piece.size
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--shape", type=int, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total = write(options.out, options.count, tuple(options.shape), options.seed)
    print(f"{options.out}: {total / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
