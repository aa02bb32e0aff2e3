"""Which parameter of a base each pair of factors of an adapter changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from ..core import adapters
from ..core.adapters import Pair
from ..core.errors import StorageError, listing, nearest
from ..core.specs import Spec
from .facts import ModelFacts, axis_of_inputs, is_in_declared_order

__all__ = ["Adapter", "Places", "Target", "targets_of"]

_MOST = 6  # parameters of one module whose orders are all tried


@dataclass(frozen=True, slots=True)
class Target:
    """A pair of factors and the parameter of the base, `place`, that it changes. `key` is what PEFT compares with the
    patterns of ranks and alphas; `is_parameter`: PEFT wraps the parameter, and not its module."""

    pair: Pair
    key: str
    place: str
    is_parameter: bool
    a: Spec
    b: Spec
    base: Spec

    @property
    def many(self) -> int:
        """How many matrices the parameter is: experts in one tensor."""
        return self.base.shape[0] if self.is_parameter and len(self.base.shape) == 3 else 1

    @property
    def rank(self) -> int:
        return self.a.shape[0] // self.many if self.a.shape else 0

    def fits(self, shape: Sequence[int]) -> tuple[bool, ...]:
        """Whether as [in, out] (True) and as [out, in] (False) a weight of this shape can have these factors."""
        a, b = self.a.shape, self.b.shape
        if len(a) < 2 or len(b) != len(a) or not self.rank or a[0] % self.many or b[1] != a[0]:
            return ()
        if len(a) > 2:  # a convolution, without groups: B is one of a single point
            return (False,) if tuple(shape) == (b[0], *a[1:]) and set(b[2:]) == {1} else ()
        if len(shape) != (3 if self.is_parameter and len(self.base.shape) == 3 else 2):
            return ()
        sides = (b[0], a[1])
        found = tuple(turned for turned in (False, True) if tuple(shape[-2:]) == sides[:: -1 if turned else 1])
        if self.pair.is_embedding:
            return (True,) if True in found else ()
        return found


@dataclass(frozen=True)
class Adapter:
    """An adapter that is merged with a weight: its configuration, its factors, the tensors that replace parameters."""

    alias: str
    weight: float
    config: Mapping[str, Any]
    pairs: Sequence[Pair]
    whole: Mapping[str, str]
    spec: Callable[[str], Spec | None]  # of a tensor of the adapter

    @classmethod
    def read(
        cls, alias: str, weight: float, text: str | None, names: Iterable[str], spec: Callable[[str], Spec | None]
    ) -> Adapter:
        """What the tensors of an alias are, by its configuration as JSON.

        Raises:
            StorageError: it is no plain LoRA adapter.
        """
        names = list(names)
        if text is None:
            is_file = any(".lora_" in name for name in names)
            raise StorageError(
                "not an adapter" + (": the tensors alone do not tell ranks and alphas" if is_file else ""),
                expected="a directory with adapter_config.json and adapter_model.safetensors or adapter_model.bin",
                found=listing(names, 3),
                hint="name the directory in inputs, not the file in it" if is_file else None,
            )
        config = adapters.parse_config(text)
        return cls(alias, weight, config, *adapters.contents(names), spec)


def is_output(module: str) -> bool:
    """Whether a module is named as output layers are."""
    return module.rpartition(".")[2] in adapters.OUTPUTS


@dataclass(frozen=True)
class Places:
    """The parameters of a base, and how those of adapters are named there."""

    alias: str
    rename: Callable[[str], str | None]  # None: the plan gives no name
    names: Collection[str]
    spec: Callable[[str], Spec | None]

    def find(self, parameter: str) -> str | None:
        """The name in the base, also where a wrapper is left in the adapter's; None if there is none."""
        for path in (parameter, parameter.removeprefix("module.")):
            name = self.rename(path)
            if name is not None and name in self.names:
                return name
        return None

    def missing(self, alias: str, parameters: Sequence[str]) -> StorageError:
        """The error of an adapter that changes what the base has not."""
        name = self.rename(parameters[0])
        changes = f"it changes {parameters[0]}" + (f" and {len(parameters) - 1} more" if len(parameters) > 1 else "")
        if name is None:
            return StorageError(f"{changes}, which `from` does not match")
        owner = name.rpartition(".")[0]
        apart = [found for found in self.names if re.match(re.escape(owner) + r"\.\d+\.", found)]
        near = apart or nearest(name, self.names)
        module = re.escape(adapters.PREFIX + parameters[0].rpartition(".")[0])
        return StorageError(
            f"{changes}, but there is no {self.alias}::{name}",
            found=f"nearest: {listing(near, 3)}" if near else None,
            hint="the base holds the experts one by one: stack them first, as the model of the adapter does"
            if apart
            else "give from and to as patterns if the names differ; what the base lacks can be left out: "
            f"delete: {{ target: '{alias}::{module}\\..+' }}",
        )


def targets_of(
    adapter: Adapter, places: Places, order: Sequence[re.Pattern[str]], model: ModelFacts
) -> tuple[list[Target], list[str]]:
    """Every pair with the parameter that it changes, and the parameters that the base has not, with the pairs' names.

    Raises:
        StorageError: the factors are not those of the parameters that the configuration tells, or it is not clear of
            which they are.
    """
    modules: dict[str, list[Pair]] = {}
    for pair in adapter.pairs:
        modules.setdefault(pair.module, []).append(pair)
    found: list[Target] = []
    missing: list[str] = []
    axis = axis_of_inputs(adapter.config, model.is_transposed)
    for module, own in modules.items():
        leaves = _leaves(adapter.config, module, places)
        if leaves:
            found += _assigned(adapter, places, module, own, leaves, order, axis)
        elif len(own) > 1 or own[0].depth:
            missing += _wanted(adapter.config, module, True) or [f"{module}.weight"]
        else:
            place = places.find(f"{module}.weight") or places.find(f"{module}.in_proj_weight")
            if place is None:
                missing += _wanted(adapter.config, module, False) or [f"{module}.weight"]
            else:
                found += _target(adapter, places, own[0], module, place, False)
    return found, missing


def _target(
    adapter: Adapter, places: Places, pair: Pair, key: str, place: str, is_parameter: bool
) -> tuple[Target, ...]:
    """A target, if no earlier step failed to make one of its tensors."""
    a, b, base = adapter.spec(pair.a), adapter.spec(pair.b), places.spec(place)
    return () if a is None or b is None or base is None else (Target(pair, key, place, is_parameter, a, b, base),)


def _given(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(module, parameter) of what the configuration tells to wrap; PEFT takes both for the ends of paths."""
    given = config.get("target_parameters") or []
    if not isinstance(given, list) or not all(isinstance(target, str) for target in given):
        raise StorageError("target_parameters is not a list of names", found=repr(given)[:80])
    return [target.rpartition(".")[::2] for target in given]


def _wanted(config: Mapping[str, Any], module: str, also_alone: bool) -> list[str]:
    """The parameters of a module that are targets, also those that the base lacks. Those that are named alone, which
    may be of any module, only on demand."""
    own = [leaf for owner, leaf in _given(config) if (f".{module}".endswith(f".{owner}") if owner else also_alone)]
    return [f"{module}.{leaf}" for leaf in dict.fromkeys(own)]


def _leaves(config: Mapping[str, Any], module: str, places: Places) -> list[str]:
    """The parameters of a module that are targets themselves, and that the base has."""
    wanted = [parameter for parameter in _wanted(config, module, True) if places.find(parameter)]
    return [parameter.rpartition(".")[2] for parameter in wanted]


def _assigned(
    adapter: Adapter,
    places: Places,
    module: str,
    own: Sequence[Pair],
    leaves: Sequence[str],
    order: Sequence[re.Pattern[str]],
    axis: int | None,
) -> list[Target]:
    """The pairs of a module, each with its parameter. PEFT wraps parameters in the order in which their class declares
    them: the first lies deepest. Shapes and ranks tell which is which, or the order that all known classes have."""
    if sorted(pair.depth for pair in own) != list(range(len(leaves))):
        raise StorageError(
            f"the factors of {module} are not those of its target_parameters",
            expected=f"{len(leaves)} pairs: {listing(leaves)}",
            found=f"{len(own)} pairs",
        )
    pairs = sorted(own, key=lambda pair: -pair.depth)
    if len(leaves) == 1:  # what does not fit is told where it is added
        return _made(adapter, places, module, pairs, leaves)
    trials = [_made(adapter, places, module, pairs, trial) for trial in _orders(leaves, order)]

    def suited_to(axis: int | None) -> list[list[Target]]:
        return [made for made in trials if _suits(adapter, made, axis)]

    suited = suited_to(axis) or suited_to(None)
    usual = suited if axis else suited_to(2)  # few classes store the inputs first
    usual = [made for made in usual if is_in_declared_order(target.key.rpartition(".")[2] for target in made)]
    for choices in (suited, usual):
        if len(choices) == 1:
            return choices[0]
    if not suited:
        sides = [f"A {adapter.spec(pair.a)}, B {adapter.spec(pair.b)}" for pair in pairs]
        raise StorageError(
            f"the factors of {module} do not fit its parameters {listing(leaves)}",
            expected="; ".join(f"{leaf} {places.spec(places.find(f'{module}.{leaf}') or '')}" for leaf in leaves),
            found="; ".join(sides),
        )
    raise StorageError(
        f"nothing tells which factors of {module} are of which of its parameters {listing(leaves)}",
        expected="the order in which the model's class declares them, which PEFT goes by",
        found="shapes and ranks that fit several orders",
        hint=f"order: [{', '.join(sorted(leaves, key=_guess))}] if the class declares them so",
    )


def _guess(leaf: str) -> tuple[bool, str]:
    return "down" in leaf, leaf


def _orders(leaves: Sequence[str], order: Sequence[re.Pattern[str]]) -> Iterable[Sequence[str]]:
    """The orders in which parameters may have been declared; only that of the plan if it has one for all of them."""
    places = [next((n for n, wanted in enumerate(order) if wanted.fullmatch(leaf)), None) for leaf in leaves]
    if order and None not in places:
        return [[leaf for _, leaf in sorted(zip(places, leaves, strict=True))]]
    if len(leaves) > _MOST:
        raise StorageError(
            f"too many parameters of one module to find out their order: {listing(leaves)}",
            hint="give it: order: [...], as the class of the model declares them",
        )
    return list(permutations(leaves))


def _made(adapter: Adapter, places: Places, module: str, pairs: Sequence[Pair], leaves: Sequence[str]) -> list[Target]:
    """The targets of pairs whose parameters are in this order."""
    found: list[Target] = []
    for pair, leaf in zip(pairs, leaves, strict=True):
        key = f"{module}.{leaf}"
        place = places.find(key)
        assert place is not None
        found += _target(adapter, places, pair, key, place, True)
    return found


def _suits(adapter: Adapter, targets: Sequence[Target], axis: int | None) -> bool:
    """Whether shapes and ranks allow that these factors are of these parameters, `axis` being that of the inputs in
    experts in one tensor, if it is known."""
    for target in targets:
        fits = target.fits(target.base.shape)
        is_turned = None if axis is None or target.many == 1 else axis == 1
        if not fits or is_turned not in (None, *fits) or target.rank != adapters.rank_of(adapter.config, target.key):
            return False
    return True
