"""What came of checks and sinks, gathered from many tiles in any order, the same whatever the order was."""

from __future__ import annotations

import json
import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..core.specs import Spec
from ..graph.roots import Check, Sink, Symbolic

__all__ = ["Findings", "Verdict", "numbered"]


class Verdict(NamedTuple):
    """Whether a check holds, why (not), the largest deviation with its index, and how many elements are off."""

    holds: bool
    why: str
    worst: float
    place: tuple[int, ...] = ()
    num_off: int = 0


class Findings(Mapping[Any, Any]):
    """Verdicts by check, and values or statistics by sink, for the assertions and prints that asked for them."""

    def __init__(self) -> None:
        self._failures: dict[Check, list[tuple[int, float, int, int]]] = defaultdict(list)
        self._parts: dict[Sink, list[tuple[int, Any]]] = defaultdict(list)
        self._lock = threading.Lock()
        self._own = threading.local()
        self._remembers = False

    def remember(self) -> None:
        """From now on `taken` can be asked."""
        self._remembers = True

    def taken(self) -> Findings:
        """What this thread has added since it was last asked."""
        found: Findings | None = vars(self._own).pop("findings", None)
        return Findings() if found is None else found

    def _mine(self) -> Iterator[Findings]:
        """Where to note what this thread adds, if that is remembered."""
        if self._remembers:
            yield vars(self._own).setdefault("findings", Findings())

    def fail(self, check: Check, mask: Any, measure: Any, start: int) -> None:
        """Elements from number `start` on of which some do not hold."""
        bad = np.flatnonzero(~mask)
        if bad.size:
            amounts = np.where(np.isnan(measure[bad]), np.inf, measure[bad])
            worst = int(np.argmax(amounts))
            entry = (int(bad.size), float(amounts[worst]), -(start + int(bad[worst])), start)
            with self._lock:
                self._failures[check].append(entry)
            for own in self._mine():
                own._failures[check].append(entry)

    def add(self, sink: Sink, start: int, elements: Any) -> None:
        """Elements of a sink from number `start` on."""
        part: Any = _summary(elements) if sink.wants == "stat" else elements.copy()
        with self._lock:
            self._parts[sink].append((start, part))
        for own in self._mine():
            own._parts[sink].append((start, part))

    def pack(self, symbolic: Symbolic, numbers: Mapping[Any, int] | None = None) -> bytes:
        """All of it as bytes, for another process with the same plan. `numbers` are those of its checks and sinks, for
        whoever packs often."""
        known = numbers if numbers is not None else numbered(symbolic)
        head: dict[str, list[Any]] = {"failures": [], "parts": []}
        body: list[bytes] = []
        head["failures"] = sorted([known[check], failures] for check, failures in self._failures.items())
        for number, sink in sorted((known[sink], sink) for sink in self._parts):
            for start, part in self._parts[sink]:
                if sink.wants != "stat":
                    body.append(part.tobytes())
                    head["parts"].append([number, start, len(body[-1])])
                else:
                    head["parts"].append([number, start, part])
        text = json.dumps(head).encode()
        return b"".join([len(text).to_bytes(8, "little"), text, *body])

    def unpack(self, symbolic: Symbolic, packed: bytes) -> None:
        """Add what another process found."""
        at = 8 + int.from_bytes(packed[:8], "little")
        head = json.loads(packed[8:at])
        for number, failures in head["failures"]:
            self._failures[symbolic.checks[number]] += [tuple(failure) for failure in failures]
        for number, start, part in head["parts"]:
            sink = symbolic.sinks[number]
            if sink.wants != "stat":
                spec: Spec = sink.node.spec
                self._parts[sink].append((start, np.frombuffer(packed[at : at + part], spec.dtype.numpy)))
                at += part
            else:
                self._parts[sink].append((start, tuple(part)))

    def of(self, other: Symbolic, own: Symbolic) -> Findings:
        """The same for another plan, whose checks and sinks ask in the same order for the same as those of our own."""
        found = Findings()
        found.unpack(other, self.pack(own))
        return found

    def __getitem__(self, key: Any) -> Any:
        return self._verdict(key) if isinstance(key, Check) else self._sink(key)

    def _verdict(self, check: Check) -> Verdict:
        failures = self._failures.get(check)
        if not failures:
            return Verdict(True, f"{check.label}: holds everywhere", 0.0)
        count = sum(failure[0] for failure in failures)
        worst, index = max((failure[1], failure[2]) for failure in failures)
        spec: Spec = check.node.spec
        place = [int(i) for i in np.unravel_index(-index, spec.shape)] if spec.shape else []
        shown = "NaN or infinite" if math.isinf(worst) else f"{worst:.6g}"
        why = f"{check.label}: {count} of {spec.size} elements are off; the worst by {shown} at {place}"
        return Verdict(False, why, worst, tuple(place), count)

    def _sink(self, sink: Sink) -> Any:
        parts = [part for _, part in sorted(self._parts[sink], key=lambda entry: entry[0])]
        if sink.wants != "stat":
            spec: Spec = sink.node.spec
            flat = np.concatenate(parts) if parts else np.zeros(0, spec.dtype.numpy)
            if sink.wants == "array":
                return flat.reshape(spec.shape)
            if spec.dtype.is_float and spec.dtype.bits < 32:
                flat = flat.astype(np.float32)
            return flat.reshape(spec.shape).tolist()
        if not parts:
            return {"min": None, "max": None, "mean": None}
        low, high, total, number = (list(column) for column in zip(*parts, strict=True))
        whole = math.fsum(total) if all(map(math.isfinite, total)) else sum(total)
        return {"min": float(np.min(low)), "max": float(np.max(high)), "mean": whole / sum(number)}

    def __iter__(self) -> Iterator[Any]:
        yield from self._failures
        yield from self._parts

    def __len__(self) -> int:
        return len(self._failures) + len(self._parts)


def numbered(symbolic: Symbolic) -> dict[Any, int]:
    """The checks and sinks of a plan, with the numbers that stand for them in what is packed."""
    return {one: number for many in (symbolic.checks, symbolic.sinks) for number, one in enumerate(many)}


def _summary(elements: Any) -> tuple[float, float, float, int]:
    """Smallest, largest, sum in float64, number; NaN spreads. Complex numbers count by magnitude."""
    wide = np.abs(elements) if elements.dtype.kind == "c" else elements
    wide = wide.astype(np.float64)
    with np.errstate(all="ignore"):
        return float(np.min(wide)), float(np.max(wide)), float(np.sum(wide)), int(wide.size)
