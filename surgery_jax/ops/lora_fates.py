"""What becomes of each parameter in `lora_extract`: factors, a place among the modules stored whole, or nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import PlanError, listing
from ..core.specs import Spec
from .cast import Cast
from .lora_kinds import Entry, one_by_one
from .state import State
from .structure import View

__all__ = ["KEYS", "Modules", "Wishes", "first", "is_unchanged", "pattern_of", "sort_modules"]

HEAD = 1 << 16  # elements that are compared first: a module that was trained differs there
SHOWN = 12  # names in a message
KEYS = {  # kind -> the key of the plan that decides about it, and what it may say but `equal`
    "embedding": ("embeddings", ("lora", "save", "skip")),
    "bias": ("biases", ("lora", "save", "skip")),
    "norm": ("norms", ("save", "skip")),
    "convolution": ("others", ("save", "skip")),
    "other": ("others", ("save", "skip")),
}
_MORE = {
    "attention": "PEFT does not reach the factors of a part of torch's attention",
    "mamba": "PEFT refuses factors for out_proj of Mamba",
}


@dataclass(eq=False)
class Modules:
    """Parameters by what becomes of them."""

    factored: list[Entry] = field(default_factory=list)
    biases: list[Entry] = field(default_factory=list)
    saved: dict[str, list[Entry]] = field(default_factory=dict)  # module stored whole -> all its parameters
    left: dict[str, str] = field(default_factory=dict)  # name -> why it is not in the adapter
    experts: dict[str, list[Entry]] = field(default_factory=dict)  # layer -> matrices of its experts, one by one

    @property
    def stored(self) -> list[Entry]:
        """All parameters of modules stored whole."""
        return [entry for entries in self.saved.values() for entry in entries]


@dataclass(frozen=True)
class Wishes:
    """What the plan wants: patterns of parameters left out and of modules stored whole, and `lora`, `save`, `skip` or
    `equal` by kind. `always`: parameters get factors whether they changed or not, for ranks are chosen by the data."""

    skip: Sequence[re.Pattern[str]]
    modules_to_save: Sequence[re.Pattern[str]]
    by_kind: Mapping[str, str]
    always: bool

    def fate(self, entry: Entry) -> str:
        """What is to become of a parameter."""
        if any(pattern.fullmatch(entry.name) for pattern in self.skip):
            return "skip"
        if self.module_around(entry):
            return "save"
        return self.by_kind.get(entry.kind, "lora")

    def module_around(self, entry: Entry) -> str:
        """The outermost module around a parameter that is to be stored whole; empty if there is none."""
        words = entry.module.split(".")
        paths = (".".join(words[: count + 1]) for count in range(len(words)))
        return next((path for path in paths if any(p.fullmatch(path) for p in self.modules_to_save)), "")


def sort_modules(state: State, entries: Sequence[Entry], wishes: Wishes) -> Modules:
    """Parameters by what becomes of them; the run fails if one changed that the adapter does not hold.

    Raises:
        PlanError: PEFT cannot store what the plan wants to be stored.
    """
    found = Modules()
    fates = {entry.name: wishes.fate(entry) for entry in entries}
    found.saved = _saved(state, entries, fates, wishes)
    stored = {entry.name for entry in found.stored}
    wanted_equal = []
    for entry in entries:
        fate = fates[entry.name]
        layer = one_by_one(entry)
        if layer is not None and entry.name not in stored:
            found.experts.setdefault(layer[0], []).append(entry)
        if entry.name in stored:
            continue
        if fate == "skip":
            found.left[entry.name] = "skipped"
        elif fate == "lora" and entry.kind == "bias":
            found.biases.append(entry)
        elif fate == "lora" and (wishes.always or not is_unchanged(state, entry)):
            found.factored.append(entry)
        elif fate == "lora":
            found.left[entry.name] = "unchanged"
        elif fate == "equal" and entry.base is not entry.tuned:
            wanted_equal.append(entry)
    _demand_equal(state, wanted_equal, {entry.module for entry in entries})
    return found


def _saved(
    state: State, entries: Sequence[Entry], fates: Mapping[str, str], wishes: Wishes
) -> dict[str, list[Entry]]:
    """The modules to be stored whole, of which anything changed, with their parameters.

    Raises:
        PlanError: one that cannot be stored whole.
    """
    saved = [entry for entry in entries if fates[entry.name] == "save"]
    with_biases = {entry.module for entry in saved if entry.kind == "bias" and not is_unchanged(state, entry)}
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if fates[entry.name] == "save" and (entry.kind != "bias" or wishes.module_around(entry)):
            groups[wishes.module_around(entry) or entry.module].append(entry)
        elif entry.module in with_biases and fates[entry.name] != "skip":
            groups[entry.module].append(entry)
    changed = {m: group for m, group in groups.items() if not all(is_unchanged(state, entry) for entry in group)}
    if changed and not state.waits():
        _check_whole(entries, changed)
    return changed


def _check_whole(entries: Sequence[Entry], groups: Mapping[str, Sequence[Entry]]) -> None:
    """Raise a PlanError unless each group is all that lies in a module."""
    if "" in groups:
        names = [entry.name for entry in groups[""]]
        raise PlanError(
            "lora_extract: PEFT can neither factor nor store parameters of the model itself",
            found=listing(names, SHOWN),
            hint=f"leave them out: skip: [{_quoted(names)}]",
        )
    held = {entry.name for group in groups.values() for entry in group}
    by_module: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        words = entry.module.split(".")
        for count in range(len(words)):
            by_module[".".join(words[: count + 1])].append(entry.name)
    for module, group in groups.items():
        missing = [name for name in by_module[module] if name not in held]
        if missing:
            raise PlanError(
                f"lora_extract: PEFT stores {module} only with all that lies in it",
                expected=f"{group[0].name} stored whole, and with it {listing(missing)}",
                hint=f"modules_to_save: [{_quoted([module])}], or leave it out: skip: [{_quoted([group[0].name])}]",
            )


def is_unchanged(state: State, entry: Entry) -> bool:
    """Whether the base, in the dtype of the fine-tune, has the same elements; False as long as the data is not known.

    It is asked of the data, first of the beginning alone.
    """
    from ..asserts.equal import EqualMask  # the predicates build on this package

    if entry.base is entry.tuned or 0 in entry.shape:
        return True
    if not _are_comparable(entry):
        return False
    pair = _comparable(state, entry)
    head = _head(entry.spec)
    if head is not None:
        same = state.ask(state.apply(EqualMask(), *(state.apply(head, side)[0] for side in pair))[0])
        if not same:
            return False
    return bool(state.ask(state.apply(EqualMask(), *pair)[0]))


def _are_comparable(entry: Entry) -> bool:
    ours, theirs = entry.spec.dtype, entry.tuned.spec.dtype
    return bool(ours.array) and (ours is theirs or (ours.is_float and theirs.is_float and bool(theirs.array)))


def _comparable(state: State, entry: Entry) -> tuple[Any, Any]:
    """Both versions in the dtype of the fine-tune: one that was only stored in another dtype is not changed."""
    dtype = entry.tuned.spec.dtype
    same = entry.spec.dtype is dtype
    return (entry.base if same else state.apply(Cast(dtype), entry.base)[0]), entry.tuned


def first(count: int, spec: Spec) -> View:
    """The first slices along the leading axis."""
    axes = ((0, 1, count), *((0, 1, length) for length in spec.shape[1:]))
    return View(axes, (False,) * len(axes))


def _head(spec: Spec) -> View | None:
    """The first rows of a tensor; None if it is small."""
    if spec.size <= 2 * HEAD:
        return None
    return first(max(1, HEAD // (spec.size // spec.shape[0])), spec)


# ------------------------------------------------------------------------------------- what the adapter does not hold


def _demand_equal(state: State, entries: Sequence[Entry], modules: Iterable[str]) -> None:
    """Left out of the adapter, so the run fails if one changed."""
    from ..asserts.base import Pending
    from ..asserts.equal import EqualMask

    around = {".".join(words[:count]) for words in (m.split(".") for m in modules) for count in range(1, len(words))}
    groups: dict[str, dict[Entry, Any]] = defaultdict(dict)
    for entry in entries:
        if not _are_comparable(entry):
            raise PlanError(
                f"lora_extract: {entry.name} has another dtype in the fine-tune, and is not extracted",
                expected=str(entry.spec),
                found=str(entry.tuned.spec),
                hint=f"cast one of them first, or {_advice(_place(entry, around), [entry])}",
            )
        label = f"lora_extract: {entry.name} is not extracted"
        groups[_place(entry, around)][entry] = Pending(state.check(EqualMask(), _comparable(state, entry), label))
    for place, pending in groups.items():
        state.assert_(_Unheld(place, pending), "lora_extract: what is not extracted was not changed")


@dataclass(frozen=True, eq=False)
class _Unheld:
    """Parameters that must be equal, because the adapter does not hold them: an outcome of an assertion."""

    place: str
    pending: Mapping[Entry, Any]

    def settle(self, verdicts: Mapping[Any, Any]) -> tuple[bool, str]:
        """Whether none changed, else which did and what to do about it."""
        changed = [entry for entry, pending in self.pending.items() if not pending.settle(verdicts)[0]]
        if not changed:
            return True, "lora_extract: what is not extracted was not changed"
        names = listing((entry.name for entry in changed), SHOWN)
        verb = "is not extracted but was changed" if len(changed) == 1 else "are not extracted but were changed"
        return False, f"lora_extract: {names} {verb} (decide with {_advice(self.place, changed)})"

    def known(self) -> bool:
        return False


def _place(entry: Entry, around: Iterable[str]) -> str:
    """What decides how a parameter can be stored: its kind, or that PEFT has no module of its own for it."""
    if entry.kind not in ("convolution", "other"):
        return entry.kind
    if not entry.module:
        return "top"
    return "inner" if entry.module in around else entry.why or entry.kind


def _advice(place: str, entries: Sequence[Entry]) -> str:
    """What a plan can say of parameters that changed."""
    skip = f"skip: [{_quoted(entry.name for entry in entries)}]"
    experts = [entry.name for entry in entries if entry.why == "experts"]
    expert = f", or expert: [{_quoted(experts)}] if that is a matrix for each expert" if experts else ""
    if place == "top":
        return f"{skip}; PEFT can neither factor nor store parameters of the model itself"
    if place == "inner":
        modules = _quoted(entry.module for entry in entries)
        return f"modules_to_save: [{modules}] to store the modules with all that lies in them, or {skip}{expert}"
    key, words = KEYS.get(place, KEYS["other"])
    more = f"; {_MORE[place]}" if place in _MORE else ""
    return " or ".join(f"{key}: {word}" for word in words) + expert + more


def pattern_of(path: str) -> str:
    """A pattern of a path and of those that differ from it in numbers alone."""
    return re.sub(r"(?<=\.)\d+(?=\\?\.|$)", r"\\d+", re.escape(path))


def _quoted(paths: Iterable[str]) -> str:
    """Patterns for a plan."""
    patterns = [f"'{pattern}'" for pattern in dict.fromkeys(map(pattern_of, paths))]
    return ", ".join(patterns[:SHOWN]) + (", ..." if len(patterns) > SHOWN else "")
