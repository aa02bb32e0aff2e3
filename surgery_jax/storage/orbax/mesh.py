"""Which part of a tensor each device of a mesh has, by rules or by what a file tells of every tensor."""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import PlanError, StorageError, listing, nearest
from ...core.regexes import check_time, compile_regex
from ...core.specs import Spec
from ...core.strict_json import read_json
from ..keys import split_name
from ..places.found import locate
from .tree import SHARDING, TREE, read_table, read_tree

__all__ = ["Shardings", "read_shardings", "rules_of"]

Entries = tuple[tuple[str, ...], ...]  # the axes of the mesh that share each axis of a tensor


@dataclass(frozen=True)
class Shardings:
    """A mesh, the size of each of its axes by name, and how tensors are cut for it: by rules, of which the first one
    whose expression matches the whole name counts, or with `path` by what a file says of each name."""

    mesh: Mapping[str, int]
    rules: Mapping[str, Entries]
    path: str | None = None

    def shards(self, tensors: Sequence[tuple[str, Spec]]) -> dict[str, tuple[int, ...]]:
        """The shape of what one device has, of every tensor that something is said of.

        Raises:
            PlanError: a rule decides nothing, nothing is said in the file of a tensor, or a tensor cannot be cut so.
        """
        found = self._told(tensors) if self.path is not None else self._ruled(tensors)
        return {name: self._shard(name, spec, found[name]) for name, spec in tensors if name in found}

    def _told(self, tensors: Sequence[tuple[str, Spec]]) -> Mapping[str, tuple[str, Entries]]:
        told = {name: self.rules.get(name, self.rules.get(".".join(split_name(name)))) for name, _ in tensors}
        missing = [name for name, spec in tensors if told[name] is None and spec.shape]  # scalars are whole anyhow
        if missing:
            near = [*nearest(missing[0], self.rules, 1), *self.rules, missing[0]][0]
            raise PlanError(
                "the file of shardings says nothing of tensors that are written",
                where=self.path,
                expected=f"an entry for each of them, like {near!r}",
                found=f"none for {listing(missing)}",
                hint="names are those of the output: the keys of the tree, joined by dots",
            )
        return {name: (name, entries) for name, entries in told.items() if entries is not None}

    def _ruled(self, tensors: Sequence[tuple[str, Spec]]) -> Mapping[str, tuple[str, Entries]]:
        names = [name for name, _ in tensors]
        patterns = [(rule, compile_regex(rule, None)) for rule in self.rules]
        for _, pattern in patterns:
            check_time(pattern, names, "shard")
        found = {}
        for name in names:
            rule = next((rule for rule, pattern in patterns if pattern.fullmatch(name)), None)
            if rule is not None:
                found[name] = rule, self.rules[rule]
        used = {rule for rule, _ in found.values()}
        for rule, pattern in patterns:
            if rule not in used:
                taken = [name for name in names if pattern.fullmatch(name)]
                raise PlanError(
                    f"the rule {rule!r} of 'shard' "
                    + ("comes too late: rules before it match all that it does" if taken else "matches no tensor"),
                    expected="an expression that matches whole names of the output",
                    found=listing(taken or nearest(rule, names) or names),
                    hint="put it before the others, or leave it out" if taken else "mend it, or leave it out",
                )
        return found

    def _shard(self, name: str, spec: Spec, told: tuple[str, Entries]) -> tuple[int, ...]:
        rule, entries = told
        if len(entries) > len(spec.shape):
            raise PlanError(
                f"{name!r} has fewer axes than its sharding",
                where=self.path,
                expected=f"at most {len(spec.shape)} entries for {spec}",
                found=_shown(entries) + ("" if self.path else f" by the rule {rule!r}"),
                hint=None if self.path else "put a rule for such tensors before it",
            )
        shape = list(spec.shape)
        for axis, names in enumerate(entries):
            parts = math.prod(self.mesh[word] for word in names)
            if shape[axis] % parts:
                raise PlanError(
                    f"axis {axis} of {name!r} cannot be divided among devices",
                    where=self.path,
                    expected=f"a multiple of {parts}, the size of {' x '.join(names)}",
                    found=f"{shape[axis]}: the tensor is {spec}" + ("" if self.path else f", by the rule {rule!r}"),
                    hint=f"cut another axis, or none, or choose another size of {' or '.join(names)}",
                )
            shape[axis] //= parts
        return tuple(shape)


def rules_of(mesh: str | None, rules: str | None) -> Shardings:
    """What the options `mesh` and `shard` say.

    Raises:
        PlanError: one of them is missing, or is not understood.
    """
    if mesh is None or rules is None:
        given, other = ("shard", "mesh") if mesh is None else ("mesh", "shard")
        raise PlanError(
            f"the option {given!r} needs the option {other!r}",
            expected="mesh: { fsdp: 16 } and shard: { '.*kernel': [fsdp, null] }",
            found=f"only {given}: {mesh or rules}",
        )
    sizes = _sizes(_json(mesh, "mesh"), None)
    table = _json(rules, "shard")
    if not isinstance(table, dict) or not table:
        raise PlanError("the option 'shard' is a mapping of expressions", expected=_RULES, found=str(rules)[:120])
    for rule in table:
        compile_regex(rule, None, " in 'shard'")
    return Shardings(sizes, {rule: _entries(value, sizes, f"shard.{rule}", None) for rule, value in table.items()})


def read_shardings(path: str) -> Shardings:
    """What a file says of every tensor: `{"mesh": {axis: size}, "shardings": {name: [axis, ...]}}`; or the file
    `_sharding` that Orbax writes beside the arrays of devices, by its path, that of its directory or of the step.

    Raises:
        StorageError: it cannot be read.
        PlanError: it does not say that.
    """
    place = locate(path)
    if place.is_dir():
        place = _file_below(place)
    table = read_table(place, "the file of shardings")
    if isinstance(table, dict) and table and all(isinstance(value, str) for value in table.values()):
        return _saved(table, place)
    if not isinstance(table, dict) or set(table) != {"mesh", "shardings"} or not isinstance(table["shardings"], dict):
        raise StorageError(
            "the file of shardings is not one",
            where=path,
            expected='{"mesh": {axis: size}, "shardings": {name: [axis, ...]}}',
            found=listing(table) if isinstance(table, dict) else type(table).__name__,
        )
    sizes = _sizes(table["mesh"], path)
    told = table["shardings"].items()
    return Shardings(sizes, {name: _entries(value, sizes, f"shardings.{name}", path) for name, value in told}, path)


def _file_below(directory: Path) -> Path:
    """The file of shardings of a checkpoint, or of the only item of it that has one.

    Raises:
        StorageError: there is none, or several.
    """
    found = [place for place in (directory, *sorted(directory.iterdir())) if (place / SHARDING).is_file()]
    if directory in found or len(found) == 1:
        return found[0] / SHARDING
    raise StorageError(
        "not one file of shardings",
        where=str(directory),
        expected=f"{SHARDING}, as Orbax writes it beside the arrays of devices",
        found=listing(place.name for place in found) if found else "none",
        hint="name the item" if found else "write the options mesh and shard",
    )


def _saved(table: Mapping[str, object], file: Path) -> Shardings:
    """What Orbax has saved: by name in base 64, JSON of a sharding. What one device has is not cut, and neither are
    arrays of the same tree that nothing is said of: these were not on devices."""
    path = str(file)
    meshes: dict[str, dict[str, int]] = {}
    rules: dict[str, Entries] = {}
    for key, text in table.items():
        try:
            name = b64decode(key, validate=True).decode()
            told = read_json(str(text))
        except (ValueError, TypeError):
            raise _unknown(path, f"{key!r}: {text!r}") from None
        if not isinstance(told, dict):
            raise _unknown(path, f"{name!r}: {text}")
        kind = told.get("sharding_type")
        if kind == "NamedSharding":
            axes, shape, spec = (told.get(word) for word in ("axis_names", "shape", "partition_spec"))
            if not isinstance(axes, list) or not isinstance(shape, list) or len(axes) != len(shape):
                raise _unknown(path, f"{name!r}: {text}")
            sizes = _sizes({str(axis): size for axis, size in zip(axes, shape, strict=True)}, path)
            meshes.setdefault(str(sizes), sizes)
            rules[name] = _entries(spec, sizes, name, path)
        elif kind == "SingleDeviceSharding":
            rules[name] = ()
        else:
            raise _unknown(path, f"{name!r}: {text}")
    if len(meshes) != 1:
        found = listing(meshes) if meshes else "no NamedSharding"
        raise PlanError(
            "the file of shardings is not of one mesh", where=path, expected="one mesh of all arrays", found=found
        )
    if (file.parent / TREE).is_file():
        leaves, _ = read_tree(file.parent / TREE, read_table(file.parent / TREE, "the table of the tree"), "")
        for leaf in leaves:
            rules.setdefault(leaf.stored, ())
    (mesh,) = meshes.values()
    return Shardings(mesh, rules, path)


def _unknown(path: str, found: str) -> PlanError:
    return PlanError(
        "a sharding that is not known",
        where=path,
        expected="NamedSharding or SingleDeviceSharding, as Orbax saves them",
        found=found[:200],
        hint="write the options mesh and shard",
    )


_RULES = "shard: { '.*kernel': [fsdp, null] }"


def _json(text: str, option: str) -> object:
    try:
        return read_json(text)
    except ValueError:
        raise PlanError(f"the option {option!r} is not understood", expected="a mapping", found=text[:120]) from None


def _sizes(table: object, where: str | None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for axis, size in table.items() if isinstance(table, dict) else ():
        if type(size) is not int or size < 1 or not axis:
            raise PlanError(
                f"the axis {axis!r} of the mesh has no size",
                where=where,
                expected="a whole number above 0",
                found=repr(size)[:120],
            )
        sizes[axis] = size
    if not sizes:
        expected = "the size of each of them: { fsdp: 16, expert: 2 }"
        raise PlanError("the mesh has no axes", where=where, expected=expected, found=repr(table)[:120])
    return sizes


def _entries(value: object, mesh: Mapping[str, int], what: str, where: str | None) -> Entries:
    """As in JAX: for every axis of a tensor an axis of the mesh, several of them, or null."""
    found: list[tuple[str, ...]] = []
    for entry in value if isinstance(value, list) else ():
        words = [] if entry is None else entry if isinstance(entry, list) else [entry]
        for word in words:
            if word not in mesh if isinstance(word, str) else True:
                near = nearest(word, mesh, 1) if isinstance(word, str) else []
                raise PlanError(
                    f"{what}: the mesh has no axis {word!r}",
                    where=where,
                    expected="one of " + ", ".join(mesh) + ", or null",
                    hint=f"did you mean {near[0]}?" if near else None,
                )
        found.append(tuple(words))
    named = [word for words in found for word in words]
    if not isinstance(value, list) or len(set(named)) < len(named):
        raise PlanError(
            f"{what}: not a sharding",
            where=where,
            expected="for each axis of the tensor an axis of the mesh, a list of them, or null; and none twice",
            found=repr(value)[:120],
        )
    return tuple(found)


def _shown(entries: Entries) -> str:
    words = ["null" if not names else names[0] if len(names) == 1 else f"[{', '.join(names)}]" for names in entries]
    return f"[{', '.join(words)}]"
