"""Writes a checkpoint in the layout of Hugging Face's Llama, with random finite weights, as fast as the disk allows.

    make_llama.py OUT [--size 1b] [--dtype bfloat16] [--seed 0] [--shard-gb G]
    make_llama.py OUT --size 1b --base BASE [--rank R] [--seed 1]     a "fine-tune" of BASE

The numbers are pieces of one block of normal values of deviation 0.02, at an offset of their own in each tensor and
with the low mantissa bits stirred. A fine-tune changes those bits in every matrix of the base, and with --rank adds a
product of two random factors, so that the extraction of adapters has something to find. Same arguments, same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.unsignedinteger]
Shape = tuple[int, ...]

SIZES = {  # hidden, feed-forward, layers, heads, key-value heads, vocabulary
    "tiny": (64, 128, 2, 4, 2, 256),
    "160m": (768, 2048, 12, 12, 12, 32000),
    "1b": (2048, 8192, 16, 32, 8, 32000),
    "1.1b": (2048, 5632, 22, 32, 4, 32000),
    "3b": (3072, 8192, 28, 24, 8, 32000),
    "8b": (4096, 14336, 32, 32, 8, 32000),
}


class DType(NamedTuple):
    """How an element looks as a value, as bits and in the header, and which of its bits a fine-tune changes."""

    values: np.dtype[np.generic]
    bits: np.dtype[np.unsignedinteger]
    code: str
    low_bits: int


DTYPES = {
    "bfloat16": DType(np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16), "BF16", 3),
    "float16": DType(np.dtype(np.float16), np.dtype(np.uint16), "F16", 6),
    "float32": DType(np.dtype(np.float32), np.dtype(np.uint32), "F32", 16),
}
BLOCK = (1 << 22) + 1  # elements; odd, so that its copies in a matrix do not line up with rows
ROWS_BYTES = 64 << 20  # how much of a matrix is widened to float32 at once


def shapes(size: str, layers: int | None = None) -> dict[str, Shape]:
    """Names and shapes in the order of the file."""
    hidden, mlp, depth, heads, kv_heads, vocabulary = SIZES[size]
    kv = hidden // heads * kv_heads
    named: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers or depth):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
        }.items():
            named[f"model.layers.{layer}.{name}.weight"] = shape
    return named | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


class Source:
    """Where the bits of tensors come from: a seed, and for a fine-tune its base."""

    def __init__(self, dtype: str, seed: int, base: Path | None, rank: int) -> None:
        self.values, self.bits, _, low_bits = DTYPES[dtype]
        self.random = np.random.default_rng(seed)
        self.base = None if base is None else Checkpoint(base)
        self.rank = rank
        normal = self.random.standard_normal(BLOCK, dtype=np.float32) * np.float32(0.02)
        self.block = normal.astype(self.values).view(self.bits)
        self.stir = self.random.integers(0, 1 << low_bits, BLOCK).astype(self.bits)

    def tensor(self, name: str, shape: Shape) -> Bits:
        """`name` as an array of bits."""
        if self.base is None:
            if len(shape) == 1:
                return np.ones(shape, self.values).view(self.bits) ^ self._pieces(self.stir, shape)
            return self._pieces(self.block, shape) ^ self._pieces(self.stir, shape)
        tensor = self.base.read(name, self.bits, shape)
        if len(shape) == 1:
            return tensor
        tensor = tensor ^ self._pieces(self.stir, shape)
        if self.rank:
            self._add_product(tensor.view(self.values))
        return tensor

    def _pieces(self, block: Bits, shape: Shape) -> Bits:
        count = int(np.prod(shape))
        start = int(self.random.integers(BLOCK))
        repeated = np.concatenate([block[start:], *[block] * (count // BLOCK), block[:start]])
        return repeated[:count].reshape(shape)

    def _add_product(self, tensor: npt.NDArray[np.generic]) -> None:
        rows, columns = tensor.shape
        rank = min(self.rank, rows, columns)
        decay = np.exp(-0.15 * np.arange(rank, dtype=np.float32))
        b = self.random.standard_normal((rows, rank), dtype=np.float32) * decay * np.float32(0.002 / rank**0.5)
        a = self.random.standard_normal((rank, columns), dtype=np.float32)
        step = max(1, ROWS_BYTES // (4 * columns))
        for row in range(0, rows, step):
            piece = tensor[row : row + step]
            piece[:] = (piece.astype(np.float32) + b[row : row + step] @ a).astype(tensor.dtype)


class Checkpoint:
    """A checkpoint that this program wrote."""

    def __init__(self, directory: Path) -> None:
        self.places: dict[str, tuple[Path, int]] = {}
        for path in sorted(directory.glob("*.safetensors")):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            self.places |= {
                name: (path, 8 + length + entry["data_offsets"][0])
                for name, entry in header.items()
                if name != "__metadata__"
            }

    def read(self, name: str, bits: np.dtype[np.unsignedinteger], shape: Shape) -> Bits:
        """The bits of one tensor."""
        path, offset = self.places[name]
        return np.fromfile(path, bits, int(np.prod(shape)), offset=offset).reshape(shape)


def shards(named: dict[str, Shape], itemsize: int, limit: float) -> Iterator[dict[str, Shape]]:
    """The tensors of each file: as many as stay within `limit` bytes, at least one."""
    shard: dict[str, Shape] = {}
    size = 0
    for name, shape in named.items():
        more = int(np.prod(shape)) * itemsize
        if shard and size + more > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += more
    yield shard


def write_header(file: BinaryIO, named: dict[str, Shape], itemsize: int, code: str) -> None:
    """Length and JSON, padded so that the data begin on a page."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in named.items():
        begin, end = end, end + int(np.prod(shape)) * itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 4096)
    file.write(len(text).to_bytes(8, "little") + text)


def write(out: Path, size: str, dtype: str, source: Source, shard_bytes: float, layers: int | None = None) -> int:
    """Writes the files of one checkpoint and returns the bytes of its tensors."""
    values, _, code, _ = DTYPES[dtype]
    out.mkdir(parents=True, exist_ok=True)
    parts = list(shards(shapes(size, layers), values.itemsize, shard_bytes))
    weight_map: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, 1):
        name = "model.safetensors" if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        with (out / name).open("wb") as file:
            write_header(file, part, values.itemsize, code)
            for tensor, shape in part.items():
                bits = source.tensor(tensor, shape)
                bits.tofile(file)
                total += bits.nbytes
        weight_map |= dict.fromkeys(part, name)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    hidden, mlp, depth, heads, kv_heads, vocabulary = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers or depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
    return total


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--layers", type=int, help="other than the size has")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="directory of a checkpoint of the same size and dtype")
    parser.add_argument("--rank", type=int, default=0, help="of the difference to the base")
    parser.add_argument("--shard-gb", type=float, default=float("inf"), help="decimal gigabytes per file")
    options = parser.parse_args()
    source = Source(options.dtype, options.seed, options.base, options.rank)
    total = write(options.out, options.size, options.dtype, source, options.shard_gb * 1e9, options.layers)
    print(f"{options.out}: {total / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
