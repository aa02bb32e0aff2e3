"""What the structure of the package is, in numbers: rooms, files, types, circles, and the way of a run through it.

    python benchmarks/house.py [--json]

A *stay* is an unbroken stretch of calls in one module on the thread that runs a plan, from `surgery_jax.api.run` to its
return; a *climb* is a call into a room that lies above the caller's in the order of the import contract. Of a worker,
the stays of one task are counted. `Any` is counted by its uses in annotations.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tempfile
import threading
import tomllib
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "surgery_jax"


def room_of(module: str) -> str:
    """The room of a module: the package below ours, or the module itself."""
    return module.split(".")[1] if "." in module else module


def order() -> list[str]:
    """Rooms from the top down, as the layers of the import contract have them; storage stands beside io."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    found = [room_of(name.strip()) for layer in layers for name in layer.replace("|", ":").split(":")]
    return [*found, *([] if "storage" in found else ["storage"])]


def files() -> dict[str, dict[str, Any]]:
    """By room: how many files, lines of the longest, lines in all, and uses of `Any` in annotations."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        text = path.read_text()
        room = found.setdefault(
            room_of(module.removesuffix(".__init__")), {"files": 0, "longest": 0, "lines": 0, "any": 0}
        )
        lines = text.count("\n")
        room["files"] += 1
        room["lines"] += lines
        room["longest"] = max(room["longest"], lines)
        room["any"] += sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(ast.parse(text)))
    return found


class Way:
    """The modules that a thread is in, one after the other."""

    def __init__(self, rooms: list[str]) -> None:
        self.height = {room: -number for number, room in enumerate(rooms)}
        self.stays: list[str] = []
        self.climbs: Counter[tuple[str, str]] = Counter()

    def trace(self, frame: FrameType, event: str, argument: object) -> None:
        """Note a call into a module of ours; for `sys.setprofile`."""
        module = frame.f_globals.get("__name__", "")
        if event != "call" or not module.startswith(PACKAGE + "."):
            return
        last = self.stays[-1] if self.stays else None
        if module == last:
            return
        if last is not None:
            here, there = room_of(last), room_of(module)
            if self.height.get(there, 0) > self.height.get(here, 0):
                self.climbs[here, there] += 1
        self.stays.append(module)


def way() -> dict[str, Any]:
    """The way of a plan with a move, a computation and an assertion, on the main thread and on its workers."""
    sys.path.insert(0, str(ROOT / "tests"))
    import numpy as np
    from safetensors.numpy import save_file

    from surgery_jax import Options, plan_of, run

    main, workers = Way(order()), Way(order())
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tensors = {key: np.ones((64, 64), np.float32) for key in ("a", "b")}
        save_file(tensors, root / "m.safetensors")
        steps = [{"move": {"from": "a", "to": "c"}}, {"scale_": {"target": "b", "by": 2}}, {"assert": {"exists": "c"}}]
        plan = plan_of({"inputs": [str(root / "m.safetensors")], "transforms": steps, "output": str(root / "out")})
        run(plan, Options(sync=False, overwrite=True))  # what is imported and compiled once is not the way
        threading.setprofile(workers.trace)
        sys.setprofile(main.trace)
        run(plan, Options(sync=False, overwrite=True, workers=1))
        sys.setprofile(None)
        threading.setprofile(None)
    return {
        "stays": len(main.stays),
        "modules": len(set(main.stays)),
        "rooms": len({room_of(module) for module in main.stays}),
        "climbs": sum(main.climbs.values()),
        "worker_stays": len(workers.stays),
        "worker_rooms": len({room_of(module) for module in workers.stays}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    found = {"rooms": files(), "way": way()}
    if parser.parse_args().json:
        print(json.dumps(found, indent=2))
        return
    for room, row in found["rooms"].items():
        print(
            f"{room:12} {row['files']:3} files  longest {row['longest']:4}  lines {row['lines']:5}  Any {row['any']:4}"
        )
    print(" ".join(f"{key} {value}" for key, value in found["way"].items()))


if __name__ == "__main__":
    main()
