"""Headers of a mixture of experts with 671 B parameters, as DeepSeek-V3 has them, and no data: files that are as long
as they should be and take no room.

    python tests/make_headers.py DIRECTORY [--wide] [--layers N] [--experts N]
    python tests/make_headers.py DIRECTORY --dense [--layers N]

Weights have eight bits and scales, as they are published; with --wide they are in bfloat16 and have none. With --dense
it is a Llama of 70 B parameters, in bfloat16 and with its config.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

LAYERS, DENSE, EXPERTS = 61, 3, 256  # layers; how many of them are dense; routed experts of the others
HIDDEN, WIDE, NARROW, VOCABULARY = 7168, 18432, 2048, 129280
HEADS, NOPE, ROPE, VALUE, QUERY_RANK, KEY_RANK = 128, 128, 64, 128, 1536, 512
BLOCK = 128  # of a scale: eight-bit weights have one per square block
SHARD = 4 << 30
LLAMA = {  # what the config of the dense one says
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}


def tensors(
    layers: int = LAYERS, experts: int = EXPERTS, is_wide: bool = False
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Names, dtypes and shapes in order; all in bfloat16 if it is wide."""
    for name, dtype, shape in _scaled_tensors(layers, experts):
        if not is_wide:
            yield name, dtype, shape
        elif not name.endswith(".weight_scale_inv"):
            yield name, "BF16" if dtype == "F8_E4M3" else dtype, shape


def _scaled_tensors(layers: int, experts: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", "BF16", (HIDDEN,)
        yield f"{at}.post_attention_layernorm.weight", "BF16", (HIDDEN,)
        yield f"{at}.self_attn.q_a_layernorm.weight", "BF16", (QUERY_RANK,)
        yield f"{at}.self_attn.kv_a_layernorm.weight", "BF16", (KEY_RANK,)
        yield from _scaled(f"{at}.self_attn.q_a_proj", QUERY_RANK, HIDDEN)
        yield from _scaled(f"{at}.self_attn.q_b_proj", HEADS * (NOPE + ROPE), QUERY_RANK)
        yield from _scaled(f"{at}.self_attn.kv_a_proj_with_mqa", KEY_RANK + ROPE, HIDDEN)
        yield from _scaled(f"{at}.self_attn.kv_b_proj", HEADS * (NOPE + VALUE), KEY_RANK)
        yield from _scaled(f"{at}.self_attn.o_proj", HIDDEN, HEADS * VALUE)
        if layer < DENSE:
            yield from _block(f"{at}.mlp", WIDE)
            continue
        yield f"{at}.mlp.gate.weight", "BF16", (experts, HIDDEN)
        yield f"{at}.mlp.gate.e_score_correction_bias", "F32", (experts,)
        yield from _block(f"{at}.mlp.shared_experts", NARROW)
        for expert in range(experts):
            yield from _block(f"{at}.mlp.experts.{expert}", NARROW)
    yield "model.norm.weight", "BF16", (HIDDEN,)
    yield "lm_head.weight", "BF16", (VOCABULARY, HIDDEN)


def _block(at: str, width: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield from _scaled(f"{at}.gate_proj", width, HIDDEN)
    yield from _scaled(f"{at}.up_proj", width, HIDDEN)
    yield from _scaled(f"{at}.down_proj", HIDDEN, width)


def _scaled(at: str, rows: int, columns: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield f"{at}.weight", "F8_E4M3", (rows, columns)
    yield f"{at}.weight_scale_inv", "F32", (-(-rows // BLOCK), -(-columns // BLOCK))


def dense_tensors(layers: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Names, dtypes and shapes of a Llama of 70 B parameters in 80 layers."""
    hidden, wide, rows = 8192, 28672, 128256
    yield "model.embed_tokens.weight", "BF16", (rows, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for norm in ("input", "post_attention"):
            yield f"{at}.{norm}_layernorm.weight", "BF16", (hidden,)
        for part, out in (("q", hidden), ("k", hidden // 8), ("v", hidden // 8), ("o", hidden)):
            yield f"{at}.self_attn.{part}_proj.weight", "BF16", (out, hidden)
        for part, shape in (("gate", (wide, hidden)), ("up", (wide, hidden)), ("down", (hidden, wide))):
            yield f"{at}.mlp.{part}_proj.weight", "BF16", shape
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (rows, hidden)


def make_dense_headers(directory: Path, layers: int = 80) -> tuple[int, int]:
    """Write a Llama of 70 B parameters, or of fewer layers; gives the number of tensors and of bytes."""
    found = _write(directory, dense_tensors(layers))
    (directory / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": layers}, indent=2))
    return found


def make_headers(
    directory: Path, layers: int = LAYERS, experts: int = EXPERTS, is_wide: bool = False
) -> tuple[int, int]:
    """Write the checkpoint; gives the number of tensors and of bytes."""
    return _write(directory, tensors(layers, experts, is_wide))


def _write(directory: Path, named: Iterator[tuple[str, str, tuple[int, ...]]]) -> tuple[int, int]:
    directory.mkdir(parents=True)
    shards: list[dict[str, object]] = [{}]
    sizes = [0]
    number = 0
    for name, dtype, shape in named:
        nbytes = BYTES[dtype]
        for length in shape:
            nbytes *= length
        if sizes[-1] + nbytes > SHARD:
            shards.append({})
            sizes.append(0)
        begin = sizes[-1]
        shards[-1][name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + nbytes]}
        sizes[-1] += nbytes
        number += 1
    where = {}
    for index, (header, size) in enumerate(zip(shards, sizes, strict=True), 1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        where.update(dict.fromkeys(header, file))
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (directory / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + size)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return number, sum(sizes)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", type=int, default=EXPERTS)
    args = parser.parse_args()
    if args.dense:
        count, nbytes = make_dense_headers(args.directory, args.layers or LLAMA["num_hidden_layers"])
    else:
        count, nbytes = make_headers(args.directory, args.layers or LAYERS, args.experts, args.wide)
    print(f"{count} tensors, {nbytes} bytes")


if __name__ == "__main__":
    main()
