"""What a run must be to go on with another one: the same plan, versions, inputs and outputs, as a digest."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..core.digests import digest, encoded
from ..core.discover import version_of
from ..graph.node import Node, Source
from ..storage.identity import Identity
from ..storage.places.found import is_local
from .finished import key_of

if TYPE_CHECKING:
    from ..compile.program import Program
    from ..execute.options import Options
    from ..storage.base import Layout
    from .compiled import Compiled

__all__ = ["answers_key", "head_of", "run_key", "state", "text_digest", "versions"]

_PACKAGES = ("jax", "jaxlib", "numpy")


def run_key(compiled: Compiled, options: Options) -> str:
    """The digest of all that decides the bytes of a plan's outputs and where in their files these are."""
    plan = b"" if compiled.plan is None else key_of(compiled.plan, options).encode()
    places = [encoded((output.path, output.format.name, layout.is_directory)) for output, layout in compiled.outputs]
    places += [_places(layout) for _, layout in compiled.outputs]
    inputs = encoded(states(compiled.symbolic.identities))
    wanted = [node for save in compiled.symbolic.saves for _, node in save.tensors]
    wanted += [one.node for many in (compiled.symbolic.checks, compiled.symbolic.sinks) for one in many]
    return digest(encoded(versions()), plan, inputs, *places, *_operations(wanted)).hex()


def _places(layout: Layout) -> bytes:
    """Where everything belongs."""
    lines = [f"{file.name!r} {file.size}" for file in layout.files]
    lines += [f"{name!r} {number} {at}" for name, (number, at) in layout.places.items()]
    lines += [f"{name!r} {parts!r}" for name, parts in layout.rest.items()]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def answers_key(program: Program) -> str:
    """The digest of all that decides what a first pass finds."""
    symbolic = program.symbolic
    asked = [one.node for many in (symbolic.checks, symbolic.sinks) for one in many]
    wants = encoded([sink.wants for sink in symbolic.sinks])
    return digest(encoded(versions()), encoded(states(symbolic.identities)), wants, *_operations(asked)).hex()


def versions() -> dict[str, str]:
    """Those of what computes."""
    from .. import __version__

    return {"surgery_jax": __version__} | {name: version_of(name) or "" for name in _PACKAGES}


def states(identities: Mapping[str, Identity]) -> dict[str, list[Any]]:
    """What tells files from any other. Not the device, which has another number when it is mounted again, and not the
    time at which a file got its name."""
    return {path: state(path, known) for path, known in sorted(identities.items())}


def state(path: str, known: Identity) -> list[Any]:
    """What tells a file from any other."""
    if is_local(path):
        return [known.file[-1], known.size, known.version[0]]
    return [*known.file, known.size, *known.version]


def _operations(nodes: Iterable[Node]) -> Iterator[bytes]:
    """The digests of the operations that nodes come from, such as random numbers with what they were drawn with: each
    once, since one operation makes many nodes."""
    seen: set[int] = set()
    known: dict[int, bytes] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack += node.operands
        if not isinstance(node.op, Source) and id(node.op) not in known:
            known[id(node.op)] = encoded(node.op)
    yield from sorted(set(known.values()))


def head_of(compiled: Compiled, options: Options, answers: Mapping[str, bytes]) -> dict[str, Any]:
    """What is said in the hidden directory of each output of a run; `answers` are what passes before have found."""
    return {
        "key": run_key(compiled, options),
        "plan": "" if compiled.plan is None else key_of(compiled.plan, options),
        "versions": versions(),
        "inputs": states(compiled.symbolic.identities),
        "texts": _executed(compiled),
        "taken": _taken(compiled),
        "run": secrets.token_hex(8),
        "outputs": [output.path for output, _ in compiled.outputs],
        "answers": {name: base64.b85encode(packed).decode() for name, packed in answers.items()},
    }


def _taken(compiled: Compiled) -> str:
    """The digest of which tensors are taken over from an earlier output, and of its files; empty if none are. They are
    known to be right only when all is written, so who goes on must take over the same."""
    if compiled.shorter is None:
        return ""
    pairs = zip(compiled.symbolic.saves, compiled.shorter.saves, strict=True)
    rows = [row for made, read in pairs for row in zip(made.tensors, read.tensors, strict=True)]
    taken = [(name, new.op.name) for (name, old), (_, new) in rows if new is not old and isinstance(new.op, Source)]
    return digest(encoded(states(compiled.shorter.identities)), encoded(taken)).hex()


def _executed(compiled: Compiled) -> dict[str, str]:
    """The digests of the texts of plans that a plan executes, by path."""
    own, all_files = compiled.plan, compiled.symbolic.plan
    if own is None or all_files is None:
        return {}
    found = {path: text for path, text in all_files.origin.files.items() if path not in own.origin.files}
    return {path: text_digest(text) for path, text in found.items()}


def text_digest(text: str) -> str:
    """What tells the text of a plan from any other."""
    return digest(text.encode()).hex()
