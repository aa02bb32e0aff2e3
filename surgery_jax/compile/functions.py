"""The functions of groups, each made once."""

from __future__ import annotations

from typing import Any

from .blueprint import Blueprint
from .lower import GroupFunction
from .program import Group
from .reduced import ReducedFunction
from .stacked import StackFunction

__all__ = ["Function", "Functions"]

Function = GroupFunction | StackFunction | ReducedFunction


class Functions:
    """The functions of groups, by structure: programs that share them compile what they have in common once."""

    def __init__(self) -> None:
        self._known: dict[Any, GroupFunction] = {}
        self._stacked: dict[tuple[GroupFunction, int], StackFunction] = {}
        self._statistics: dict[Any, ReducedFunction] = {}

    def of(self, group: Group, blueprint: Blueprint) -> Function:
        """The function of a group, made if there is none yet."""
        if blueprint.kind == "reduced":
            return self._reduced(group, blueprint)
        if blueprint.one is None:
            return self._single(group, blueprint)
        one = self._single(group, blueprint.one)
        return self._stacked.setdefault((one, blueprint.rows), StackFunction(one, blueprint))

    def _single(self, group: Group, blueprint: Blueprint) -> GroupFunction:
        key = _key_of(group, blueprint)
        if key not in self._known:
            self._known[key] = GroupFunction(group, blueprint)
        return self._known[key]

    def _reduced(self, group: Group, blueprint: Blueprint) -> ReducedFunction:
        key = _key_of(group, blueprint)
        if key not in self._statistics:
            self._statistics[key] = ReducedFunction(group, blueprint)
        return self._statistics[key]

    @property
    def num_compilations(self) -> int:
        """How often any of them was traced and compiled so far."""
        made: list[GroupFunction | ReducedFunction] = [*self._known.values(), *self._statistics.values()]
        return sum(function.num_traces for function in made)


def _key_of(group: Group, blueprint: Blueprint) -> Any:
    """What functions must share to be one."""
    eqns = tuple((eqn.op.static_key(), eqn.args, eqn.specs) for eqn in blueprint.eqns)
    checked = tuple(value for value, _ in group.sample.checks)
    shape = (group.flat, group.on_host, blueprint.kind, blueprint.rows, blueprint.fused, blueprint.remembered)
    return (shape, blueprint.specs, eqns, blueprint.leaving, checked)
