"""A program that publishes outputs in processes of its own, and disturbs each at another call; `faults.c` is preloaded.

Says as JSON what became of them: a row per process.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from storing import Tensors, sample, tree, write

from surgery_jax.core.errors import SurgeryError
from surgery_jax.storage.clearing import clear
from surgery_jax.storage.formats import formats

OLD = {"a": sample("uint8", 8), "b": sample("uint8", 8), "c": sample("uint8", 8)}
NEW = {"a": sample("int8", 8), "new": sample("int8", 16)}


def make_file(root: Path) -> None:
    write(root / "out.safetensors", OLD)


def make_directory(root: Path) -> None:
    """An old checkpoint of three shards, and what belongs to it for its users."""
    write(root / "out", OLD, shard="8B")
    (root / "out/config.json").write_text("{}")
    (root / "out/ema.safetensors").write_text("mine")
    (root / "out/sub").mkdir()
    (root / "out/sub/tokenizer.bin").write_text("tokens")


def make_nothing(root: Path) -> None:
    """There is no output yet."""


PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "file": (make_file, "out.safetensors"),
    "directory": (make_directory, "out"),
    "working directory": (make_directory, "out"),
    "new": (make_nothing, "deep/out"),
}


def put(root: Path, place: str, tensors: Tensors) -> None:
    """Write the output as a run does it."""
    target = root / PLACES[place][1]
    if place == "working directory":
        os.chdir(target)
    clear(target, remove=True)
    write(target, tensors, overwrite=True, shard=None if target.suffix else "16B")


def seen(root: Path) -> dict[str, Any]:
    """The files that a user sees: all but what is hidden."""
    found = {name: data for name, data in tree(root).items() if ".surgery-" not in name}
    return {name: data.hex() for name, data in found.items() if data is not None}


def hidden(root: Path) -> list[str]:
    return [str(path) for path in root.rglob(".*surgery-*")]


def in_child(action: Callable[[], int | None], **settings: int) -> int:
    """Do something in a process of its own; gives how it ended: an exit code, or minus a signal."""
    child = os.fork()
    if child == 0:
        os.environ |= {f"FAULT_{name.upper()}": str(value) for name, value in settings.items()}
        code = 1
        try:
            code = action() or 0
        except SurgeryError as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def disturbances(root: Path, place: str, **settings: int) -> Iterator[dict[str, Any]]:
    """Disturb the n-th call, for every n; then do it again undisturbed."""
    lacks = settings.get("lacks", 0)

    def fresh() -> dict[str, Any]:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        PLACES[place][0](root)
        return seen(root)

    def counted() -> int:
        put(root, place, NEW)
        return ctypes.CDLL(None).faults_counted()

    formats()  # children need not import them
    before = fresh()
    count = in_child(counted, lacks=lacks)
    after = seen(root)
    assert before != after
    assert not hidden(root)
    for at in range(1, count + 1):
        fresh()
        sys.stderr.truncate(0)
        ended = in_child(lambda at=at: put(root, place, NEW), at=at, **settings)
        first = seen(root)
        row = {"at": at, "ended": ended, "is_old": first == before, "is_new": first == after, "hidden": hidden(root)}
        row["told"] = Path(sys.stderr.name).read_text()
        row["again"] = in_child(lambda: put(root, place, NEW), lacks=lacks)
        yield row | {"is_new_then": seen(root) == after, "hidden_then": hidden(root)}


if __name__ == "__main__":
    sys.stderr = Path(sys.argv[1]).with_name("told").open("a")
    given: dict[str, Any] = json.loads(sys.argv[2])
    print(json.dumps(list(disturbances(Path(sys.argv[1]), given.pop("place"), **given))))
