"""Plans of receipts, and whether another plan is the one of a receipt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from ..core.errors import PlanError, listing
from ..language.document import Mapping as YamlMapping
from ..language.document import parse_yaml, plain
from ..language.parameters import Parameter, declarations
from ..language.parts import Part, merge_parts
from ..language.plan import Plan
from ..language.writing import plan_text
from ..proof.inputs import check_inputs
from ..proof.keeping import as_json, placeless
from ..proof.receipt import Receipt, read_receipt
from ..session.compiled import Compiled
from ..session.reading import Headers

__all__ = ["check_locked", "plan_of_receipt"]


def check_locked(plan: Plan, compiled: Compiled, receipt: str) -> bool:
    """Whether a plan and its inputs are those of a receipt; True.

    Raises:
        PlanError: the plan is another, or has other parameters.
        StorageError: an input has other bytes.
    """
    known = read_receipt(receipt)
    then, now = (plan_text(placeless(one)).splitlines() for one in (plan_of_receipt(known, {}), plan))
    if then != now:
        number = next((n for n, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
        raise PlanError(
            "the plan is not that of the receipt",
            where=receipt,
            expected=(then[number : number + 1] or ["nothing more"])[0].strip(),
            found=(now[number : number + 1] or ["nothing more"])[0].strip(),
            hint="compare plan, overrides and parameters with externalParameters of the receipt",
        )
    _check_parameters(known, plan)
    _check_executed(known, plan, compiled)
    check_inputs(known, compiled.symbolic, _remedy(known, compiled))
    return True


def _remedy(known: Receipt, compiled: Compiled) -> str:
    """What to try if the inputs are not those of a receipt."""
    was_directory = set(known.table["files"]) != {"."}
    if all(layout.is_directory != was_directory for _, layout in compiled.outputs):
        kind = "a directory" if was_directory else "a file"
        return f"let the output be {kind}, as it was: documents of inputs are read for a directory alone"
    return "let the inputs of the plan be the right ones, or leave out --locked"


def _check_parameters(known: Receipt, plan: Plan) -> None:
    """Whether parameters have the values that they had, also those that change nothing in this plan. Where inputs and
    outputs lie may have changed.

    Raises:
        PlanError: one has another.
    """
    then, now = known.definition["externalParameters"].get("parameters"), as_json(plan.origin.parameters)
    then = then if isinstance(then, Mapping) else {}
    declared: dict[str, Parameter] = {}
    for path, text in plan.origin.files.items():
        root = parse_yaml(text, path, interpolate=False)
        declared |= declarations(root) if isinstance(root, YamlMapping) else {}
    for name, parameter in declared.items():
        if parameter.type != "path" and name in then and name in now and then[name] != now[name]:
            raise PlanError(
                f"the parameter {name} is not that of the receipt",
                where=str(known.path),
                expected=f"{json.dumps(then[name])[:80]}, as it was then",
                found=json.dumps(now[name])[:80],
                hint="give it the value of the receipt, or leave out --locked",
            )


def _check_executed(known: Receipt, plan: Plan, compiled: Compiled) -> None:
    """Whether the files that a plan executes, of which it has the names alone, say what they said.

    Raises:
        PlanError: one does not.
    """
    assert compiled.symbolic.plan is not None
    then = known.plan_files
    for path, text in compiled.symbolic.plan.origin.files.items():
        is_same = path in then and (then[path] == text or _said(then[path], path) == _said(text, path))
        if path not in plan.origin.files and not is_same:
            raise PlanError(
                "a file that the plan executes is not that of the receipt",
                where=path,
                hint="its text then is in externalParameters of the receipt",
            )


def _said(text: str, path: str) -> object:
    return plain(parse_yaml(text, path, interpolate=False))


def plan_of_receipt(known: Receipt, inputs: Mapping[str, str]) -> Plan:
    """The plan of a receipt, with some inputs elsewhere.

    Raises:
        PlanError: it is no plan, or has no such input.
    """
    root = parse_yaml(known.expanded, str(known.path), interpolate=False)
    if not isinstance(root, YamlMapping):
        raise PlanError("the receipt has no plan", where=str(known.path))
    plan = Plan.of(merge_parts([Part(root, True)], Headers()))
    aliases = [entry.alias for entry in plan.inputs]
    for alias in inputs:
        if alias not in aliases:
            raise PlanError(f"the plan has no input {alias!r}", expected=listing(aliases) or "it has none")
    moved = tuple(replace(entry, path=inputs.get(entry.alias, entry.path)) for entry in plan.inputs)
    return replace(plan, inputs=moved)
