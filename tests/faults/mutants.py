"""Damaged inputs: what others wrote, changed in a few places, must be read, or refused with one clear error."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .harness import Answer, Server
from .scenes import BATCH, JOBS, model, tensors

__all__ = ["MEMORY", "Mutant", "faults_of", "mutants", "seeds"]

MEMORY = 500 << 20  # bytes that no reading of a small file may take, the program included
NUMBERS = (b"0", b"-1", b"1e999", b"18446744073709551615", b"9" * 300, b"NaN", b"null", b'"x"', b"[]", b"{}", b"true")
BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xed\xa0\x80")


def seeds(root: Path, server: Server) -> list[tuple[Path, tuple[str, ...]]]:
    """Inputs of every format in folders of their own, with the command that reads each."""
    model(root)
    found: list[tuple[Path, tuple[str, ...]]] = []
    formats = {
        "file": ("model.safetensors",), "shards": ("model", "--shard-size", "700KB"), "torch": ("model.pt",),
        "flax": ("model.msgpack",), "orbax": ("model", "--format", "orbax"),
    }  # fmt: skip
    for name, (target, *more) in formats.items():
        folder = root / name
        folder.mkdir()
        done = server.run(("convert", "model", f"{name}/{target}", *more, "--no-sync"), root)
        assert done.code == 0, done
        found.append((folder, ("inspect", target)))
        found.append((folder, ("convert", target, "out.safetensors", "--no-sync")))
    arrays = root / "arrays"
    arrays.mkdir()
    np.savez_compressed(arrays / "model.npz", **tensors(4))  # type: ignore[arg-type]
    found.append((arrays, ("inspect", "model.npz")))
    adapter = root / "adapter"
    adapter.mkdir()
    found.append((_adapter(adapter), ("inspect", "adapter")))
    plans = root / "plans"
    plans.mkdir()
    model(plans)
    (plans / "plan.yaml").write_text(BATCH)
    (plans / "jobs.yaml").write_text(JOBS)
    found += [(plans, ("check", "plan.yaml")), (plans, ("batch", "jobs.yaml", "--check"))]
    return found


def _adapter(folder: Path) -> Path:
    from running import write_checkpoint

    given = tensors(5)
    names = {
        "base_model.model.a.lora_A.weight": given["a.weight"][:4],
        "base_model.model.a.lora_B.weight": given["b.weight"][:, :4],
    }
    write_checkpoint(folder / "adapter" / "adapter_model.safetensors", names)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["a"], "rank_pattern": {"a": 4}}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return folder


# -------------------------------------------------------------------------------------------------------- mutations


def _flip(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


def _replace(data: bytes, draw: random.Random) -> bytes:
    piece = draw.choice(BYTES)
    at = draw.randrange(len(data))
    return data[:at] + piece + data[at + len(piece) :]


def _repeat(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    piece = data[at : at + draw.randrange(1, 64)]
    return data[:at] + piece * draw.choice((2, 3, 1000)) + data[at + len(piece) :]


def _number(data: bytes, draw: random.Random) -> bytes:
    """One number, or word, of a text becomes another."""
    head = data[:65536]
    found = list(re.finditer(rb"\d+|true|false|null", head))
    if not found:
        return _replace(data, draw)
    match = draw.choice(found)
    return data[: match.start()] + draw.choice(NUMBERS) + data[match.end() :]


def _swap(data: bytes, draw: random.Random) -> bytes:
    a, b = sorted(draw.randrange(len(data)) for _ in range(2))
    length = draw.randrange(1, 32)
    return data[:a] + data[b : b + length] + data[a + length : b] + data[a : a + length] + data[b + length :]


def _nest(data: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(data))
    return (
        data[:at]
        + draw.choice((b"[", b"{", b'{"a":', b"(", b"\x91", b"\x81\xa1a")) * draw.choice((50, 5000))
        + data[at:]
    )


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _flip, _cut, _replace, _repeat, _number, _number, _swap, _nest,
)  # fmt: skip


class Mutant:
    """One damaged input: a folder and the command that reads it."""

    def __init__(self, folder: Path, command: tuple[str, ...], what: str) -> None:
        self.folder = folder
        self.command = command
        self.what = what


def mutants(
    found: list[tuple[Path, tuple[str, ...]]], place: Path, draw: random.Random, count: int
) -> Iterator[Mutant]:
    """So many damaged inputs, each in `place`, which is made anew."""
    for number in range(count):
        folder, command = found[number % len(found)]
        if place.exists():
            shutil.rmtree(place)
        shutil.copytree(folder, place)
        files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.stat().st_size]
        texts = [path for path in files if path.suffix in (".json", ".yaml")]
        victim = draw.choice(texts if texts and draw.random() < 0.5 else files)
        data = victim.read_bytes()
        names = []
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            mutation = draw.choice(MUTATIONS)
            head = data[: 1 << 16] if draw.random() < 0.8 else data  # where formats say what follows
            data = mutation(head, draw) + data[len(head) :] if head else b""
            names.append(mutation.__name__.strip("_"))
        victim.write_bytes(data)
        yield Mutant(place, command, f"{folder.name} {victim.name} {'+'.join(names)} (number {number})")


def faults_of(mutant: Mutant, done: Answer) -> list[str]:
    """What is wrong with how a damaged input was taken."""
    wrong = []
    if done.code is None:
        wrong.append("it hangs")
    elif done.code not in (0, 1, 2, 3, 4) or "Traceback" in done.stderr:
        wrong.append(f"exit {done.code}: {done.stderr[-300:]}")
    elif done.code and not done.stderr.startswith("error: ") and "failed" not in done.stdout:
        wrong.append(f"exit {done.code} without an error: {done.stderr[-300:]}")
    if done.peak > MEMORY:
        wrong.append(f"{done.peak >> 20} MiB")
    return [f"{mutant.what}: {w}" for w in wrong]
