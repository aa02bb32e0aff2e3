"""What becomes of each parameter in `lora_extract`: factors, a place among the modules stored whole, or nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..core import adapters
from ..core.errors import PlanError, listing
from ..core.specs import Spec
from ..kit.base import operation
from ..kit.masks import EqualMask
from ..kit.predicates import Outcome, Pending
from ..kit.state import Found, State, Value
from ..kit.structure import View
from .kinds import Weight, one_by_one

__all__ = ["Modules", "Wishes", "demand_equal", "first", "is_unchanged", "patterns_of", "sort_modules"]

HEAD = 1 << 16  # elements that are compared first: a module that was trained differs there
SHOWN = 12  # names in a message
_KEYS = {  # kind -> the key of the plan that decides about it, and what it may say but `equal`
    "embedding": ("embeddings", ("lora", "save", "skip")),
    "position": ("embeddings", ("save", "skip")),
    "bias": ("biases", ("lora", "save", "skip")),
    "norm": ("norms", ("save", "skip")),
    "convolution": ("others", ("save", "skip")),
    "other": ("others", ("save", "skip")),
}
_MORE = {
    "attention": "PEFT does not reach the factors of a part of torch's attention",
    "mamba": "PEFT refuses factors for out_proj of Mamba, Mamba 2, Falcon-Mamba, Falcon-H1 and Nemotron-H; if this is "
    "none of these",
}


@dataclass(eq=False)
class Modules:
    """Parameters by what becomes of them."""

    factored: list[Weight] = field(default_factory=list)
    biases: list[Weight] = field(default_factory=list)
    saved: dict[str, list[Weight]] = field(default_factory=dict)  # module stored whole -> all its parameters
    equal: list[Weight] = field(default_factory=list)  # must be equal in both
    left: dict[str, str] = field(default_factory=dict)  # name -> why it is not in the adapter
    experts: dict[str, list[Weight]] = field(default_factory=dict)  # layer -> matrices of its experts, one by one

    @property
    def stored(self) -> list[Weight]:
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

    def fate(self, entry: Weight) -> str:
        """What is to become of a parameter."""
        if any(pattern.fullmatch(entry.name) for pattern in self.skip):
            return "skip"
        if self.module_around(entry):
            return "save"
        return self.by_kind.get(entry.kind, "lora")

    def module_around(self, entry: Weight) -> str:
        """The outermost module around a parameter that is to be stored whole; empty if there is none."""
        words = entry.module.split(".")
        paths = (".".join(words[: count + 1]) for count in range(len(words)))
        return next((path for path in paths if any(p.fullmatch(path) for p in self.modules_to_save)), "")


def sort_modules(state: State, entries: Sequence[Weight], wishes: Wishes) -> Modules:
    """Parameters by what becomes of them.

    Raises:
        PlanError: PEFT cannot store what the plan wants to be stored.
    """
    found = Modules()
    fates = {entry.name: wishes.fate(entry) for entry in entries}
    found.saved = _saved(state, entries, fates, wishes)
    stored = {entry.name for entry in found.stored}
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
            found.equal.append(entry)
    return found


def _saved(
    state: State, entries: Sequence[Weight], fates: Mapping[str, str], wishes: Wishes
) -> dict[str, list[Weight]]:
    """The modules to be stored whole, of which anything changed, with their parameters.

    Raises:
        PlanError: one that cannot be stored whole.
    """
    saved = [entry for entry in entries if fates[entry.name] == "save"]
    with_biases = {entry.module for entry in saved if entry.kind == "bias" and not is_unchanged(state, entry)}
    groups: dict[str, list[Weight]] = defaultdict(list)
    for entry in entries:
        if fates[entry.name] == "save" and (entry.kind != "bias" or wishes.module_around(entry)):
            groups[wishes.module_around(entry) or entry.module].append(entry)
        elif entry.module in with_biases and fates[entry.name] != "skip":
            groups[entry.module].append(entry)
    same = {name: [is_unchanged(state, entry) for entry in group] for name, group in groups.items()}  # asks all at once
    changed = {name: group for name, group in groups.items() if not all(same[name])}
    if changed and not state.checks.waits():
        _check_whole(entries, changed)
    return changed


def _check_whole(entries: Sequence[Weight], groups: Mapping[str, Sequence[Weight]]) -> None:
    """Raise a PlanError unless each group is all that lies in a module."""
    if "" in groups:
        names = [entry.name for entry in groups[""]]
        raise PlanError(
            "lora_extract: PEFT can neither factor nor store parameters of the model itself",
            found=listing(names, SHOWN),
            hint=f"leave them out: skip: {patterns_of(names)}",
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
                hint=f"modules_to_save: {patterns_of([module])}, or leave it out: skip: {patterns_of([group[0].name])}",
            )


def is_unchanged(state: State, entry: Weight) -> bool:
    """Whether the base, in the dtype of the fine-tune, has the same elements; False as long as the data is not known.

    It is asked of the data, first of the beginning alone.
    """

    if entry.base is entry.tuned or 0 in entry.shape:
        return True
    if not _are_comparable(entry):
        return False
    pair = _comparable(state, entry)
    head = _head(entry.spec)
    if head is not None:
        same = state.checks.ask(
            state.versions.compute(EqualMask(), *(state.versions.compute(head, side) for side in pair))
        )
        if not same:
            return False
    return bool(state.checks.ask(state.versions.compute(EqualMask(), *pair)))


def _are_comparable(entry: Weight) -> bool:
    ours, theirs = entry.spec.dtype, entry.new.dtype
    return bool(ours.array) and (ours is theirs or (ours.is_float and theirs.is_float and bool(theirs.array)))


def _comparable(state: State, entry: Weight) -> tuple[Value, Value]:
    """Both versions in the dtype of the fine-tune: one that was only stored in another dtype is not changed."""
    dtype = entry.new.dtype
    same = entry.spec.dtype is dtype
    return (entry.base if same else state.versions.compute(operation("cast", dtype=dtype), entry.base)), entry.tuned


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


def demand_equal(state: State, equal: Sequence[Weight], entries: Sequence[Weight], at_once: bool) -> None:
    """The run fails if one of `equal` changed, which the adapter will not hold; if `at_once`, before anything is made.

    Raises:
        PlanError: the dtypes of a parameter cannot be compared, or one is known to have changed.
    """
    groups: dict[str, list[Weight]] = defaultdict(list)
    for entry, place in zip(equal, _places(equal, entries), strict=True):
        if not _are_comparable(entry):
            raise PlanError(
                f"lora_extract: {entry.name} is not extracted, and cannot be compared with that of the fine-tune",
                expected=str(entry.spec),
                found=str(entry.new),
                hint=_advice(place, [entry]),
            )
        groups[place].append(entry)
    for place, group in groups.items():
        if at_once:
            changed = [entry for entry in group if not is_unchanged(state, entry)]
            if changed and not state.checks.waits():
                problem, hint = _unheld(place, changed)
                raise PlanError(problem, hint=hint)
            continue
        label = "lora_extract: {} is not extracted"
        checks = [(entry, state.checks.check(EqualMask(), _comparable(state, entry), label.format(entry.name)))
                  for entry in group]  # fmt: skip
        outcome = _Unheld(place, {entry: Pending(check) for entry, check in checks})
        state.checks.assert_(outcome, "lora_extract: what is not extracted was not changed")


@dataclass(frozen=True, eq=False)
class _Unheld:
    """Parameters that must be equal, because the adapter does not hold them: an outcome of an assertion."""

    place: str
    pending: Mapping[Weight, Outcome]

    def settle(self, verdicts: Found) -> tuple[bool, str]:
        """Whether none changed, else which did and what to do about it."""
        changed = [entry for entry, pending in self.pending.items() if not pending.settle(verdicts)[0]]
        if not changed:
            return True, "lora_extract: what is not extracted was not changed"
        problem, hint = _unheld(self.place, changed)
        return False, f"{problem} (decide with {hint})"

    def known(self) -> bool:
        return False


def _unheld(place: str, changed: Sequence[Weight]) -> tuple[str, str]:
    """What is wrong with parameters that changed and are not extracted, and what to do about it."""
    names = listing((entry.name for entry in changed), SHOWN)
    verb = "is not extracted but was changed" if len(changed) == 1 else "are not extracted but were changed"
    return f"lora_extract: {names} {verb}", _advice(place, changed)


def _places(equal: Sequence[Weight], entries: Sequence[Weight]) -> list[str]:
    """For each parameter what decides how it can be stored: its kind, or where it lies: in the model itself (`top`), in
    a module of other modules or of factors (`inner`), in one that PEFT cannot tell from another (`alike`)."""
    modules = {entry.module for entry in entries}
    around = {path.rsplit(".", count)[0] for path in modules for count in range(1, path.count(".") + 1)}
    around |= {entry.module for entry in entries if entry.kind == "experts"}
    alike = adapters.taken_for({entry.module for entry in equal}, modules)
    places = []
    for entry in equal:
        is_held = entry.kind in ("bias", "embedding") or entry.module not in alike
        place = entry.kind if entry.kind not in ("convolution", "other") else entry.why or entry.kind
        if place in ("convolution", "other", *_MORE, "experts") and entry.module in around:
            place = "inner"
        places.append("top" if not entry.module else place if is_held else "alike")
    return places


def _advice(place: str, entries: Sequence[Weight]) -> str:
    """What a plan can say of parameters that changed."""
    skip = f"skip: {patterns_of(entry.name for entry in entries)}"
    experts = [entry.name for entry in entries if entry.why == "experts"]
    expert = f", or expert: {patterns_of(experts)} if that is a matrix for each expert" if experts else ""
    if place == "top":
        return f"{skip}{expert}; PEFT can neither factor nor store parameters of the model itself"
    if place == "alike":
        return f"{skip}{expert}; PEFT cannot store a module whose name others end in"
    if place == "inner":
        modules = patterns_of(entry.module for entry in entries)
        return f"modules_to_save: {modules} to store the modules with all that lies in them, or {skip}{expert}"
    key, words = _KEYS.get(place, _KEYS["other"])
    more = f"; {_MORE[place]}" if place in _MORE else ""
    more += f", linear: {patterns_of(entry.module for entry in entries)}" if place == "mamba" else ""
    return " or ".join(f"{key}: {word}" for word in words) + expert + more


def patterns_of(paths: Iterable[str]) -> str:
    """Patterns of paths for a plan; one pattern for several that differ in numbers alone."""
    alike: dict[str, list[str]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        alike[re.sub(r"(?<=\.)\d+(?=\\?\.|$)", r"\\d+", re.escape(path))].append(path)
    found = [pattern if len(same) > 1 else re.escape(same[0]) for pattern, same in alike.items()]
    return "[" + ", ".join(f"'{pattern}'" for pattern in found[:SHOWN]) + (", ...]" if len(found) > SHOWN else "]")
