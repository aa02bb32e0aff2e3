"""`restack`: other layers, in another number and order."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from ..core.errors import PlanError, listing
from ..kit.base import Directive, expressions, integers, reference
from ..kit.made import Constant
from ..kit.state import State
from ..language.document import Node
from ..language.names import Reference, numbered_by

Stacks = dict[str, dict[int, str]]  # name of a tensor without its number: the names it has, by number


@dataclass(frozen=True)
class Restack(Directive):
    """Put numbered layers into the order of a list, in which some may come more than once or not at all.

    from: any dtype, numbered by the group `index` -> the same tensors under the numbers 0, 1, … of the list; what
    `from` matches is gone. With `zero`, tensors of these names, or of these modules with weight and bias, are
    zeros in layers that repeat an earlier one of the list, or in those that `zero_at` numbers: if they write to the
    residual stream, such a layer changes nothing.
    """

    word = "restack"
    examples = (
        "restack: { from: '(.+\\.)(?P<index>\\d+)\\.(.+)', to: '\\1\\g<index>.\\3', layers: [0, 2] }",
        "restack: { from: [model, layers, $index, '*rest'], to: [model, layers, $index, '*rest'], layers: [0, 1, 1, 2],"
        " zero: ['.+\\.self_attn\\.o_proj', '.+\\.mlp\\.down_proj'] }",
    )

    source: Node = reference("tensors of numbered layers; the group or variable `index` is their number", key="from")
    to: Node = reference("their new names, in which `index` stands for the new number")
    layers: tuple[int, ...] = integers("which layer stands at each place")
    zero: tuple[re.Pattern[str], ...] = expressions("names of tensors or modules that are zeros in repeated layers")
    zero_at: tuple[int, ...] | None = integers(
        "new numbers of the layers with zeros; by default all that repeat one", None
    )

    def build(self, state: State) -> None:
        if not self.layers:
            raise PlanError("restack: no layer is left", expected="a list of the numbers of layers")
        source = state.names.reference(self.source, key="from", slices=False)
        dest = state.names.reference(self.to, key="to", slices=False)
        open_template, fill = numbered_by(dest)
        stacks: Stacks = defaultdict(dict)
        for name, new, number in state.names.numbered(source, open_template):
            other = stacks[new].setdefault(number, name)
            if other != name:
                raise PlanError(f"restack: {other} and {name} come to the same name", where=dest.mark)
        self._check_numbers(stacks, source)
        held = {}
        for numbered in stacks.values():
            for name in numbered.values():
                held[name] = state.versions.slot(source.alias, name, reads=1).node
                state.versions.drop(source.alias, name)
        state.names.expect_new(
            dest.alias,
            [fill(new, place) for new in stacks for place, old in enumerate(self.layers) if old in stacks[new]],
        )
        zeroed = self._zeroed()
        for place, old in enumerate(self.layers):
            unused = dict.fromkeys(self.zero if place in zeroed else ())
            for new in stacks:
                if old not in stacks[new]:
                    continue
                node, name = held[stacks[new][old]], fill(new, place)
                if place in zeroed and self._is_zero(name, unused):
                    spec = state.versions.spec(node)
                    node = state.versions.compute(Constant(spec, 0.0))
                state.versions.create(dest.alias, name, node)
            state.speech.tell(f"restack: layer {old} -> {place}")
            if unused:
                raise PlanError(
                    f"restack.zero: nothing in layer {place}, which was {old}, matches {next(iter(unused)).pattern}",
                    expected="whole names of tensors or modules, as they are in `to`",
                    hint="what writes in some layers under another name is an alternative of the same expression",
                )

    def _check_numbers(self, stacks: Stacks, source: Reference) -> None:
        """The numbers are those from 0 on, and the list has no other."""
        numbers = sorted({number for numbered in stacks.values() for number in numbered})
        missing = [number for number in range(numbers[-1]) if number not in numbers]
        if missing:
            raise PlanError(
                f"restack: the numbers of the layers have a gap: there is no {listing(map(str, missing), 3)}",
                where=source.mark,
                expected=f"all numbers from 0 to {numbers[-1]}",
                found=f"{len(numbers)} layers",
            )
        unknown = [number for number in self.layers if number not in numbers]
        if unknown:
            raise PlanError(
                f"restack.layers: there is no layer {unknown[0]}",
                where=source.mark,
                expected=f"numbers from 0 to {numbers[-1]}",
            )

    def _zeroed(self) -> set[int]:
        """The places whose layers get zeros."""
        if self.zero_at is None:
            return {place for place, old in enumerate(self.layers) if old in self.layers[:place]}
        beyond = [place for place in self.zero_at if not 0 <= place < len(self.layers)]
        if beyond:
            raise PlanError(f"restack.zero_at: there is no layer {beyond[0]}", expected=f"0 to {len(self.layers) - 1}")
        return set(self.zero_at)

    def _is_zero(self, name: str, unused: dict[re.Pattern[str], None]) -> bool:
        """Whether a name is one of those that are zeros; patterns that match are taken out of `unused`."""
        module, _, last = name.rpartition(".")
        names = (name, module) if last in ("weight", "bias") else (name,)
        found = [pattern for pattern in self.zero if any(map(pattern.fullmatch, names))]
        for pattern in found:
            unused.pop(pattern, None)
        return bool(found)

    def contributes(self, state: State) -> str | None:
        return state.names.reference(self.to, key="to", slices=False).alias
