"""What one task of a group computes: all elements, some rows, or some elements of its tensors.

Flat groups are cut anywhere, their tensors seen as one long axis. Others are cut along the leading axis if every
operation keeps its rows apart, so that a tensor larger than the memory budget is worked on in parts. What is left needs
its tensors whole: many small components of equal shapes together, in a stack, larger ones by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from ..core.specs import Spec
from ..kit.reduction import Reduction, tile_length
from ..numerics.cuts import STRANDS
from .program import Component, Eqn, Group

__all__ = [
    "SMALLEST_TILE",
    "Blueprint",
    "Passes",
    "blueprint",
    "flat_blueprint",
    "passes_of",
    "row_bytes",
    "rows_blueprint",
    "stack_blueprint",
    "stack_size",
    "whole_blueprint",
]

TILE = 4 << 20  # bytes of the widest input or output of a tile: enough that what a call costs by itself does not count
SMALLEST_TILE = 1 << 10

STACK = 8 << 20  # bytes that a stack takes
LEAST = 2 * STRANDS  # components of a stack, and of what they are a multiple: every device has several of them


@dataclass(frozen=True)
class Blueprint:
    """Specs of the inputs of one task, and its operations. `rows` is what it is counted in: elements of a flat group,
    rows of one that is cut along the leading axis, components of a stack, and 1 for a whole component. `width`:
    elements of one of the rows of a reduced group. `remembered`: values of it that are computed once and held for the
    passes after that."""

    kind: str  # "flat", "reduced", "rows", "stack" or "whole"
    rows: int
    specs: tuple[Spec, ...]
    eqns: tuple[Eqn, ...]
    leaving: tuple[int, ...]  # values that are written or looked at
    fused: bool = False  # whether the compiler makes one loop of the operations
    one: Blueprint | None = None  # of one component of a stack
    width: int = 1
    remembered: tuple[int, ...] = ()

    def total(self, component: Component) -> int:
        """Rows of a whole component."""
        if self.kind in ("flat", "reduced"):
            return component.size // self.width
        return component.value_specs()[0].shape[0] if self.kind == "rows" else 1

    def remembered_bytes(self, component: Component) -> int:
        """What is held of a component from pass to pass beside its inputs takes: of masks a bit an element."""
        specs = self.value_specs() if self.remembered else []
        held = (specs[value] for value in self.remembered)
        bits = (spec.size * (1 if spec.dtype.name == "bool" else spec.dtype.bits) for spec in held)
        return -(-self.total(component) // self.rows) * sum(-(-number // 8) for number in bits)

    def value_specs(self) -> list[Spec]:
        """Specs of all values in order."""
        return [*self.specs, *(spec for eqn in self.eqns for spec in eqn.specs)]

    @cached_property
    def produced_bytes(self) -> int:
        """Bytes that computing allocates: all results as they are computed, and what the most demanding operation needs
        beside them; of a compiled loop over elements, what leaves it and one intermediate."""
        if self.one is not None:  # what leaves is brought together as well
            return self.rows * self.one.produced_bytes + sum(self.value_specs()[value].nbytes for value in self.leaving)
        narrowest = 4 if self.leaving or not self.fused else 1  # bytes of an element; verdicts alone need no more
        results = [spec.size * max(spec.dtype.itemsize, narrowest) for eqn in self.eqns for spec in eqn.specs]
        values = self.value_specs()
        spaces = (eqn.op.workspace_bytes(*(values[arg] for arg in eqn.args)) for eqn in self.eqns)
        beside = max(spaces, default=0) + (self._statistics_bytes if self.kind == "reduced" else 0)
        if not self.fused:
            return sum(results) + beside
        return sum(values[value].nbytes for value in self.leaving) + max(results, default=0) + beside

    @property
    def task_bytes(self) -> int:
        """What a task takes: its inputs and every result."""
        return sum(spec.nbytes for spec in self.specs) + self.produced_bytes

    @property
    def _statistics_bytes(self) -> int:
        """Bytes that statistics take beside results: computed operands, which no loop over all operations spares, a
        mask of the elements that are small, and their partial results."""
        values = self.value_specs()
        found = [eqn for eqn in self.eqns if isinstance(eqn.op, Reduction)]
        computed = {arg for eqn in found for arg in eqn.args if arg >= len(self.specs)} if self.fused else ()
        size = self.rows * self.width
        spaces = (max(op.space(n, size) for n in range(op.stages)) for op in self.reductions.values())
        widened = sum(values[arg].size * max(values[arg].dtype.itemsize, 4) for arg in computed)
        return widened + size + sum(spaces)

    @property
    def reductions(self) -> dict[int, Reduction]:
        """Operations that give statistics, by the number of their value."""
        found, at = {}, len(self.specs)
        for eqn in self.eqns:
            if isinstance(eqn.op, Reduction):
                found[at] = eqn.op
            at += len(eqn.specs)
        return found


def _leaving(group: Group) -> tuple[int, ...]:
    return tuple(output.value for output in group.sample.outputs)


def whole_blueprint(group: Group) -> Blueprint:
    """A whole component at once."""
    return Blueprint("whole", 1, group.sample.specs, group.sample.eqns, _leaving(group))


def stack_size(one: Blueprint) -> int:
    """The most components of a blueprint that are computed in one call; 1 if each is computed by itself."""
    needed = sum(spec.nbytes for spec in one.specs) + one.produced_bytes
    most = STACK // max(needed, 1) // LEAST * LEAST
    return most if one.kind == "whole" and most and all(spec.dtype.array for spec in one.value_specs()) else 1


def stack_blueprint(group: Group, limit: int) -> Blueprint | None:
    """Components of a group in stacks of equal length that take at most `limit` bytes; None if there are too few, or if
    they are too large for it."""
    one = whole_blueprint(group)
    most, total = stack_size(one), len(group.components)
    while most >= LEAST and total > LEAST // 2:
        rows = -(-total // -(-total // most) // LEAST) * LEAST  # the last stack is about as full as the others

        def stack(specs: tuple[Spec, ...], rows: int = rows) -> tuple[Spec, ...]:
            return tuple(Spec((rows, *spec.shape), spec.dtype) for spec in specs)

        eqns = tuple(Eqn(eqn.op, eqn.args, stack(eqn.specs)) for eqn in one.eqns)
        found = Blueprint("stack", rows, stack(one.specs), eqns, one.leaving, one=one)
        if sum(spec.nbytes for spec in found.specs) + found.produced_bytes <= limit:
            return found
        most = most // 2 // LEAST * LEAST
    return None


def flat_blueprint(group: Group, length: int) -> Blueprint:
    """`length` elements of a flat group. Statistics keep their length, since they are of all elements."""

    def cut(specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        return tuple(Spec((length,), spec.dtype) for spec in specs)

    eqns = tuple(eqn if eqn.op.kind == "reduce" else Eqn(eqn.op, eqn.args, cut(eqn.specs)) for eqn in group.sample.eqns)
    kind = "reduced" if group.reduces else "flat"
    return Blueprint(kind, length, cut(group.sample.specs), eqns, _leaving(group), not group.on_host)


def row_bytes(group: Group) -> int | None:
    """Bytes of one row of all values of a group that can be cut along the leading axis, None if it cannot."""
    found = rows_blueprint(group, 1)
    return None if found is None else found.task_bytes


def rows_blueprint(group: Group, rows: int) -> Blueprint | None:
    """`rows` rows of a group, None if its operations do not keep rows apart."""
    values, reduced = group.sample.value_specs(), set(whole_blueprint(group).reductions)
    lengths = {spec.shape[0] if spec.shape else 0 for number, spec in enumerate(values) if number not in reduced}
    if len(lengths) != 1 or min(lengths) < max(rows, 2) or any(not spec.dtype.array for spec in values):
        return None

    def cut(specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        return tuple(Spec((rows, *spec.shape[1:]), spec.dtype) for spec in specs)

    eqns = []
    for eqn in group.sample.eqns:
        if eqn.op.kind == "reduce":
            eqns.append(eqn)
            continue
        op = eqn.op.by_rows(rows, eqn.specs[0], *(values[arg] for arg in eqn.args))
        if op is None:
            return None
        eqns.append(Eqn(op, eqn.args, cut(eqn.specs)))
    kind = "reduced" if reduced else "rows"
    width = group.sample.specs[0].size // group.sample.specs[0].shape[0] if reduced else 1
    return Blueprint(kind, rows, cut(group.sample.specs), tuple(eqns), _leaving(group), width=width)


def blueprint(group: Group, limit: int) -> Blueprint:
    """What one task of a group computes when its buffers may take `limit` bytes; one blueprint for the whole group.
    What is worth it is remembered if what is held of every component takes no more than that."""
    found = _cut(group, limit)
    if found.kind != "reduced":
        return found
    remembered = replace(found, remembered=_worth_remembering(found))
    is_held = all(remembered.remembered_bytes(component) <= limit for component in group.components)
    return remembered if is_held else found


def _worth_remembering(plan: Blueprint) -> tuple[int, ...]:
    """Values that are cheaper to hold than to compute once more."""
    found, at = [], len(plan.specs)
    for eqn in plan.eqns:
        found += [at] if eqn.op.is_remembered else []
        at += len(eqn.specs)
    return tuple(found)


def _cut(group: Group, limit: int) -> Blueprint:
    """What one task of a group computes, without what is remembered."""
    if group.flat:
        length = _tile_length(group, limit)
        return flat_blueprint(group, tile_length(length) if group.reduces else length)
    whole = whole_blueprint(group)
    if whole.reductions and any(eqn.op.kind == "whole" for eqn in whole.eqns):
        found = _reduced_rows(group, limit)
        if found is not None:
            return found
    if whole.task_bytes > limit:
        per_row = None if whole.reductions else row_bytes(group)
        if per_row is not None and per_row > 0:
            length = whole.specs[0].shape[0]
            return rows_blueprint(group, min(max(limit // per_row, 1), length)) or whole
        return whole
    return stack_blueprint(group, limit) or whole


def _reduced_rows(group: Group, limit: int) -> Blueprint | None:
    """A power of two of rows of a group with statistics of what needs whole rows; None if it cannot be cut. It is cut
    wherever it can be: what statistics come to must not depend on the budget."""
    found = rows_blueprint(group, 1)
    while found is not None and 2 * max(spec.nbytes for spec in found.specs) <= TILE:
        more = rows_blueprint(group, 2 * found.rows)
        if more is None or more.task_bytes > limit:
            break
        found = more
    return found


def _tile_length(group: Group, limit: int) -> int:
    """Elements of a tile of a flat group."""
    sizes = (component.size for component in group.components)
    total = max(sizes) if group.reduces else sum(sizes)  # statistics are of one component at a time
    values = group.sample.value_specs()
    per_element = sum(spec.dtype.itemsize for spec in values)
    crossing = [*group.sample.specs, *(values[output.value] for output in group.sample.outputs)]
    length = TILE // max((spec.dtype.itemsize for spec in crossing), default=1)
    while length > SMALLEST_TILE and length * per_element > limit:
        length //= 2
    while length > SMALLEST_TILE and length // 2 >= total:
        length //= 2
    # what operations need beside their results leaves a quarter of what a worker has to pieces and to what is made
    while length > SMALLEST_TILE and not group.reduces and flat_blueprint(group, length).task_bytes > limit * 3 // 2:
        length //= 2
    return length


class Passes(NamedTuple):
    """How often the elements of a reduced group are gone over: the pass in which each value is known, the first one of
    each reduction, and how many there are."""

    known: tuple[int, ...]
    first: Mapping[int, int]
    number: int


def passes_of(group: Group, plan: Blueprint) -> Passes:
    """The passes of a reduced group: none that only what nobody wants would need."""
    checked = [value for value, _ in group.sample.checks]
    known = [0] * len(plan.specs)
    first: dict[int, int] = {}
    reductions = plan.reductions
    for eqn in plan.eqns:
        begin = max((known[arg] for arg in eqn.args), default=0)
        if len(known) in reductions:
            first[len(known)] = begin
            begin += reductions[len(known)].stages
        known += [begin] * len(eqn.specs)
    wanted = [known[value] - (value in reductions) for value in (*plan.leaving, *checked)]
    return Passes(tuple(known), first, max(wanted) + 1)
