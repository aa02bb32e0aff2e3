"""What the structure of the package is, in numbers: rooms, files, types, circles, and the way of a tensor through it.

    python benchmarks/house.py [--json] [TREE ...]     trees are checkouts; this one if none is named

The way is that of one tensor from the line of a plan that scales it to the last byte on the disk, as a reader follows
it: from `run(load_plan(...))` on into each function when it is called for the first time, and never again. What the
main thread calls comes first, then what only workers do; what is nested in a function is read with it, and imports are
no part of it. A *stay* is an unbroken stretch of functions in one file, a *room* a package below ours or a module right
in it, and a *climb* is a call into a room above that of the caller, in the order of the import contract.

A *circle* is a set of files each of which imports all others, at the top or within functions, directly or through one
another; what only types need does not count. `Any` is counted by its uses in annotations and calls.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import pkgutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = "surgery_jax"


def room_of(module: str) -> str:
    """The room of a module: the package below ours, or the module itself."""
    return module.split(".")[1] if "." in module else module


def heights(tree: Path) -> dict[str, float]:
    """How high each room lies, as the layers of the import contract have it; storage stands right above the core."""
    contracts = tomllib.loads((tree / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    found: dict[str, float] = {"storage": 0.5}
    for height, layer in enumerate(reversed(layers)):
        found |= {room_of(name.strip()): height for name in layer.replace("|", ":").split(":")}
    return found


def modules(tree: Path) -> dict[str, ast.Module]:
    """The parsed files of the package by the names of their modules."""
    found = {}
    for path in sorted((tree / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(tree).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


def files(tree: Path) -> dict[str, dict[str, int]]:
    """By room: how many files, lines of the longest, lines in all, and uses of `Any`."""
    found: dict[str, dict[str, int]] = {}
    for name, parsed in modules(tree).items():
        room = found.setdefault(room_of(name), {"files": 0, "longest": 0, "lines": 0, "any": 0})
        place = tree / name.replace(".", "/")
        lines = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text().count("\n")
        room["files"] += 1
        room["lines"] += lines
        room["longest"] = max(room["longest"], lines)
        room["any"] += sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(parsed))
    return found


# ---------------------------------------------------------------------------------------------------------- circles


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports but those that only types need."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from _imports(child)


def imported(name: str, parsed: ast.Module, is_package: bool, known: set[str]) -> set[str]:
    """The modules of the package that a module imports."""
    found = set()
    for node in _imports(parsed):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        above = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return (found & known) - {name}


def circles(tree: Path) -> list[list[str]]:
    """The sets of files that import each other."""
    parsed = modules(tree)
    packages = {name for name in parsed if (tree / name.replace(".", "/")).is_dir()}
    edges = {name: imported(name, node, name in packages, set(parsed)) for name, node in parsed.items()}
    reach: dict[str, set[str]] = {}
    for name in edges:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            fresh = edges[waiting.pop()] - seen
            seen |= fresh
            waiting += fresh
        reach[name] = seen
    found = {frozenset(other for other in reach[name] if name in reach[other]) for name in edges if name in reach[name]}
    return sorted(sorted(circle) for circle in found)


# ---------------------------------------------------------------------------------------------------------- the way


class Reader:
    """The functions of the package in the order in which each thread calls them first."""

    def __init__(self) -> None:
        self.by_thread: dict[int, dict[tuple[str, str], str]] = {}  # with the module of the caller

    def note(self, frame: FrameType, event: str, argument: object) -> None:
        """For `sys.setprofile`."""
        module, name = frame.f_globals.get("__name__", ""), frame.f_code.co_qualname
        if event == "call" and module.startswith(PACKAGE) and "<" not in name:
            self.by_thread.setdefault(threading.get_ident(), {}).setdefault((module, name), _caller(frame) or module)

    def calls(self) -> list[list[tuple[str, str]]]:
        """(module, module of the caller) of the functions of the main thread, then of each other one what is not read
        yet."""
        main = threading.main_thread().ident
        seen: set[tuple[str, str]] = set()
        found = []
        for _, called in sorted(self.by_thread.items(), key=lambda row: row[0] != main):
            found.append([(function[0], caller) for function, caller in called.items() if function not in seen])
            seen |= called.keys()
        return found


def _caller(frame: FrameType) -> str | None:
    """The module of the nearest function of the package that called."""
    above = frame.f_back
    while above is not None:
        module: str = above.f_globals.get("__name__", "")
        if module.startswith(PACKAGE):
            return module
        above = above.f_back
    return None


def way(tree: Path) -> dict[str, Any]:
    """What the way of a tensor that is scaled comes to."""
    import numpy as np
    from safetensors.numpy import save_file

    package = importlib.import_module(PACKAGE)
    for found in pkgutil.walk_packages(package.__path__, PACKAGE + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    reader = Reader()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        save_file({"w": np.ones((64, 64), np.float32)}, root / "m.safetensors")
        text = (
            f"inputs: [ {root}/m.safetensors ]\ntransforms:\n  - scale_: {{ target: w, by: 2 }}\noutput: {root}/out\n"
        )
        (root / "plan.yaml").write_text(text)
        options = package.Options(sync=False, workers=1)
        threading.setprofile(reader.note)
        sys.setprofile(reader.note)
        try:
            package.run(package.load_plan(str(root / "plan.yaml")), options)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    height = heights(tree)
    threads = reader.calls()
    calls = [call for thread in threads for call in thread]
    steps = [step for thread in threads for step in pairwise(module for module, _ in thread)]
    climbs = Counter(
        f"{room_of(caller)} to {room_of(module)}"
        for module, caller in calls
        if height.get(room_of(module), 0) > height.get(room_of(caller), 0)
    )
    return {
        "functions": len(calls),
        "stays": sum(before != after for before, after in steps) + sum(map(bool, threads)),
        "files": len({module for module, _ in calls}),
        "stays_in_rooms": sum(room_of(before) != room_of(after) for before, after in steps) + sum(map(bool, threads)),
        "rooms": len({room_of(module) for module, _ in calls}),
        "climbs": climbs.total(),
        "by": dict(climbs.most_common()),
    }


def measured(tree: Path) -> dict[str, Any]:
    """All figures of a checkout."""
    sys.path.insert(0, str(tree))
    return {"rooms": files(tree), "circles": circles(tree), "way": way(tree)}


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The figures for people."""
    yield "room          files  longest  lines  Any"
    total = {"files": 0, "longest": 0, "lines": 0, "any": 0}
    for room, row in found["rooms"].items():
        total = {key: max(row[key], value) if key == "longest" else row[key] + value for key, value in total.items()}
        yield f"{room:12} {row['files']:6} {row['longest']:8} {row['lines']:6} {row['any']:4}"
    yield f"{'all':12} {total['files']:6} {total['longest']:8} {total['lines']:6} {total['any']:4}"
    yield "circles: " + ("; ".join(" - ".join(circle) for circle in found["circles"]) or "none")
    way, climbs = dict(found["way"]), found["way"]["by"]
    yield "the way of a tensor: " + ", ".join(f"{value} {key}" for key, value in way.items() if key != "by")
    yield "climbs: " + (", ".join(f"{count} from {who}" for who, count in climbs.items()) or "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("tree", nargs="*", type=Path)
    args = parser.parse_args()
    trees = [tree.resolve() for tree in args.tree] or [Path(__file__).resolve().parents[1]]
    if len(trees) > 1:  # a process can import one of them
        command = [sys.executable, __file__, "--json"]
        found = [json.loads(subprocess.run([*command, tree], check=True, capture_output=True).stdout) for tree in trees]
    else:
        found = [measured(trees[0])]
    print(
        json.dumps(found if len(found) > 1 else found[0], indent=2)
        if args.json
        else "\n\n".join("\n".join(lines(one)) for one in found)
    )


if __name__ == "__main__":
    main()
