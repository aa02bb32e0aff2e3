"""Makes a directory of many safetensors shards with many small tensors each, and their index.

make_shards.py OUT [--shards 100] [--tensors 100]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from make_llama import write_header

SHAPE = (8, 8)


def write(out: Path, shards: int, tensors: int) -> None:
    """Writes the files; the bytes of the tensors are zeros."""
    out.mkdir(parents=True, exist_ok=True)
    where: dict[str, str] = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        names = [f"layers.{number}.{at}.weight" for at in range(tensors)]
        where |= dict.fromkeys(names, name)
        with (out / name).open("wb") as file:
            write_header(file, dict.fromkeys(names, SHAPE), 4, "F32")
            file.write(bytes(4 * SHAPE[0] * SHAPE[1] * tensors))
    total = 4 * SHAPE[0] * SHAPE[1] * len(where)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--tensors", type=int, default=100)
    options = parser.parse_args()
    write(options.out, options.shards, options.tensors)
    print(f"{options.out}: {options.shards} shards of {options.tensors} tensors")


if __name__ == "__main__":
    main()
