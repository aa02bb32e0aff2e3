"""How a step of a plan is declared: fields, tensor operations, directives, and the registry of their words.

A transform is one file with one class. A `TensorOp` is a pure function from arrays to arrays plus a shape-and-dtype
rule; its `spellings` say which plan words build it and how (new tensor, in place, three operands). A `Directive` acts
on the namespace while the graph is built. Parsing, unknown-key errors, help text, completion and the contract tests all
read the declarations made here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.discover import import_all
from ..core.dtypes import DType, parse_dtype
from ..core.errors import Mark, PlanError, listing, nearest
from ..core.exact import exact
from ..core.specs import Spec
from ..language import document
from ..language.document import Node, Scalar
from ..language.nodes import shown
from ..language.regexes import compile_regex
from .where import Where, parse_where

if TYPE_CHECKING:
    from ..numerics.cuts import Cut
    from .forms import Form
    from .state import State

__all__ = [
    "Directive",
    "Field",
    "TensorOp",
    "Word",
    "boolean",
    "choice",
    "dtype_name",
    "epsilon",
    "expressions",
    "find_word",
    "fraction",
    "integer",
    "integers",
    "node",
    "number",
    "operation",
    "parse_fields",
    "pattern",
    "rank",
    "reference",
    "text",
    "values",
    "word",
    "words",
]

REQUIRED: Any = object()
NO_ARITHMETIC = ("structure", "check", "make", "template", "composed")  # kinds that compute with no numbers of operands


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a step: what it takes, in words and as a parser from a YAML node."""

    kind: str
    doc: str
    parse: Callable[[Node], Any]
    default: Any = REQUIRED
    key: str = ""
    traced: bool = False
    null_is_absent: bool = False

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


def _wrong(value: Node, expected: str) -> PlanError:
    return PlanError(f"not {expected}", where=value.mark, expected=expected, found=shown(value))


def _parse_number(value: Node) -> float:
    raw = value.value if isinstance(value, Scalar) else None
    if raw is None:
        raise _wrong(value, "a number")
    try:
        return float(raw)
    except (ValueError, OverflowError):  # an integer beyond all floats
        raise _wrong(value, "a number") from None


def _parse_int(value: Node) -> int:
    if not isinstance(value, Scalar) or not isinstance(value.value, int) or isinstance(value.value, bool):
        raise _wrong(value, "an integer")
    if not -(2**63) <= value.value < 2**64:
        raise _wrong(value, "an integer of 64 bits")
    return value.value


def _parse_ints(value: Node) -> tuple[int, ...]:
    if not isinstance(value, document.Sequence):
        raise _wrong(value, "a list of integers")
    return tuple(_parse_int(item) for item in value.items)


def _parse_bool(value: Node) -> bool:
    if not isinstance(value, Scalar) or not isinstance(value.value, bool):
        raise _wrong(value, "true or false")
    return value.value


def _parse_text(value: Node) -> str:
    if not isinstance(value, Scalar):
        raise _wrong(value, "a string")
    raw = value.text if value.text is not None and value.value is not None else value.value
    if not isinstance(raw, str) or not raw:
        raise _wrong(value, "a string that is not empty")
    if "\0" in raw:
        raise _wrong(value, "a string without NUL")
    return raw


def _parse_dtype(value: Node) -> DType:
    try:
        return parse_dtype(_parse_text(value))
    except PlanError as error:
        raise error.located(value.mark) from None


def _parse_epsilon(value: Node) -> float:
    raw = value.value if isinstance(value, Scalar) else None
    if not isinstance(raw, int | float) or isinstance(raw, bool) or raw < 0:
        raise _wrong(value, "a number that is not negative")
    return _parse_number(value)


def _parse_rank(value: Node) -> int:
    found = _parse_number(value)
    if not math.isfinite(found) or found < 1 or found != int(found):
        raise _wrong(value, "a whole number of at least 1")
    return int(found)


def _parse_fraction(value: Node) -> float:
    found = _parse_number(value)
    if not 0 < found <= 1:
        raise _wrong(value, "a number above 0 and at most 1")
    return found


def _parse_expressions(value: Node) -> tuple[Any, ...]:
    items = value.items if isinstance(value, document.Sequence) else (value,)
    return tuple(compile_regex(_parse_text(item), item.mark) for item in items)


def _parse_values(value: Node) -> Any:
    """A number, or nested tuples of numbers, all rows of a level equally long."""
    if isinstance(value, document.Sequence):
        items = tuple(_parse_values(item) for item in value.items)
        if len({_nested_shape(item) for item in items}) > 1:
            raise _wrong(value, "a rectangular list of numbers")
        return items
    raw = value.value if isinstance(value, Scalar) else None
    if not isinstance(raw, int | float) or (isinstance(raw, int) and abs(raw) >= 2**64):
        raise _wrong(value, "a number of at most 64 bits, or a nested list of them")
    return raw


def _nested_shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, tuple):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def number(doc: str, default: Any = REQUIRED, *, traced: bool = False) -> Any:
    """Anything `float()` takes; with `traced` a run-time argument of the compiled function, so a new value costs
    nothing."""
    return _field(Field("number", doc, _parse_number, default, traced=traced))


def integer(doc: str, default: Any = REQUIRED) -> Any:
    """A YAML integer."""
    return _field(Field("integer", doc, _parse_int, default))


def integers(doc: str, default: Any = REQUIRED) -> Any:
    """A list of YAML integers."""
    return _field(Field("list of integers", doc, _parse_ints, default))


def boolean(doc: str, default: Any = REQUIRED) -> Any:
    """A real boolean."""
    return _field(Field("boolean", doc, _parse_bool, default))


def text(doc: str, default: Any = REQUIRED) -> Any:
    """A string that is not empty."""
    return _field(Field("string", doc, _parse_text, default))


def word() -> Any:
    """Not a key but a number that the operation finds for itself: a word of a random key, say. Traced."""
    return dataclasses.field(default=0.0, metadata={"traced": True})


def texts(doc: str, default: Any = REQUIRED) -> Any:
    """A string that is not empty, or a list of such."""

    def parse(value: Node) -> tuple[str, ...]:
        items = value.items if isinstance(value, document.Sequence) else (value,)
        return tuple(_parse_text(item) for item in items)

    return _field(Field("string or list of strings", doc, parse, default))


def dtype_name(doc: str, default: Any = REQUIRED, *, key: str = "") -> Any:
    """The name of a dtype."""
    return _field(Field("dtype", doc, _parse_dtype, default, key=key))


def epsilon(doc: str) -> Any:
    """An absolute tolerance; null means none."""
    return _field(Field("number", doc, _parse_epsilon, None, traced=True, null_is_absent=True))


def rank(doc: str, default: Any = REQUIRED) -> Any:
    """A positive whole number, also as a float or a numeric string."""
    return _field(Field("whole number", doc, _parse_rank, default))


def fraction(doc: str, default: Any = REQUIRED) -> Any:
    """A number above 0 and at most 1."""
    return _field(Field("fraction", doc, _parse_fraction, default))


def pattern(doc: str, default: Any = REQUIRED, *, key: str = "") -> Any:
    """A regular expression that must match whole names."""
    return _field(Field("pattern", doc, lambda value: _parse_expressions(value)[0], default, key=key))


def expressions(doc: str, default: Any = ()) -> Any:
    """A regular expression or a list of them, as patterns that must match whole names."""
    return _field(Field("pattern or list of patterns", doc, _parse_expressions, default))


def values(doc: str, default: Any = REQUIRED) -> Any:
    """A number or a rectangular nested list of numbers."""
    return _field(Field("number or nested list", doc, _parse_values, default))


def choice(
    doc: str, options: tuple[str, ...], default: Any = REQUIRED, *, folded: bool = False, null: str | None = None
) -> Any:
    """One of some words; with `folded` case and surrounding blanks do not matter; `null` is what null stands for."""

    def parse(value: Node) -> str:
        is_null = isinstance(value, Scalar) and value.value is None
        word = null if is_null and null else _parse_text(value)
        word = word.strip().lower() if folded else word
        if word not in options:
            near = nearest(word, options, 1)
            raise PlanError(
                f"unknown value {word!r}",
                where=value.mark,
                expected="one of " + ", ".join(options),
                hint=f"did you mean {near[0]}?" if near else None,
            )
        return word

    return _field(Field("one of " + ", ".join(options), doc, parse, default))


def node(doc: str, default: Any = REQUIRED, *, kind: str = "any", key: str = "") -> Any:
    """A YAML node that the directive itself interprets."""
    return _field(Field(kind, doc, lambda value: value, default, key=key))


def reference(doc: str, default: Any = REQUIRED, *, key: str = "", kind: str = "reference") -> Any:
    """A tensor reference; it becomes a `Reference` when its step is built, since only then its aliases are known."""

    def parse(value: Node) -> Node:
        if isinstance(value, document.Mapping) or (isinstance(value, Scalar) and not isinstance(value.value, str)):
            raise _wrong(value, "a reference: a string, or a list of strings")
        return value

    return _field(Field(kind, doc, parse, default, key=key))


def _field(spec: Field) -> Any:
    if spec.required:
        return dataclasses.field(metadata={"field": spec})
    return dataclasses.field(default=spec.default, metadata={"field": spec})


_TRACED: dict[type, tuple[str, ...]] = {}
_FIELDS: dict[type, dict[str, tuple[str, Field]]] = {}


def fields_of(cls: Any) -> dict[str, tuple[str, Field]]:
    """YAML key to (attribute, field) of everything a class declares, in order."""
    if cls not in _FIELDS:
        found = _FIELDS[cls] = {}
        for entry in dataclasses.fields(cls):
            if "field" in entry.metadata:
                declared: Field = entry.metadata["field"]
                found[declared.key or entry.name.rstrip("_")] = (entry.name, declared)
    return _FIELDS[cls]


def parse_fields(word: str, payload: Node, declared: Mapping[str, tuple[str, Field]]) -> dict[str, Any]:
    """The values of a payload by attribute name; defaults are left out.

    Raises:
        PlanError: not a mapping, unknown or missing keys, or values of the wrong kind; all of them together are one
            error of several lines.
    """
    if isinstance(payload, Scalar) and payload.value is None:
        payload = document.Mapping({}, {}, payload.mark)
    if not isinstance(payload, document.Mapping):
        raise PlanError(
            f"{word} takes a mapping",
            where=payload.mark,
            expected="a mapping with the keys " + ", ".join(declared),
            found=shown(payload),
        )
    unknown = [key for key in payload.entries if key not in declared]
    if unknown:
        near = nearest(unknown[0], declared, 1)
        missing = [key for key, (_, field) in declared.items() if field.required and key not in payload.entries]
        also = [f"{word}.{key} is required" for key in missing if key not in near]
        raise PlanError(
            "; ".join([f"{word} received unknown keys: {unknown}", *also]),
            where=payload.keys[unknown[0]],
            expected=("one of " + ", ".join(declared)) if declared else "no keys",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    parsed = {}
    for key, (attribute, field) in declared.items():
        value = payload.entries.get(key)
        if value is None or (field.null_is_absent and isinstance(value, Scalar) and value.value is None):
            if field.required:
                raise PlanError(f"{word}.{key} is required", where=payload.mark, expected=f"{field.kind}: {field.doc}")
            continue
        try:
            parsed[attribute] = field.parse(value)
        except PlanError as error:
            error.problem = f"{word}.{key}: {error.problem}"
            raise error.located(value.mark) from None
    return parsed


class TensorOp:
    """A pure function from arrays to arrays. Subclasses are frozen dataclasses whose fields are static or traced.

    kind:
        `elementwise`: every output element depends on the input elements of the same position only; all of one shape.
        `check`: elementwise, the output is a mask that must be true everywhere.
        `structure`: moves elements and changes no bit of them.
        `whole`: needs whole tensors.
        `make`: no inputs; `put` gives the elements on the host.
        `composed`: stands for others, which `compose` applies.
        `reduce`: a few numbers about all elements of operands of one size (`kit.reduction`).
    """

    kind: ClassVar[str] = "elementwise"
    needs_finite: ClassVar[bool] = False  # NaN or infinity in an operand is an error
    uses_lapack: ClassVar[bool] = False  # which a CPU runs as well without a compiled function around it
    needs_positions: ClassVar[bool] = False  # the last operand is the number of every element, uint64
    outputs: ClassVar[int] = 1
    spellings: ClassVar[tuple[Form, ...]] = ()
    examples: ClassVar[tuple[str, ...]] = ()

    def infer(self, *specs: Any, **_: Any) -> tuple[Spec, ...]:
        """Shapes and dtypes of the results.

        Raises:
            PlanError: the operation is not defined on these operands.
        """
        raise NotImplementedError

    def apply(self, k: Any, *arrays: Any, **_: Any) -> Any:
        """The results. `k` computes exactly, on a device or in NumPy (`numerics.kernels`); traced fields of `self` are
        scalars of float64 while a device function is traced."""
        raise NotImplementedError

    def smallest(self, *bounds: Any, **_: Any) -> Any:
        """How small non-zero results can be, given that of the operands (`numerics.magnitude`); None: not to
        be bounded."""
        return None

    def by_rows(self, rows: int, result: Spec, *operands: Spec) -> TensorOp | None:
        """The same operation on `rows` rows of every operand; None if rows of the result need more than theirs."""
        return self if self.kind in ("elementwise", "check") else None

    def workspace_bytes(self, *operands: Any) -> int:
        """Bytes that computing needs beside operands and results."""
        return 0

    def cut(self, *operands: Any) -> Cut | None:
        """How one call of a whole operation is spread over devices when it is too large for one; None if it cannot be.

        A cut operand is padded with zeros at the end of its axis: results may be longer for it, but must be the same in
        front; and `apply` must leave every sum along that axis to the kernel (`numerics.mesh_kernel`)."""
        return None

    def cut_workspace_bytes(self, count: int, cut: Cut, *operands: Any) -> int:
        """Bytes that each of `count` devices needs beside its parts of the padded operands and of the results."""
        return 0

    def by_bits(self, *operands: Spec) -> bool:
        """Whether a device only moves or compares the bits of these operands, so that subnormal numbers are safe."""
        return self.kind == "structure"

    @classmethod
    def traced_fields(cls) -> tuple[str, ...]:
        """Attributes that are run-time arguments of the compiled function."""
        if cls not in _TRACED:
            declared = [attribute for attribute, field in fields_of(cls).values() if field.traced]
            hidden = [entry.name for entry in dataclasses.fields(cls) if entry.metadata.get("traced")]  # type: ignore[arg-type]
            _TRACED[cls] = (*declared, *hidden)
        return _TRACED[cls]

    def named(self, name: str) -> TensorOp:
        """The operation for the tensor of a name, where it depends on that, as random streams do."""
        return self

    def numbers(self) -> tuple[float, ...]:
        """Values of the traced fields that are present."""
        return tuple(getattr(self, name) for name in self.traced_fields() if getattr(self, name) is not None)

    def with_numbers(self, numbers: Iterator[Any]) -> TensorOp:
        """This operation with its present traced fields replaced, in order."""
        present = [name for name in self.traced_fields() if getattr(self, name) is not None]
        return dataclasses.replace(self, **{name: next(numbers) for name in present}) if present else self  # type: ignore[type-var]

    def static_key(self) -> tuple[Any, ...]:
        """What of this operation belongs to the compiled structure."""
        traced = set(self.traced_fields())
        rest = []
        for entry in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            rest.append((value is None) if entry.name in traced else exact(value))
        return (type(self).__name__, *rest)


class Directive:
    """A step that acts on the namespace, prints, or adds a root. Subclasses are frozen dataclasses.

    `selects`: it works on all tensors that its first reference matches, so it has the key `where`. `computes`: with
    their numbers, so it has the key `raw`.
    """

    word: ClassVar[str]
    selects: ClassVar[bool] = False
    computes: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[str] = ""  # attribute that a payload which is no mapping fills

    def build(self, state: State) -> None:
        """Run on the symbolic state."""
        raise NotImplementedError

    def contributes(self, state: State) -> str | None:
        """The alias that this step offers as the plan's output, None if it offers none."""
        return None


WHERE = Field("condition", "only tensors of these dtypes, such as { dtype: float }", parse_where, None)
RAW = Field("boolean", "compute with the stored numbers of quantised tensors, without their scales", _parse_bool, False)


@dataclass(frozen=True, slots=True)
class Word:
    """One step word: what it builds."""

    name: str
    cls: type[TensorOp] | type[Directive]
    form: Form | None
    fields: Mapping[str, tuple[str, Field]]

    @property
    def shared(self) -> Mapping[str, tuple[str, Field]]:
        """The keys that it has in common with other steps."""
        chooser = self.cls if self.form is None else self.form
        computes = self.cls.computes if issubclass(self.cls, Directive) else self.cls.kind not in NO_ARITHMETIC
        known = {"where": (chooser.selects, WHERE), "raw": (computes, RAW)}  # type: ignore[union-attr]
        return {key: (key, field) for key, (is_taken, field) in known.items() if is_taken}

    @property
    def doc(self) -> str:
        """First paragraph of the class's docstring."""
        return " ".join((self.cls.__doc__ or "").split("\n\n")[0].split())

    @property
    def examples(self) -> tuple[str, ...]:
        """The examples that use this word."""
        return tuple(text for text in self.cls.examples if text.split(":")[0].strip() == self.name)

    def parse(self, payload: Node, mark: Mark) -> BoundStep:
        """A step of this word.

        Raises:
            PlanError: unknown or missing keys, or values of the wrong kind.
        """
        directive = None if self.form else self.cls
        if directive is not None and getattr(directive, "takes", None):
            absent = isinstance(payload, Scalar) and payload.value is None
            if not absent and (len(self.fields) == 1 or not isinstance(payload, document.Mapping)):
                key = next(key for key, (attribute, _) in self.fields.items() if attribute == directive.takes)  # type: ignore[union-attr]
                payload = document.Mapping({key: payload}, {key: payload.mark}, payload.mark)
        parsed = parse_fields(self.name, payload, {**self.fields, **self.shared})
        where, raw = parsed.pop("where", None), parsed.pop("raw", False)
        own = {attribute for attribute, _ in fields_of(self.cls).values()}
        refs = {key: value for key, value in parsed.items() if key not in own}
        try:
            thing = self.cls(**{key: value for key, value in parsed.items() if key in own})
        except PlanError as error:
            error.problem = f"{self.name}: {error.problem}"
            raise error.located(mark) from None
        return BoundStep(self, thing, refs, mark, where, raw)


@dataclass(frozen=True, slots=True)
class BoundStep:
    """A parsed step: the operation or directive and the YAML nodes of its references."""

    word: Word
    thing: TensorOp | Directive
    refs: Mapping[str, Node]
    mark: Mark
    where: Where | None = None
    raw: bool = False

    def build(self, state: State) -> None:
        """Run on the symbolic state."""
        if self.word.form is not None:
            self.word.form.build(self, state)
        else:
            self.thing.build(state)  # type: ignore[union-attr]

    def contributes(self, state: State) -> str | None:
        """The alias that this step offers as the plan's output."""
        if self.word.form is not None:
            return self.word.form.contributes(self, state)
        return self.thing.contributes(state)  # type: ignore[union-attr]


@cache
def words() -> Mapping[str, Word]:
    """Every step word, sorted; found by importing the files of `surgery_jax.ops`, and what entry points name."""
    import_all("surgery_jax.ops")
    found: dict[str, Word] = {}

    def add(word: Word) -> None:
        if word.name in found:
            raise TypeError(f"two transforms are called {word.name}")
        found[word.name] = word

    for op in _subclasses(TensorOp):
        for form in op.__dict__.get("spellings", ()):
            declared = {**form.fields, **form.own_fields(op)}
            add(Word(form.word, op, form, declared))
    for directive in _subclasses(Directive):
        add(Word(directive.word, directive, None, fields_of(directive)))
    return dict(sorted(found.items()))


def _subclasses(cls: type) -> Iterator[Any]:
    sub: Any
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def operation(word: str, **fields: Any) -> TensorOp:
    """The operation that a word of the plan language stands for, for others to build on."""
    found = find_word(word).cls
    assert issubclass(found, TensorOp)
    return found(**fields)


def find_word(name: str, where: Mark | None = None) -> Word:
    """The step word of that name.

    Raises:
        PlanError: there is none.
    """
    found = words().get(name)
    if found is None:
        near = nearest(name, words(), likeness=0.65)
        raise PlanError(
            f"unknown transform {name!r}",
            where=where,
            expected="one of the transforms of `surgery-jax ops`",
            hint=f"did you mean {listing(near)}?" if near else "one step works on all tensors that a pattern matches",
        )
    return found
