"""One program of all operations, on the first cases of their own tests; as a script, one process that runs it.

python tests/registry.py OUTPUT OPTIONS    OPTIONS as JSON: those of `surgery_jax.Options`
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

from surgery_jax import Options
from surgery_jax.core.errors import Mark
from surgery_jax.graph.node import Graph, Node, Source
from surgery_jax.graph.roots import Check, Request, Save, Symbolic
from surgery_jax.hosts.cluster import join
from surgery_jax.session.compiled import Compiled, StorageOutside
from surgery_jax.session.run import Session, Transaction
from surgery_jax.storage.formats import open_checkpoint

__all__ = ["write_registry"]

INPUT, OPERATIONS = "operands.safetensors", "operations.pickle"
HERE = Mark("the registry", 1, 1)


def write_registry(root: Path, references: dict[str, Any]) -> list[str]:
    """What the script reads: operations, and a checkpoint of their operands. Gives the names of the operations."""
    from running import write_checkpoint  # only here: the script needs nothing of it

    first = {name: cases[0] for name, (cases, _, _) in sorted(references.items()) if cases}
    operands = {f"{name}/{n}": array for name, (_, given) in first.items() for n, array in enumerate(given)}
    write_checkpoint(root / INPUT, operands)
    (root / OPERATIONS).write_bytes(pickle.dumps([(name, op, len(given)) for name, (op, given) in first.items()]))
    return list(first)


def program(output: str, options: Options) -> Compiled:
    """The program that writes what all operations make to a directory, and asks whether all masks are true."""
    graph, outside = Graph(), StorageOutside(options)
    stored = open_checkpoint(INPUT)
    made: list[tuple[str, Node]] = []
    checks: list[Check] = []
    for name, op, count in pickle.loads(Path(OPERATIONS).read_bytes()):  # of our own test
        entries = {key: stored.entries[key] for key in (f"{name}/{n}" for n in range(count))}
        given = [graph.read(Source(INPUT, key, e, path=INPUT), e.spec, HERE) for key, e in entries.items()]
        results = graph.apply(op, tuple(given), HERE)
        if op.kind == "check":
            checks += [Check(result, name) for result in results]
        else:
            made += [(f"{name}.{number}", result) for number, result in enumerate(results)]
    request = Request(output, None, None, "output", HERE)
    symbolic = Symbolic([Save(request, tuple(made))], checks, (), (), (), (), True, identities=stored.identities)
    resolved = outside.resolve(request)
    return Compiled(symbolic, ((resolved, resolved.layout([(name, node.spec) for name, node in made], {})),))


def main() -> None:
    output, options = sys.argv[1], Options(sync=False, receipt=False, **json.loads(sys.argv[2]))
    with join(options) as peers:
        compiled = program(output, options)
        (outcome,) = Session(options, peers=peers).run([Transaction(compiled)])
    if not peers.rank:
        print(json.dumps({check.label: outcome.findings[check] for check in compiled.symbolic.checks}))


if __name__ == "__main__":
    main()
