"""What comes of replays: tensors that differ, and what may be the cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..hosts.peers import Peers
from ..hosts.sharing import together
from ..kit.operations import Varies
from ..proof.differences import suspects
from ..proof.environment import versions
from ..proof.inputs import check_inputs
from ..proof.receipt import Receipt
from ..session.compiled import Compiled

__all__ = ["Mismatch", "Replay", "check_same_inputs", "told_replay", "told_within"]


@dataclass(frozen=True)
class Mismatch:
    """A tensor that is not what the plan makes. why: what differs. index: of the first element that does, if it is
    known; within: whether it is within what its operations may differ by between processors."""

    name: str
    why: str
    index: tuple[int, ...] | None = None
    within: bool = False


@dataclass(frozen=True)
class Replay:
    """What came of a replay. compared: the receipt, or the checkpoint that it was compared with. suspects: what differs
    between then and now that results may depend on."""

    receipt: str
    compared: str
    num_tensors: int
    mismatches: tuple[Mismatch, ...]
    suspects: tuple[str, ...] = ()
    output: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every tensor is the same, or as near as its operations promise."""
        return all(mismatch.within for mismatch in self.mismatches)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"holds": self.holds}


def check_same_inputs(known: Receipt, compiled: Compiled, peers: Peers) -> None:
    """Whether the inputs are those of a receipt, as the first of the processes finds.

    Raises:
        SurgeryError: they are not.
    """

    def checked() -> bool:
        if not peers.rank:
            check_inputs(known, compiled.symbolic, "name the right ones: --input ALIAS=PATH")
        return True

    together(peers, checked)


def told_replay(known: Receipt, compared: str, found: Sequence[Mismatch], output: str | None) -> Replay:
    """What came of a replay that found these differences."""
    now = versions(with_devices=known.versions.get("devices", "none") != "none") if found else {}
    other = "the receipt" if compared == str(known.path) else "it is another checkpoint"
    causes = tuple(suspects(known.versions, now, other)) if found else ()
    return Replay(str(known.path), compared, len(known.table["tensors"]), tuple(found), causes, output)


def told_within(varies: Varies | None) -> str:
    """The end of a sentence on elements that differ: why they may, and by how much."""
    return "" if varies is None else f"; {varies.why}: by {varies.tolerance:g} of the largest magnitude at most"
