"""What of the outputs of a plan is taken over from an earlier one instead of being made again.

The process that publishes finds which tensors these are, and all build the same program: there they are stored tensors
of the earlier output, so that their bytes are moved. That they are what its receipt says is known by their digests,
which are found while they are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import StorageError
from ..graph.node import Source
from ..graph.stored import with_stored
from ..hosts.peers import Peers
from ..proof.reusing import read_earlier
from ..storage.formats import open_checkpoint
from ..storage.places.found import locate
from .compiled import Compiled

if TYPE_CHECKING:
    from ..graph.node import Node
    from ..graph.roots import Save
    from ..proof.keeping import Receipts
    from ..storage.base import Checkpoint

__all__ = ["Taking"]


@dataclass(eq=False)
class Taking:
    """What is taken over in one session; `told` has a sentence for every earlier output."""

    told: dict[str, None] = field(default_factory=dict)
    _taken: dict[Save, tuple[int, int]] = field(default_factory=dict)  # tensors and bytes

    def figures(self) -> dict[str, Any]:
        """Those that a report has of it."""
        counts, sizes = zip(*self._taken.values(), strict=True) if self._taken else ((), ())
        return {"tensors_reused": sum(counts), "bytes_reused": sum(sizes), "reused": tuple(self.told)}

    def add(self, other: Taking) -> None:
        """Also what was taken over in another session."""
        self.told |= other.told
        self._taken |= other._taken

    def path_of(self, reuse: str | None, job: str) -> str | None:
        """The earlier output that a job takes over from, in whose path `${job}` is its name. A new job has none."""
        path = reuse and reuse.replace("${job}", job)
        if path and not locate(path).exists():
            self.told[f"nothing is taken over from {path}: it is not there"] = None
            return None
        return path

    def over(self, compiled: Compiled, path: str, peers: Peers, receipts: Receipts) -> Compiled:
        """A plan that takes over what the earlier output at a path has of it.

        Raises:
            StorageError: the earlier output or an input cannot be read, here or in another process.
        """
        from ..hosts.sharing import together  # with NumPy, which what only checks a plan does without

        said = together(peers, lambda: b"-" if peers.rank else self._found(compiled, path, receipts))
        told = json.loads(peers.share(said))
        for save, digests in zip(compiled.symbolic.saves, told["digests"], strict=True):
            receipts.expect(save, path, digests, made_by=told["devices"])
        if not any(told["names"]):
            return compiled
        return together(peers, lambda: _with(compiled, open_checkpoint(told["place"]), told["names"]))

    def _found(self, compiled: Compiled, path: str, receipts: Receipts) -> bytes:
        symbolic, earlier = compiled.symbolic, read_earlier(path)
        found = earlier.find(symbolic, receipts.sums(symbolic), receipts.kind)
        self.told[found.told] = None
        for save, names in zip(symbolic.saves, found.names, strict=True):
            self._taken[save] = len(names), sum(node.spec.nbytes for name, node in save.tensors if name in names)
        digests = [{name: earlier.digest(there) for name, there in names.items()} for names in found.names]
        told = {"place": earlier.checkpoint.path, "names": found.names, "digests": digests, "devices": found.devices}
        return json.dumps(told).encode()


def _with(compiled: Compiled, earlier: Checkpoint, names: Sequence[Mapping[str, str]]) -> Compiled:
    """The plan with stored tensors of an earlier output in the place of what it would make.

    Raises:
        StorageError: the earlier output is not what another process has seen.
    """
    graph, symbolic = compiled.graph, compiled.symbolic
    assert graph is not None
    stored: dict[Node, Node] = {}
    for save, own in zip(symbolic.saves, names, strict=True):
        for name, node in save.tensors:
            if name in own:
                there = own[name]
                entry = earlier.entries.get(there)
                if entry is None or entry.spec != node.spec:
                    raise StorageError(f"there is no {there}, {node.spec}", where=earlier.path)
                source = Source(("taken over", earlier.path), there, entry, path=earlier.path)
                stored[node] = graph.read(source, entry.spec, node.origin)
    return replace(compiled, shorter=with_stored(symbolic, graph, stored, earlier.identities))
