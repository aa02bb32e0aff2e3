"""Receipts: an in-toto statement with SLSA provenance of what a plan made of which files, and the table that it names.

What two runs of one plan on the same inputs have in common, wherever and within whatever limits they ran, has one
digest of its own, `surgery.comparable`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.errors import StorageError
from ..storage.files import parse_json, read_text
from ..storage.places.found import locate
from ..storage.proofs import RECEIPT, TABLE
from .tree import KINDS

__all__ = [
    "STATEMENT_TYPE",
    "Facts",
    "Receipt",
    "comparable",
    "is_left_table",
    "read_receipt",
    "root_of_files",
    "table_path",
]

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:surgery_jax:plan:1"
BUILDER = "urn:surgery_jax"
COMPARABLE = "surgery.comparable"
_JSON = "application/json"
_MAX_TABLE = 1 << 30  # bytes


def root_of_files(files: Mapping[str, str]) -> str:
    """The digest of an output by the SHA-256 of its files by name: that of the digests in the order of their paths, as
    the signing manifest of OpenSSF has it."""
    ordered = sorted(files, key=PurePosixPath)
    return hashlib.sha256(b"".join(bytes.fromhex(files[name]) for name in ordered)).hexdigest()


def _json_bytes(value: Any) -> bytes:
    """A value as JSON that is always the same: keys in order, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def comparable(expanded: str, inputs: Mapping[str, str], table: Mapping[str, Any]) -> str:
    """The digest over all that two runs of a plan on the same inputs share: the plan as it is expanded, but for where
    inputs and output are; digests of the inputs by their names; every tensor, document and assertion."""
    names = [name for name, facts in table["files"].items() if "rest" not in facts]
    shared = {
        "buildType": BUILD_TYPE,
        "plan": expanded,
        "inputs": dict(inputs),
        "tensors": {
            name: [tensor["dtype"], tensor["shape"], tensor.get("digest")] for name, tensor in table["tensors"].items()
        },
        "documents": {name: table["files"][name]["sha256"] for name in table["documents"] if name in names},
        "assertions": [[entry["assertion"], entry["holds"], entry["measured"]] for entry in table["assertions"]],
    }
    return hashlib.sha256(_json_bytes(shared)).hexdigest()


@dataclass(frozen=True)
class Facts:
    """What a receipt says of one output: its name, the SHA-256 of its files, the build definition without its type,
    versions of the builder, metadata of the run, and the digest of what is comparable."""

    name: str
    files: Mapping[str, str]
    definition: Mapping[str, Any]
    versions: Mapping[str, str]
    metadata: Mapping[str, str]
    comparable: str

    def receipt(self, table: bytes, table_name: str) -> bytes:
        """The text of the receipt, with the detailed table under its name."""
        products = [
            {"name": table_name, "digest": {"sha256": hashlib.sha256(table).hexdigest()}, "mediaType": _JSON},
            {"name": COMPARABLE, "digest": {"sha256": self.comparable}},
        ]
        builder = {"id": BUILDER, "version": dict(self.versions)}
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": self.name, "digest": {"sha256": root_of_files(self.files)}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": {"buildType": BUILD_TYPE, **self.definition},
                "runDetails": {"builder": builder, "metadata": dict(self.metadata), "byproducts": products},
            },
        }
        return (json.dumps(statement, indent=1, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True)
class Receipt:
    """A receipt that was read, with its table. `raw` is its text."""

    path: Path
    raw: bytes
    statement: Mapping[str, Any]
    table: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the output was called."""
        return str(self.statement["subject"][0]["name"])

    @property
    def output(self) -> Path:
        """Where the output lies, if neither was moved.

        Raises:
            StorageError: the receipt gives it a name that leads elsewhere.
        """
        if self.path.name == RECEIPT:
            return self.path.parent
        if not _is_plain(self.name):
            raise StorageError("the name of an output that leads elsewhere", where=str(self.path), found=self.name[:80])
        return self.path.with_name(self.name)

    @property
    def root(self) -> str:
        """The digest of the output."""
        return str(self.statement["subject"][0]["digest"]["sha256"])

    @property
    def finished(self) -> str:
        """When it was made."""
        return str(self.statement["predicate"]["runDetails"]["metadata"]["finishedOn"])

    @property
    def definition(self) -> Mapping[str, Any]:
        """Of the plan and its inputs."""
        found: Mapping[str, Any] = self.statement["predicate"]["buildDefinition"]
        return found

    @property
    def expanded(self) -> str:
        """The plan, expanded, as YAML."""
        return str(self.definition["internalParameters"]["plan"])

    @property
    def plan_files(self) -> dict[str, str]:
        """The texts of the files that the plan was made of, those that it executes among them, by path."""
        written = self.definition["externalParameters"].get("plan")
        texts = written.items() if isinstance(written, Mapping) else ()
        return {path: text for path, text in texts if isinstance(text, str)}

    @property
    def number(self) -> int:
        """Of the save that wrote the output, among those of the plan."""
        return int(self.definition["internalParameters"]["output"])

    @property
    def inputs(self) -> dict[str, Mapping[str, Any]]:
        """The files of inputs by name, as the receipt describes them."""
        entries = self.definition["resolvedDependencies"]
        return {entry["name"]: entry for entry in entries if entry["annotations"]["kind"] == "input"}

    @property
    def versions(self) -> Mapping[str, str]:
        """Of what computed it."""
        found: Mapping[str, str] = self.statement["predicate"]["runDetails"]["builder"]["version"]
        return found

    @property
    def digest(self) -> str:
        """The kind of the digests of tensors; `none` if it has none."""
        return str(self.table["digest"])

    @property
    def comparable(self) -> str:
        """The digest of what another run must have in common with this one."""
        products = self.statement["predicate"]["runDetails"]["byproducts"]
        return str(next(entry["digest"]["sha256"] for entry in products if entry["name"] == COMPARABLE))


def table_path(receipt: Path) -> Path:
    """Where the table of a receipt lies."""
    return receipt.with_name(TABLE if receipt.name == RECEIPT else f"{receipt.stem}.tensors.json")


def is_left_table(receipt: Path) -> bool:
    """Whether the table of a receipt lies there without it."""
    table = table_path(receipt)
    if receipt.exists() or not table.exists():
        return False
    try:
        raw = read_text(table, "the table", most=_MAX_TABLE).encode()
        return not _first_fault(parse_json(raw, table, "the table"), _TABLE, "")
    except StorageError:
        return False


def read_receipt(path: str) -> Receipt:
    """A receipt, by its path or that of the directory in which it lies, with its table.

    Raises:
        StorageError: it cannot be read, is no receipt of ours, or its table is not the one that it names.
    """
    place = locate(path)
    if place.is_dir():
        place = place / RECEIPT
    try:
        raw = read_text(place, "the receipt").encode()
        found: Any = parse_json(raw, place, "the receipt")
    except StorageError as error:
        error.hint = error.hint or "a receipt lies in the directory that it is of, or where --receipt wrote it"
        raise
    problem = _first_fault(found, _STATEMENT, "")
    if not problem and found["_type"] != STATEMENT_TYPE:
        problem = f"_type {found['_type']!r:.80}"
    if not problem and found["predicate"]["buildDefinition"]["buildType"] != BUILD_TYPE:
        problem = f"buildType {found['predicate']['buildDefinition']['buildType']!r:.80}"
    if problem:
        raise StorageError(
            "not a receipt of a plan", where=str(place), expected=f"a statement of {BUILD_TYPE}", found=problem
        )
    beside, wanted = _table_beside(place, found["predicate"]["runDetails"]["byproducts"])
    try:
        text = read_text(beside, "the table of the receipt", most=_MAX_TABLE).encode()
    except StorageError as error:
        error.hint = f"the table of a receipt lies beside it: copy {beside.name} there too"
        raise
    if hashlib.sha256(text).hexdigest() != wanted:
        raise StorageError(
            "the table is not the one that the receipt names",
            where=str(beside),
            expected=f"SHA-256 {wanted}",
            hint="fetch both files again, from one place",
        )
    table: Any = parse_json(text, beside, "the table of the receipt")
    problem = _first_fault(table, _TABLE, "") or next(filter(None, map(_strange, table["files"])), "")
    if not problem and table["digest"] != "none":
        problem = _first_fault(table["tensors"], {str: {"digest": "hex"}}, "tensors")
    if problem:
        raise StorageError("not a table of tensors", where=str(beside), found=problem)
    receipt = Receipt(place, raw, found, table)
    root = root_of_files({name: facts["sha256"] for name, facts in table["files"].items()})
    if receipt.root != root:
        raise StorageError(
            "the digest of its subject is not that of the files in its table",
            where=str(place),
            expected=f"SHA-256 {root}",
            found=receipt.root,
            hint="somebody has changed the receipt: fetch both files again, from one place",
        )
    return receipt


def _table_beside(receipt: Path, products: Sequence[Mapping[str, Any]]) -> tuple[Path, str]:
    """Where the table of a receipt lies, under the name that it was written with or that of a receipt that was renamed
    with it, and its SHA-256.

    Raises:
        StorageError: the receipt names none.
    """
    for entry in products:
        name = entry["name"]
        if name.endswith(".tensors.json") and _is_plain(name):
            renamed = table_path(receipt)
            return renamed if renamed.exists() else receipt.with_name(name), entry["digest"]["sha256"]
    raise StorageError("the receipt names no table", where=str(receipt), expected="*.tensors.json among its byproducts")


# ------------------------------------------------------------------------------------------------------- their form


def _is_plain(name: str) -> bool:
    """Whether a name is that of something in a directory, and no way out of it."""
    return name not in ("", "..") and PurePosixPath(name).name == name and "\0" not in name


def _strange(name: str) -> str:
    """What is wrong with the name of a file of an output, which must lie in it."""
    path = PurePosixPath(name)
    lies_within = not path.is_absolute() and ".." not in path.parts and "\0" not in name
    return "" if lies_within else f"the name of a file that leads elsewhere: {name!r:.80}"


_DIGEST = {"sha256": "hex"}
_STATEMENT: Any = {
    "_type": str,
    "subject": [{"name": str, "digest": _DIGEST}],
    "predicate": {
        "buildDefinition": {
            "buildType": str,
            "externalParameters": {},
            "internalParameters": {"plan": str, "output": int},
            "resolvedDependencies": [
                {"name": str, "uri": str, "digest": _DIGEST, "annotations": {"kind": str, "size": int}}
            ],
        },
        "runDetails": {
            "builder": {"id": str, "version": {str: str}},
            "metadata": {"invocationId": str, "startedOn": str, "finishedOn": str},
            "byproducts": [{"name": str, "digest": _DIGEST}],
        },
    },
}
_TABLE: Any = {
    "version": 1,
    "digest": (*KINDS, "none"),
    "tensors": {str: {"dtype": str, "shape": [int], "from": [str]}},
    "files": {str: {"sha256": "hex", "size": int}},
    "documents": [str],
    "inputs": {str: {"marks": [[object]]}},
    "assertions": [{"assertion": str, "holds": bool, "measured": str}],
}


def _first_fault(value: Any, form: Any, where: str) -> str:
    """What is first wrong with a value of JSON; empty if it has the form."""
    if form is object:
        return ""
    if form == "hex":
        is_hex = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
        return "" if is_hex else f"{where or 'it'} is no SHA-256"
    if isinstance(form, tuple):
        return "" if value in form else f"{where} is none of {', '.join(form)}"
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{where or 'it'} is no list"
        return next(filter(None, (_first_fault(item, form[0], f"{where}[{n}]") for n, item in enumerate(value))), "")
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{where or 'it'} is no object"
        if list(form) == [str]:
            return next(
                filter(None, (_first_fault(item, form[str], f"{where}.{key}") for key, item in value.items())), ""
            )
        absent = next((key for key in form if key not in value), None)
        if absent is not None:
            return f"no {where}.{absent}".replace("no .", "no ")
        return next(
            filter(None, (_first_fault(value[key], inner, f"{where}.{key}") for key, inner in form.items())), ""
        )
    if isinstance(form, int) and not isinstance(form, type):
        return "" if value == form else f"{where} is not {form}"
    is_right = isinstance(value, form) and not (form is int and isinstance(value, bool))
    return "" if is_right and not (form is int and value < 0) else f"{where or 'it'} is no {_WORDS[form]}"


_WORDS = {str: "text", int: "whole number", bool: "truth value"}
