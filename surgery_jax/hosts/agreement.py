"""Whether all processes mean the same: what differs between them is named, with the place where it stands.

What is compared are lines of text, under the name of what they say something about. Digests of all lines go to process
0; the lines themselves only where these differ, so that the first of them that does can be shown.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

from ..core.discover import version_of
from ..core.errors import PlanError
from ..execute.options import Options
from ..language import nodes
from ..language.plan import Plan
from .peers import Peers

if TYPE_CHECKING:
    from ..storage.base import Checkpoint, Layout
    from ..storage.formats import OutputPlan

__all__ = ["Facts", "compare", "facts_of_options", "facts_of_outputs", "facts_of_plan", "facts_of_sources"]

Line = tuple[str, str]  # what is compared, and where it stands
Facts = Mapping[str, Callable[[], Iterable[Line]]]  # the lines, by what they are about
MOST_SHOWN = 300  # characters of a line


def compare(peers: Peers, facts: Facts) -> None:
    """Make sure that facts are the same in all processes; of those that only some know nothing follows.

    Raises:
        PlanError: one of them differs somewhere.
    """
    if peers.size == 1:
        return
    digests = {name: _digest(lines()) for name, lines in facts.items()}
    said = [json.loads(message) for message in peers.gather(json.dumps(digests).encode())]
    differs = ((rank, name) for name in digests for rank, other in enumerate(said) if name in other)
    first = next(((rank, name) for rank, name in differs if said[rank][name] != digests[name]), None)
    found = json.loads(peers.share(json.dumps(first).encode()))
    if found is None:
        return
    rank, name = found
    lines = list(facts[name]()) if peers.rank in (0, rank) else []
    shown = peers.gather(json.dumps(lines).encode() if peers.rank else b"")
    if peers.rank == 0:
        raise _difference(f"{peers.name(rank)} differs in {name}", lines, json.loads(shown[rank]))
    peers.share()  # which process 0 does not reach


def _difference(problem: str, ours: Sequence[Line], theirs: Sequence[Line]) -> PlanError:
    """What to say of lines that differ; the first that does stands for the rest."""
    pairs = zip_longest(ours, theirs, fillvalue=("", ""))
    (text, place), (other, other_place) = next((one, two) for one, two in pairs if one[0] != two[0])
    where = other_place or place
    return PlanError(
        problem + (f", at {where}" if where else ""),
        expected=_shown(text) + ", as in process 0" + (f" at {place}" if place not in ("", where) else ""),
        found=_shown(other),
        hint="all processes need the same program, the same command line and the same files",
    )


def _shown(text: str) -> str:
    return text[:MOST_SHOWN] + "…" * (len(text) > MOST_SHOWN) if text else "nothing"


def _digest(lines: Iterable[Line]) -> str:
    made = hashlib.sha256()
    for line, _ in lines:
        made.update(line.encode("utf-8", "surrogatepass") + b"\0")
    return made.hexdigest()


def facts_of_plan(plan: Plan) -> Facts:
    """What computes, and what the plan says."""
    names = ("surgery-jax", "jax", "jaxlib", "numpy", "ml_dtypes")
    versions = {"Python": platform.python_version()} | {name: version_of(name) or "not installed" for name in names}
    found: dict[str, Callable[[], Iterable[Line]]] = {}
    for name, known in versions.items():
        found[f"the version of {name}"] = partial(list, [(known, "")])
    return found | {"the plan": partial(_plan_lines, plan)}


def _plan_lines(plan: Plan) -> Iterator[Line]:
    for entry in plan.inputs:
        yield f"input {entry.alias}: {entry.path}", str(entry.mark)
    if plan.steps is not None:
        yield from _node_lines("transforms", plan.steps)
    output = plan.output
    if output is not None:
        parts = {"path": output.path, "format": output.format, "shard": output.shard, **output.options}
        for key, value in parts.items():
            yield f"output.{key}: {value}", str(output.mark)


def _node_lines(path: str, node: nodes.Node) -> Iterator[Line]:
    """One line for every single value; in what order the keys of a mapping stand does not matter."""
    if isinstance(node, nodes.Scalar):
        yield f"{path}: {node.value!r}", str(node.mark)
    elif isinstance(node, nodes.Sequence):
        for number, item in enumerate(node.items):
            yield from _node_lines(f"{path}[{number}]", item)
    else:
        for key in sorted(node.entries):
            yield from _node_lines(f"{path}.{key}", node.entries[key])


def facts_of_options(options: Options) -> Facts:
    """What of the options decides how the work is cut, what may be replaced, and what all have to tell process 0."""
    values = {
        "--memory": f"{options.memory_bytes} bytes",
        "--device-memory": f"{options.limits.device} bytes",
        "--shard-size": options.shard_size,
        "--devices": f"{options.devices}",
        "--overwrite": f"{options.overwrite}",
        "--sync": f"{options.sync}",
        "--resume": f"{options.resume}",
        "--receipt": f"{options.receipt}, {options.receipt_path}",
        "--digest": options.digest,
        "--reuse": f"{options.reuse}",
    }
    return {name: partial(list, [(value, "")]) for name, value in values.items()}


def facts_of_sources(sources: Mapping[str, Checkpoint | nodes.Node]) -> Facts:
    """What was read to make the program, by its path: headers, and plans that the plan names."""
    found: dict[str, Callable[[], Iterable[Line]]] = {}
    for path, source in sources.items():
        if isinstance(source, nodes.Scalar | nodes.Sequence | nodes.Mapping):
            found[f"the plan {path}"] = partial(_node_lines, "plan", source)
        else:
            found[f"the header of {path}"] = partial(_header_lines, source)
    return found


def _header_lines(checkpoint: Checkpoint) -> Iterator[Line]:
    for key, value in checkpoint.metadata.items():  # first: where this differs, all that follows has moved
        yield f"metadata {key}: {value}", checkpoint.files[0] if checkpoint.files else checkpoint.path
    for name, entry in checkpoint.entries.items():
        if entry.extent is None:
            yield f"{name}: {entry.spec}", checkpoint.path
            continue
        path, offset, rest = entry.extent
        places = [(offset, path), *((at, part) for _, part, at in rest)]
        spelled = " and ".join(f"byte {at} of {part.rpartition('/')[2]}" for at, part in places)
        yield f"{name}: {entry.spec} from {spelled}", path


def facts_of_outputs(outputs: Sequence[tuple[OutputPlan, Layout]]) -> Facts:
    """Which files are written, and what belongs where."""

    def lines(output: OutputPlan, layout: Layout) -> Iterator[Line]:
        yield f"format {output.format.name}{', a directory' if output.is_directory else ''}", output.path
        for file in layout.files:
            yield f"{file.name or output.path}: {file.size} bytes, {[(at, len(data)) for at, data in file.fixed]}", ""
        for name, (number, at) in layout.places.items():
            yield f"{name}: in file {number} from byte {at} {layout.rest.get(name, '')}", output.path

    return {f"the output {output.path}": partial(lines, output, layout) for output, layout in outputs}
