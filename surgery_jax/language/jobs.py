r"""Job files: one plan, and what differs from job to job.

    plan: merge.yaml                     # a file, a list of files, or the plan itself
    set: { weight: 0.5, output: "merged/${job}" }
    matrix: { tuned: { glob: "runs/*/model.safetensors" }, weight: [0.3, 0.7] }

Every combination of the values of `matrix` is a job; with `jobs`, a list of mappings with `set` and `name`, every entry
in every combination. What is set overrides the plan as `key=value` does on the command line, and may speak of the other
values of the job: `${tuned}`, and `${job}`, its name.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Callable, Iterator
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path, PurePath
from typing import Any

from ..core.errors import Mark, PlanError
from ..core.regexes import ends_in_time
from .document import Mapping, Node, Scalar, Sequence, check_keys, noting_files, parse_plan_file, plain
from .interpolate import escape, interpolate
from .merge import merge
from .nodes import shown, texts_of
from .parameters import declarations
from .parts import LANGUAGE, Part, merge_parts, override, read_part
from .plan import Origin, Plan
from .sources import Reading

__all__ = ["Job", "load_jobs"]

MAX_JOBS = 10_000
MAX_TEXT = 100_000  # characters of all values of a job: they are kept for its report
MAX_PATTERN = 4096  # characters
MAX_NAME = 200  # characters: names are parts of paths
JOB = "job"  # stands for the name
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]+")  # what follows the dot of `v1.5` is no suffix


@dataclass(frozen=True, slots=True)
class Job:
    """One job: its name, where it was written, and what it sets in the plan that all share; `origin` is that of the
    plan."""

    name: str
    mark: Mark
    values: Mapping
    parts: tuple[Part, ...]
    origin: Origin

    @property
    def parameters(self) -> dict[str, object]:
        """What it sets, as ordinary values."""
        found = plain(self._resolved())
        assert isinstance(found, dict)
        return {key: value for key, value in found.items() if key != JOB}

    def plan(self, reading: Reading | None = None) -> Plan:
        """The plan with what the job sets; `reading` answers what its expressions ask of the inputs.

        Raises:
            PlanError: a value for which the plan has no place, and all that is wrong with a plan.
        """
        known = LANGUAGE | {key for part in self.parts if part.is_file for key in part.root.entries}
        known |= {name for part in self.parts if part.is_file for name in declarations(part.root)}
        files = [part for part in self.parts if part.is_file]
        more = [part for part in self.parts if not part.is_file]
        own = []
        for key, value in self._resolved().entries.items():
            if key in known or not (key == JOB or self._mentions(key)):
                # variables are put into the plan before its references are resolved
                own.append(
                    override(key, value if key in LANGUAGE else escape(value), self.values.keys.get(key, self.mark))
                )
        values: dict[str, Any] = {}
        with noting_files() as included:
            plan = Plan.of(merge_parts([*files, *own, *more], reading, values))
        origin = replace(self.origin, files={**self.origin.files, **included}, parameters=self.parameters | values)
        return replace(plan, origin=origin)

    def _resolved(self) -> Mapping:
        name = {JOB: escape(Scalar(self.name, self.mark))}
        root = interpolate(Mapping(name | self.values.entries, {JOB: self.mark} | self.values.keys, self.mark))
        assert isinstance(root, Mapping)
        if sum(map(len, texts_of(root))) > MAX_TEXT:
            raise PlanError(f"the values of job {self.name!r} are longer than {MAX_TEXT} characters", where=self.mark)
        return root

    def _mentions(self, key: str) -> bool:
        """Whether another value of the job speaks of this one."""
        return re.search(r"\$\{\s*" + re.escape(key) + r"\s*[.\[}]", "\n".join(texts_of(self.values))) is not None


def load_jobs(path: str, overrides: AbstractSequence[str] = ()) -> tuple[Job, ...]:
    """The jobs of a file, in its order; `overrides` are `key=value` for the plan of every job.

    Raises:
        PlanError: what is wrong with the file, with its place.
    """
    with noting_files() as itself:
        root = parse_plan_file(path, interpolate=False)
    if not isinstance(root, Mapping):
        raise PlanError("a job file is a mapping", where=root.mark, expected="plan, set, jobs, matrix, name")
    check_keys(root, ("plan", "set", "jobs", "matrix", "name"), "a job file")
    with noting_files() as files:
        parts = _plan(root)
    if isinstance(root.entries.get("plan"), Mapping):  # only then it is a part of every plan; jobs may be very many
        files = itself
    for word in overrides:
        parts.append(read_part(word))
        if parts[-1].is_file:
            raise PlanError(f"a plan file beside a job file: {word}", hint=f"name it in {path}: plan: [...]")
    axes = _axes(root.entries.get("matrix"))
    entries = _entries(root)
    if not axes and "jobs" not in root.entries:
        raise PlanError("the file has no jobs", where=root.mark, expected="jobs, a list, or matrix, lists of values")
    count = len(entries) * math.prod(len(axis.choices) for axis in axes)
    if count > MAX_JOBS:
        raise PlanError(f"{count} jobs", where=root.mark, expected=f"at most {MAX_JOBS}")
    common = _settings(root.entries.get("set"), "set")
    template = _text(root.entries["name"], "name") if "name" in root.entries else None
    origin = Origin(files, tuple(overrides))
    jobs: list[Job] = []
    places: dict[str, Mark] = {}
    for entry in entries:
        for choices in product(*(axis.choices for axis in axes)):
            jobs.append(_job(entry, axes, choices, common, template, tuple(parts), origin))
            name, mark = jobs[-1].name, jobs[-1].mark
            if name in places:
                raise PlanError(
                    f"two jobs are called {name!r}",
                    where=mark,
                    found="" if places[name] == mark else f"the other at {places[name]}",
                    hint="give each a name, with ${...} of what differs",
                )
            places[name] = mark
    return tuple(jobs)


# ------------------------------------------------------------------------------------------------ parts of the file


@dataclass(frozen=True, slots=True)
class _Choice:
    """One value of a parameter, and what stands for it in names."""

    value: Node
    label: str


@dataclass(frozen=True, slots=True)
class _Axis:
    key: str
    mark: Mark
    choices: tuple[_Choice, ...]
    is_named: bool  # whether names tell its value: what a pattern matches may be more tomorrow


@dataclass(frozen=True, slots=True)
class _Entry:
    """One item of `jobs`."""

    label: str
    mark: Mark
    settings: Mapping
    keys: frozenset[str]


def _plan(root: Mapping) -> list[Part]:
    node = root.entries.get("plan")
    if isinstance(node, Mapping):
        return [Part(node, True)]
    items = node.items if isinstance(node, Sequence) else (node,)
    if node is None or not items:
        raise PlanError(
            "the file names no plan", where=root.mark, expected="plan: a file, a list of files, or the plan itself"
        )
    parts = []
    for item in items:
        assert item is not None
        text = _text(item, "plan")
        try:
            parts.append(read_part(text))
        except PlanError as error:
            raise error.located(item.mark) from None
    return parts


def _entries(root: Mapping) -> list[_Entry]:
    node = root.entries.get("jobs")
    if node is None:
        return [_Entry("", root.mark, Mapping({}, {}, root.mark), frozenset())]
    if not isinstance(node, Sequence) or not node.items:
        raise PlanError(
            "jobs is a list",
            where=node.mark,
            expected="a list of mappings with `set` and `name`",
            found=shown(node),
        )
    entries = []
    for number, item in enumerate(node.items, 1):
        if not isinstance(item, Mapping):
            raise PlanError(
                "a job is a mapping",
                where=item.mark,
                expected="for example { name: a, set: { rank: 8 } }",
                found=shown(item),
            )
        check_keys(item, ("name", "set"), "a job")
        settings = item.entries.get("set")
        label = _text(item.entries["name"], "name") if "name" in item.entries else ""
        keys = frozenset(settings.entries) if isinstance(settings, Mapping) else frozenset()
        entries.append(_Entry(label or str(number), item.mark, _settings(settings, "set"), keys))
    return entries


def _settings(node: Node | None, what: str) -> Mapping:
    """Keys and values as the document that they set: paths such as `output.path` become mappings."""
    if node is None:
        return Mapping({}, {}, Mark("jobs", 1, 1))
    if not isinstance(node, Mapping):
        raise PlanError(
            f"{what} is a mapping",
            where=node.mark,
            expected="keys of the plan and their values",
            found=shown(node),
        )
    document = Mapping({}, {}, node.mark)
    for key, value in node.entries.items():
        document = merge(document, _setting(key, value, node.keys[key]))
    return document


def _setting(key: str, value: Node, mark: Mark) -> Mapping:
    try:
        root = override(key, value, mark).root
    except PlanError as error:
        raise error.located(mark) from None
    if JOB in root.entries:
        raise PlanError(f"{JOB} stands for the name of a job", where=mark, hint="set `name`")
    return root


def _axes(node: Node | None) -> list[_Axis]:
    if node is None:
        return []
    if not isinstance(node, Mapping) or not node.entries:
        raise PlanError(
            "matrix is a mapping",
            where=node.mark,
            expected="keys of the plan and lists of values",
            found=shown(node),
        )
    axes = []
    for key, value in node.entries.items():
        choices = tuple(_choices(key, value))
        axes.append(_Axis(key, node.keys[key], choices, len(choices) > 1 or isinstance(value, Mapping)))
    return axes


def _choices(key: str, node: Node) -> list[_Choice]:
    if isinstance(node, Sequence) and node.items:
        return [_Choice(item, _label(item, number)) for number, item in enumerate(node.items, 1)]
    if isinstance(node, Mapping):
        check_keys(node, ("glob",), f"matrix.{key}")
        given = node.entries.get("glob")
        patterns = given.items if isinstance(given, Sequence) else (given,)
        found = [
            choice
            for pattern in patterns
            if pattern is not None
            for choice in _matching(_text(pattern, "glob"), pattern.mark)
        ]
        if found:
            return found
    raise PlanError(
        f"matrix.{key} gives no values",
        where=node.mark,
        expected="a list of values, or { glob: 'runs/*' }",
        found=shown(node),
    )


def _matching(pattern: str, mark: Mark) -> Iterator[_Choice]:
    """The paths that match a pattern, in order."""
    if len(pattern) > MAX_PATTERN:
        raise PlanError("a pattern longer than any path", where=mark, expected=f"at most {MAX_PATTERN} characters")
    try:
        # not Path.glob, whose wildcards match hidden names too
        found = sorted(islice(glob.iglob(pattern, recursive=True), MAX_JOBS + 1))  # noqa: PTH207
    except (OSError, ValueError, re.error) as error:  # ValueError: a NUL
        raise PlanError(f"not a pattern of paths: {pattern!r}", where=mark, found=str(error)) from None
    if not found:
        raise PlanError(f"nothing matches {pattern!r}", where=mark, hint="paths are relative to the working directory")
    if len(found) > MAX_JOBS:
        raise PlanError(f"more than {MAX_JOBS} paths match {pattern!r}", where=mark)
    matched = _wildcards(pattern, found)
    for path in found:
        label = matched(path) or PurePath(path).name
        if label.endswith(PurePath(path).suffix) and not Path(path).is_dir():
            label = _without_suffix(label)
        yield _Choice(escape(Scalar(path, mark)), label)


def _wildcards(pattern: str, paths: AbstractSequence[str]) -> Callable[[str], str]:
    """Gives what the wildcards of a pattern stand for in a path, joined; nothing if they are too many to tell."""
    tokens = re.compile(r"\*\*/|\*+|\?|\[!?\]?[^\]]*\]")
    known = {"**/": r"((?:.*/)?)", "?": "([^/])"}
    text, at = "", 0
    for token in tokens.finditer(pattern):
        text += re.escape(pattern[at : token.start()])
        word = token[0]
        if word.startswith("["):
            text += "([^/])"
        else:
            text += known.get(word, "(.*)" if word == "**" else "([^/]*)")
        at = token.end()
    whole = re.compile(text + re.escape(pattern[at:]), re.DOTALL)

    if not ends_in_time(whole, paths):
        return lambda path: ""

    def matched(path: str) -> str:
        found = whole.fullmatch(path)
        return "-".join(part.strip("/").replace("/", "-") for part in found.groups() if part) if found else ""

    return matched


def _label(node: Node, number: int) -> str:
    """What stands for a value in names: of a path its last part without suffix."""
    if not isinstance(node, Scalar):
        return str(number)
    if not isinstance(node.value, str):
        return str(node.value).lower()
    return _without_suffix(PurePath(node.value).name)


def _without_suffix(name: str) -> str:
    path = PurePath(name)
    return path.stem if _FILE_SUFFIX.fullmatch(path.suffix) else name


def _job(
    entry: _Entry,
    axes: AbstractSequence[_Axis],
    choices: AbstractSequence[_Choice],
    common: Mapping,
    template: str | None,
    parts: tuple[Part, ...],
    origin: Origin,
) -> Job:
    values = common
    labels: dict[str, Node] = {"name": escape(Scalar(entry.label, entry.mark))}
    varying = [entry.label] if entry.label else []
    for axis, choice in zip(axes, choices, strict=True):
        if axis.key in entry.keys:
            raise PlanError(f"{axis.key} is set by the job and by matrix", where=entry.mark)
        values = merge(values, _setting(axis.key, choice.value, axis.mark))
        labels[axis.key] = escape(Scalar(choice.label, axis.mark))
        if axis.is_named:
            varying.append(choice.label)
    values = merge(values, entry.settings)
    mark = entry.mark
    for key, value in entry.settings.entries.items():
        labels.setdefault(key, escape(Scalar(_label(value, 1), mark)))
    name = _named(template, labels, mark) if template is not None else "-".join(varying) or "1"
    if not name or len(name) > MAX_NAME or not name.isprintable() or {"", ".", ".."} & set(name.split("/")):
        raise PlanError(
            "not a name of a job",
            where=mark,
            expected=f"1 to {MAX_NAME} printable characters; as a part of paths it must not lead out of a folder",
            found=f"{name[:MAX_NAME]!r}",
            hint="no .. in it, and no / at its ends: names are put in the place of ${job}",
        )
    return Job(name, mark, Mapping(values.entries, values.keys, mark), parts, origin)


def _named(template: str, labels: dict[str, Node], mark: Mark) -> str:
    root = interpolate(Mapping({"": Scalar(template, mark)} | labels, dict.fromkeys(["", *labels], mark), mark))
    assert isinstance(root, Mapping)
    return str(plain(root.entries[""]))


def _text(node: Node, what: str) -> str:
    if not isinstance(node, Scalar) or node.value is None or isinstance(node.value, bool):
        raise PlanError(f"{what} is a string", where=node.mark, found=shown(node))
    return str(node.value)
