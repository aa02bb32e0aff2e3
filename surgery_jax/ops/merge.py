"""`merge`: tensors of several models become one, by one of many methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.dtypes import BY_NAME, DType
from ..core.errors import PlanError, listing, nearest
from ..core.specs import Spec
from ..kit.base import Directive, Field, dtype_name, parse_fields, reference, text
from ..kit.base import node as any_node
from ..kit.masks import EqualMask
from ..kit.predicates import Pending
from ..kit.state import State, Value
from ..language import document
from ..language.document import Node, Scalar
from ..language.names import Reference
from ..merging.method import Method, find_method, parameters
from ..merging.numbers import NumberMask
from .cast import Cast

FROM = reference("tensors of the model, may be sliced; those with equal captures go together", None, key="from")


@dataclass(frozen=True)
class Side:
    """The base or a model: what it is called in messages, its reference, and whether that was made of another one."""

    label: str
    ref: Reference
    is_same: bool = False


@dataclass(frozen=True)
class Merge(Directive):
    """Merge tensors of several models, each with its counterparts.

    The names of the base lead, or without one those of the first model. The counterparts in another model have the
    same names, or, with `from`, names whose groups or variables stand for the same. Tensors of one name have one shape;
    those of several dtypes are promoted, unless `dtype` says what to compute in. What is no float must be the same in
    all models and is taken from the first. NaN in a model, or in what it has that the base has not, is an error.
    Parameters are those of the method; what a model does not say is what the step says.
    """

    word = "merge"
    computes = True
    selects = True
    examples = (
        "merge: { method: ties, base: 'base::(.+)', models: { a: { density: 0.3 }, b: {} }, weight: 0.5, to: "
        "'out::\\1' }",
        "merge: { method: linear, models: { a: { from: 'a::(.+)' }, b: {} }, weight: 0.5, to: 'out::\\1' }",
        "merge: { method: slerp, base: 'base::(.+)', models: { a: {} }, t: 0.4, to: 'out::\\1', out_dtype: bfloat16 }",
    )

    method: str = text("how; `surgery-jax ops` with its name tells its parameters, which are keys of the step")
    models: Node = any_node(
        "alias to the model's parameters, with `from` where its names differ; or a list of such, in which an alias may "
        "come again",
        kind="mapping or list",
    )
    to: Node = reference("template of the names of the results, must be new")
    base: Node | None = reference("tensors that the others are seen from, may be sliced", None)
    dtype: DType | None = dtype_name("the tensors are rounded to it before they are merged", None)
    out_dtype: DType | None = dtype_name("dtype of the results", None)
    given: Mapping[str, object] | None = None  # values of the method's parameters, by attribute

    def __post_init__(self) -> None:
        for key, dtype in (("dtype", self.dtype), ("out_dtype", self.out_dtype)):
            if dtype is not None and not dtype.is_float:
                raise PlanError(f"{key} is not a floating-point dtype", found=str(dtype))

    @classmethod
    def further(cls, payload: Node) -> Mapping[str, tuple[str, Field]]:
        given = payload.entries.get("method") if isinstance(payload, document.Mapping) else None
        if not isinstance(given, Scalar) or not isinstance(given.value, str):
            return {}
        return parameters(find_method(given.value, given.mark))

    def with_further(self, values: Mapping[str, object]) -> Directive:
        return replace(self, given=values)

    def contributes(self, state: State) -> str | None:
        return state.names.reference(self.to, key="to").alias

    # -- what is merged ------------------------------------------------------------------------------------------

    def build(self, state: State) -> None:
        kind = find_method(self.method, state.mark)
        rows = list(self._models())
        labels = [label for label, _ in rows]
        self._check_count(kind, labels, state)
        declared = {"from": ("from_", FROM.metadata["field"]), **parameters(kind, of_model=True)}
        own = [parse_fields(f"merge.models.{label}", payload, declared) for label, payload in rows]
        try:
            method = kind.of(self.given or {}, own, labels)
        except PlanError as error:
            error.problem = f"merge: {error.problem}"
            raise error.located(state.mark) from None
        sides = self._sides(state, kind, list(zip(labels, [values.get("from_") for values in own], strict=True)))
        lead, names = sides[0].ref, self._counterparts(state, sides)
        dest = state.names.reference(self.to, key="to", slices=False)
        pairs = state.names.pairs(lead, dest)
        state.names.expect_new(dest.alias, [new for _, new in pairs])
        for (_, new), found in zip(pairs, names, strict=True):
            state.versions.create(dest.alias, new, self._merged(state, method, sides, found, new))
            state.speech.tell(f"merge: {', '.join(found)} -> {new}")

    def _models(self) -> Iterator[tuple[str, Node]]:
        """Alias and parameters of every model."""
        given = self.models
        items = given.items if isinstance(given, document.Sequence) else (given,)
        for item in items:
            if isinstance(item, Scalar) and isinstance(item.value, str) and item is not given:
                yield item.value, Scalar(None, item.mark)
            elif isinstance(item, document.Mapping) and item.entries:
                yield from item.entries.items()
            else:
                raise PlanError(
                    "merge.models: not models",
                    where=item.mark,
                    expected="{ alias: { parameters }, … }, or a list of such and of aliases",
                )

    def _check_count(self, kind: type[Method], labels: Sequence[str], state: State) -> None:
        """Raise a PlanError unless there are as many models, and the base, as the method takes."""
        beside = "" if kind.base == "none" else " beside the base"
        if len(labels) < kind.fewest or (kind.most is not None and len(labels) > kind.most):
            most = "" if kind.most == kind.fewest else " or more" if kind.most is None else f" to {kind.most}"
            raise PlanError(
                f"merge: {kind.name} takes {kind.fewest}{most} model{'s' * (kind.most != 1)}{beside}",
                where=self.models.mark,
                found=f"{len(labels)}: {listing(labels)}",
            )
        if kind.base == "needed" and self.base is None:
            raise PlanError(
                f"merge: {kind.name} needs a base",
                where=state.mark,
                expected="base: 'alias::(.+)', the tensors that the models are seen from",
            )
        if kind.base == "none" and self.base is not None:
            raise PlanError(
                f"merge: {kind.name} takes no base", where=self.base.mark, hint="name it among the models to merge it"
            )

    def _sides(self, state: State, kind: type[Method], given: Sequence[tuple[str, Node | None]]) -> list[Side]:
        """The base, if there is one, and the models."""
        base = None if self.base is None else state.names.reference(self.base, key="base")
        sides = [] if base is None else [Side("the base", base)]
        for label, source in given:
            if label not in state.names.aliases():
                near = nearest(label, state.names.aliases(), 1)
                raise PlanError(
                    f"merge.models: unknown model alias: {label!r}",
                    where=self.models.mark,
                    expected="one of " + ", ".join(state.names.aliases()),
                    hint=f"did you mean {near[0]}?" if near else "add it to the inputs, or load it first",
                )
            if source is not None:
                ref = state.names.reference(source, key="from", default=label)
                if ref.alias != label:
                    raise PlanError(f"merge.models.{label}: from is of {ref.alias}", where=source.mark)
                sides.append(Side(label, ref))
            elif sides:
                sides.append(Side(label, replace(sides[0].ref, alias=label), is_same=True))
            else:
                raise PlanError(
                    f"merge: nothing says which tensors of {label} are merged",
                    where=self.models.mark,
                    expected=f"base: 'alias::(.+)', or from: '{label}::(.+)' with the first model",
                )
        return sides

    def _counterparts(self, state: State, sides: Sequence[Side]) -> list[list[str]]:
        """For every name that leads, the names of all sides."""
        lead = state.names.captured(sides[0].ref)
        columns = [[name for name, _ in lead]]
        for side in sides[1:]:
            keys = [(name if side.is_same else captures) for name, captures in lead]
            there: dict[object, str] = {}
            for name, captures in state.names.captured(side.ref):
                key = name if side.is_same else captures
                if there.setdefault(key, name) != name:
                    raise PlanError(
                        f"merge: {there[key]} and {name} of {side.label} have the same captures",
                        where=side.ref.mark,
                        hint="put what tells them apart in groups",
                    )
            self._check_same(state, side, sides[0], dict(zip(keys, columns[0], strict=True)), there)
            columns.append([there[key] for key in keys])
        return [list(row) for row in zip(*columns, strict=True)]

    def _check_same(
        self, state: State, side: Side, lead: Side, wanted: Mapping[object, str], there: Mapping[object, str]
    ) -> None:
        """Raise a PlanError unless a side has a tensor for every name that leads, and no other."""
        missing = [name for key, name in wanted.items() if key not in there]
        if missing and side.is_same:
            state.names.expect_present(side.label, missing, kind=f"model {side.label}")
        if missing:
            raise PlanError(
                f"merge: {side.label} has no counterpart of {listing(missing, 4)}",
                where=side.ref.mark,
                expected=f"a tensor for each of the {len(wanted)} that {lead.ref.text} matches",
                found=f"{len(there)} that {side.ref.text} matches",
            )
        more = [name for key, name in there.items() if key not in wanted]
        if more:
            raise PlanError(
                f"merge: {lead.label} has no counterpart of {listing(more, 4)} of {side.label}",
                where=side.ref.mark,
                found=f"{len(there)} tensors of {side.label}, {len(wanted)} of {lead.label}",
                hint="let the pattern match only what is merged, and copy the rest",
            )

    # -- what becomes of it --------------------------------------------------------------------------------------

    def _merged(self, state: State, method: Method, sides: Sequence[Side], names: Sequence[str], new: str) -> Value:
        """The result for one name."""
        found = [state.versions.read(side.ref, name, reads=1) for side, name in zip(sides, names, strict=True)]
        specs = [state.versions.spec(value) for value in found]
        for side, name, spec in zip(sides[1:], names[1:], specs[1:], strict=True):
            if spec.shape != specs[0].shape:
                raise PlanError(
                    f"merge: {name} of {side.label} has another shape than {names[0]} of {sides[0].label}",
                    where=state.mark,
                    expected=str(specs[0]),
                    found=str(spec),
                    hint=_fitting(side, name, specs[0], spec),
                )
        if not all(spec.dtype.is_float for spec in specs):
            return self._equal(state, sides, names, found)
        if method.copies():
            return self._cast(state, self._cast(state, found[0], self.dtype), self.out_dtype)
        dtype = self.dtype or _promoted([spec.dtype for spec in specs])
        values = [self._cast(state, value, dtype) for value in found]
        if not specs[0].size:
            return self._cast(state, values[0], self.out_dtype)
        self._check_numbers(state, sides, names, values)
        base, models = (None, values) if self.base is None else (values[0], values[1:])
        made = method.merge(state.versions, _keys(sides[-len(models) :], new), base, models)
        return self._cast(state, made, self.out_dtype)

    def _cast(self, state: State, value: Value, dtype: DType | None) -> Value:
        return value if dtype is None else state.versions.compute(Cast(dtype), value)

    def _equal(self, state: State, sides: Sequence[Side], names: Sequence[str], found: Sequence[Value]) -> Value:
        """The first of some tensors that are no floats, of which all must be the same."""
        specs = [state.versions.spec(value) for value in found]
        for side, name, value, spec in zip(sides[1:], names[1:], found[1:], specs[1:], strict=True):
            said = f"merge: {name} of {side.label} is that of {sides[0].label}, as what is no float must be"
            if spec != specs[0]:
                raise PlanError(f"{said}", where=state.mark, expected=str(specs[0]), found=str(spec))
            state.checks.assert_(Pending(state.checks.check(EqualMask(), (found[0], value), said)), said)
        return found[0]

    def _check_numbers(
        self, state: State, sides: Sequence[Side], names: Sequence[str], values: Sequence[Value]
    ) -> None:
        """Demand that no element of a model is NaN, nor of its difference to the base."""
        based = values[:1] if self.base is not None else ()
        for side, name, value in list(zip(sides, names, values, strict=True))[len(based) :]:
            what = f"{name} of {side.label}"
            label = f"merge: no NaN in {what}" + (f" less {names[0]} of the base" if based else "")
            state.checks.assert_(Pending(state.checks.check(NumberMask(), (value, *based), label)), label)


def _keys(models: Sequence[Side], new: str) -> list[str]:
    """What the random numbers for each model depend on: the name of the result, the model, and how often it came."""
    seen: Counter[str] = Counter()
    found = []
    for side in models:
        seen[side.label] += 1
        found.append("\0".join((new, side.label, str(seen[side.label]))))
    return found


def _promoted(dtypes: Sequence[DType]) -> DType:
    """The narrowest dtype that holds all numbers of some float dtypes."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return BY_NAME["float64" if any(dtype.bits == 64 for dtype in dtypes) else "float32"]


def _fitting(side: Side, name: str, wanted: Spec, found: Spec) -> str | None:
    """How tensors of two shapes can be merged all the same."""
    if len(wanted.shape) != len(found.shape):
        return "reshape one of them first"
    if all(a <= b for a, b in zip(wanted.shape, found.shape, strict=True)):
        cut = ", ".join(f":{length}" for length in wanted.shape)
        return f"if the rest is not wanted, from: '{side.ref.alias}::{name}::[{cut}]' in a step of its own cuts it off"
    return "bring them to one shape first, with resize, pad or a slice, in the order of one tokenizer's tokens"
