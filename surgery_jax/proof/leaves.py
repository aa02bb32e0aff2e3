"""The leaves of tensors whose bytes come in any order, from several threads: parts that come in turn are not kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from ..core.specs import Spec
from .rolling import Held
from .tree import LEAF, Hash, num_leaves

__all__ = ["Leaves"]


class _Begun:
    """A leaf of which some bytes are known: its hash up to one of them, and parts that came before their turn."""

    __slots__ = ("at", "hash", "is_busy", "is_lost", "parts")

    def __init__(self, begun: Hash) -> None:
        self.hash = begun
        self.at = 0  # bytes that are hashed, or will be by the thread that is at it
        self.is_busy = False
        self.is_lost = False  # a part was not kept, so that the leaf must be read in the end
        self.parts: dict[int, bytes] = {}  # by first byte


class Leaves:
    """The leaves of one tensor as far as they are known."""

    __slots__ = ("_begin", "_begun", "_lock", "_room", "found", "spec")

    def __init__(self, spec: Spec, begin: Callable[[bytes | memoryview], Hash], room: Held) -> None:
        """`room` is for parts that come before others of their leaf."""
        self.spec = spec
        self.found: list[bytes | None] = [None] * num_leaves(spec.nbytes)
        self._begin = begin
        self._room = room
        self._begun: dict[int, _Begun] = {}
        self._lock = threading.Lock()

    def length(self, leaf: int) -> int:
        """Bytes of a leaf."""
        return min(LEAF, self.spec.nbytes - leaf * LEAF)

    def see(self, begin: int, data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        """Bytes of the tensor from `begin` on: hashes the parts of leaves, and gives the whole leaves among them, which
        are left to the caller: number, first byte in `data`, and bytes."""
        done = 0
        while done < data.nbytes:
            leaf, inside = divmod(begin + done, LEAF)
            part = data[done : done + self.length(leaf) - inside]
            if part.nbytes < self.length(leaf):
                self._add(leaf, inside, part)
            else:
                yield leaf, done, part
            done += part.nbytes

    def _add(self, leaf: int, inside: int, part: memoryview) -> None:
        """A part of a leaf, whose others come from other tasks."""
        with self._lock:
            begun = self._begun.get(leaf)
            if begun is None:
                begun = self._begun[leaf] = _Begun(self._begin(b""))
            if begun.is_lost:
                return
            if begun.is_busy or inside != begun.at:
                self._keep(begun, inside, part)
                return
            begun.is_busy = True
        following: memoryview | None = part
        while following is not None:
            following = self._advance(begun, leaf, following)

    def _keep(self, begun: _Begun, inside: int, part: memoryview) -> None:
        """For later, if there is room; if not, the leaf is lost."""
        if self._room.take(part.nbytes):
            begun.parts[inside] = bytes(part)
            return
        begun.is_lost = True
        self._room.give(sum(map(len, begun.parts.values())))
        begun.parts.clear()

    def _advance(self, begun: _Begun, leaf: int, part: memoryview) -> memoryview | None:
        """Hash the next part of a leaf; gives the one after it, if that is here already."""
        begun.hash.update(part)
        with self._lock:
            begun.at += part.nbytes
            kept = begun.parts.pop(begun.at, None)
            if kept is not None:
                self._room.give(len(kept))
                return memoryview(kept)
            begun.is_busy = False
            if begun.at < self.length(leaf):
                return None
            del self._begun[leaf]
        self.found[leaf] = begun.hash.digest()
        return None
