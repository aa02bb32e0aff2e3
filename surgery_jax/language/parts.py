"""Plan files, overrides and values of parameters to one document."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import Mark, PlanError
from .document import SUFFIXES, parse_plan_file, parse_yaml
from .expansion import PlanResolver, PlanTally, expanded
from .library import library_file
from .merge import is_override, merge, merged, nested, parse_path
from .nodes import Mapping, Node, Scalar, Sequence, check_text, node_of
from .parameters import OUTPUT, Parameter, declarations, missing, unknown
from .plan import inputs_of
from .scalars import parse_plain
from .sources import Reading, Sources

__all__ = ["LANGUAGE", "Part", "load_document", "merge_parts", "override", "read_part", "settings", "settings_file"]

LANGUAGE = {"inputs", "transforms", "output"}  # every other key of a plan is a variable or declares parameters


@dataclass(frozen=True)
class Part:
    """A plan file, not interpolated yet, or an override; `is_whole` says that it is of a key at the top as a whole."""

    root: Mapping
    is_file: bool
    is_whole: bool = False

    @property
    def name(self) -> str:
        """The first key of an override."""
        return next(iter(self.root.entries))


def load_document(
    arguments: Iterable[str],
    more: Iterable[Part] = (),
    reading: Reading | None = None,
    values: dict[str, Any] | None = None,
) -> Mapping:
    """Plan files and `key=value` overrides, merged from left to right; `more` are overrides that come before these.

    A token is a file if it ends in .yaml or .yml, unless it reads as an override and no such file exists; a file
    `plans/NAME.yaml` that does not exist is the one of the library. An override
    of a parameter, or of a variable, a key beside those of the language, gives the files that have it another value,
    before interpolation. `reading` answers what expressions ask of the inputs; `values` gets those of the parameters.

    Raises:
        PlanError: a token that is neither, a missing file, a parameter or variable that no file has, a root that is no
            mapping, and all that interpolation raises.
    """
    return merge_parts([*more, *(read_part(token) for token in arguments)], reading, values)


def override(path: str, value: Node, mark: Mark) -> Part:
    """What puts a value at a path such as `transforms[0].scale_.by`.

    Raises:
        PlanError: no such path.
    """
    steps = parse_path(path)
    return Part(_checked_root(nested(steps, value, mark)), False, len(steps) == 1)


def settings(values: AnyMapping[str, Any]) -> list[Part]:
    """Values of parameters, given by a program.

    Raises:
        PlanError: what is no value of a plan.
    """
    mark = Mark("params", 0, 0)
    return [override(name, node_of(value, mark.within(name)), mark.within(name)) for name, value in values.items()]


def settings_file(path: str) -> list[Part]:
    """Values of parameters from a YAML file: names and values.

    Raises:
        PlanError: it cannot be read, or is no mapping.
    """
    root = parse_plan_file(path, interpolate=False)
    if not isinstance(root, Mapping):
        raise PlanError("a file of parameters is a mapping", where=root.mark, expected="names and values")
    return [override(name, node, root.keys[name]) for name, node in root.entries.items()]


def merge_parts(
    parts: AbstractSequence[Part], reading: Reading | None = None, values: dict[str, Any] | None = None
) -> Mapping:
    """Plan files and overrides, merged from left to right, with loops and fragments expanded; `values` gets those of
    the parameters.

    Raises:
        PlanError: a parameter or variable that no file has, and all that interpolation and expansion raise.
    """
    files = [part for part in parts if part.is_file]
    variables = [part for part in parts if not part.is_file and part.name not in LANGUAGE] if files else []
    parameters = {name: parameter for part in files for name, parameter in declarations(part.root).items()}
    known = LANGUAGE.union(parameters, *(part.root.entries for part in files))
    for variable in variables:
        if variable.name not in known:
            raise unknown(variable.name, variable.root.mark, parameters, known, [part.root for part in files])
    bounds = PlanTally()
    stages: list[PlanResolver | Part] = []
    sources = Sources(reading, lambda: inputs_of(_merged(stages, "inputs").entries.get("inputs")))
    for part in parts:
        if part.is_file:
            root, given = _filled(part.root, variables)
            stages.append(PlanResolver(root, given, sources, bounds))
        elif all(part is not variable for variable in variables):
            stages.append(part)
    stages += _default_output(parameters.get(OUTPUT), stages)
    for stage in stages:
        if isinstance(stage, PlanResolver):
            stage.check_given()
    document = _merged(stages)
    if any(isinstance(stage, PlanResolver) and stage.has_deferred for stage in stages):
        wanted = {key: expanded(node) for key, node in document.entries.items() if key in LANGUAGE}
        document = replace(document, entries=document.entries | wanted)
    if values is not None:
        for stage in stages:
            values |= stage.values() if isinstance(stage, PlanResolver) else {}
    return document


def _filled(root: Mapping, variables: AbstractSequence[Part]) -> tuple[Mapping, dict[str, Node]]:
    """A plan file with the variables that are overridden, and the values given for its parameters."""
    parameters = declarations(root)
    given: dict[str, Node] = {}
    for variable in variables:
        name = variable.name
        if name in parameters:
            before = given.get(name, parameters[name].default)
            value = variable.root.entries[name]
            given[name] = value if variable.is_whole or before is None else merged(before, value)
        elif name in root.entries:
            root = merge(root, variable.root)
    return root, given


def _merged(stages: AbstractSequence[PlanResolver | Part], key: str | None = None) -> Mapping:
    """All files and overrides as one document, or of all of them what stands at one key at the top."""
    document = Mapping({}, {}, Mark("plan", 1, 1))
    for number, stage in enumerate(stages):
        if isinstance(stage, PlanResolver):
            root = stage.whole() if key is None else stage.only(key)
        else:
            root = _kept_output(stage.root, document)
            if key is not None:
                root = Mapping({k: v for k, v in root.entries.items() if k == key}, root.keys, root.mark)
        document = merge(document, root) if number else root
    if key is not None:
        document = replace(document, entries={k: expanded(node) for k, node in document.entries.items()})
    return document


def _kept_output(root: Mapping, document: Mapping) -> Mapping:
    """An override; of an output one can give the path alone, which keeps the rest, or something else, which keeps the
    path."""
    value, before = root.entries.get(OUTPUT), document.entries.get(OUTPUT)
    if isinstance(value, Scalar) and isinstance(before, Mapping) and value.value not in (None, ""):
        kept = Mapping({"path": value}, {"path": value.mark}, value.mark)
    elif isinstance(value, Mapping) and isinstance(before, Scalar) and before.value not in (None, ""):
        kept = merge(Mapping({"path": before}, {"path": before.mark}, before.mark), value)
    else:
        return root
    return replace(root, entries=root.entries | {OUTPUT: kept})


def _default_output(parameter: Parameter | None, stages: AbstractSequence[PlanResolver | Part]) -> list[Part]:
    """What a parameter `output` adds: it is the path of the output, whose default is used if none is given.

    Raises:
        PlanError: it must be given, and is not.
    """
    if parameter is None or any(isinstance(stage, Part) and OUTPUT in stage.root.entries for stage in stages):
        return []
    if parameter.default is None:
        raise missing([parameter])
    return [override(OUTPUT, parameter.default, parameter.mark)]


def read_part(token: str) -> Part:
    """A word of the command line: a plan file, or an override.

    Raises:
        PlanError: it is neither, and all that `parse_plan_file` raises.
    """
    if token.lower().endswith(SUFFIXES) and (_exists(token) or not is_override(token)):
        known = None if _exists(token) else library_file(token)
        return Part(_checked_root(parse_plan_file(known or token, interpolate=False)), True)
    if "=" in token:
        mark = Mark(token, 1, 1)
        check_text(token, ascii(token)[1:-1])
        path = parse_path(token)
        value = _override(path, token.partition("=")[2], mark)
        return Part(_checked_root(nested(path, value, mark)), False, len(path) == 1)
    forgotten = next((token + suffix for suffix in SUFFIXES if _exists(token + suffix)), None)
    if forgotten is None and library_file(token):
        forgotten = f"plans/{token}.yaml"
    raise PlanError(
        f"neither a plan file nor an override: {token!r}",
        expected="PLAN.yaml or key=value",
        hint=f"did you mean {forgotten}?" if forgotten else None,
    )


def _checked_root(root: Node) -> Mapping:
    if not isinstance(root, Mapping):
        raise PlanError(
            "the root of a plan must be a mapping",
            where=root.mark,
            expected="inputs, transforms, output",
            found="a list" if isinstance(root, Sequence) else "a single value",
        )
    return root


def _override(path: tuple[str | int, ...], text: str, mark: Mark) -> Node:
    r"""The value of an override: a number, truth value, flow list or flow mapping as in YAML, else the text itself.

    `text` stays on scalars, for fields that want a string. Null means null only where it was never of use as a name:
    for the whole output. `\${` stands for a plain `${`, as in plan files; there is nothing else to interpolate.
    """
    value = parse_plain(text)
    if value is None:
        return Scalar(None if text and path == ("output",) else text, mark, text)
    if isinstance(value, int) and not isinstance(value, bool) and not _is_decimal(text, value):
        return Scalar(text, mark, text)
    if not isinstance(value, str):
        return Scalar(value, mark, text)
    if text.startswith(("[", "{")):
        try:
            return replace(parse_yaml(text, mark.file, interpolate=False), mark=mark)
        except PlanError:  # a regex such as [ab].* begins like a list
            pass
    text = text.replace("\\${", "${")
    return Scalar(text, mark, text)


def _is_decimal(text: str, value: int) -> bool:
    """Whether the number is what a field makes of the text; `010` is ten to people and eight to YAML."""
    try:
        return int(text) == value
    except ValueError:  # 0x10, 1:30: numbers only to YAML
        return True


def _exists(token: str) -> bool:
    try:
        return Path(token).exists()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False
