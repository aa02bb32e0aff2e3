"""`compute`, `compute_`: a formula of tensors."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..core.dtypes import BY_NAME
from ..core.errors import PlanError
from ..core.specs import Spec
from ..kit import base
from ..kit.base import Directive, Field, TensorOp, node, number, reference
from ..kit.kernel import Array, Bound, Kernel
from ..kit.rules import check_floats, check_same
from ..kit.state import State, Value
from ..language import document
from ..language.document import Node, Scalar
from ..numerics.magnitude import HUGE
from .add import Add
from .cast import Cast
from .multiply import Multiply
from .subtract import Subtract

MAX_LENGTH = 4096  # characters of a formula
MAX_DEPTH = 100  # of operations within operations
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Everywhere(TensorOp):
    """One number at every place of a tensor, rounded to float32 (float64 for float64)."""

    value: float = number("the number", traced=True)

    def infer(self, like: Spec) -> tuple[Spec, ...]:
        check_floats(like)
        return (like,)

    def apply(self, k: Kernel, like: Array) -> Array:
        return k.narrow(k.xp.broadcast_to(k.number(self.value, k.widen(like)), like.shape), like)

    def smallest(self, like: Bound) -> Bound:
        return like.of(self.value)


def _ratio(k: Kernel, a: Array, b: Array, like: Array) -> Array:
    """a / b. The quotient of float64 rounded to float32 is that of float32, whatever a device takes for division."""
    return k.narrow(k.div(a.astype("float64"), b.astype("float64")), like)


@dataclass(frozen=True)
class Divide(TensorOp):
    """Divide elementwise, rounded once.

    a, b: float, equal shapes and dtypes -> the same.
    """

    def infer(self, a: Spec, b: Spec) -> tuple[Spec, ...]:
        check_same(a, b)
        check_floats(a)
        return (a,)

    def apply(self, k: Kernel, a: Array, b: Array) -> Array:
        return _ratio(k, k.widen(a), k.widen(b), a)


@dataclass(frozen=True)
class Quotient(TensorOp):
    """Divide every element by a number, rounded once."""

    by: float = number("the divisor, not 0", traced=True)

    def infer(self, source: Spec) -> tuple[Spec, ...]:
        check_floats(source)
        return (source,)

    def apply(self, k: Kernel, source: Array) -> Array:
        wide = k.widen(source)
        return _ratio(k, wide, k.number(self.by, wide), source)

    def smallest(self, source: Bound) -> Bound:
        return Bound(source.least - math.frexp(float(self.by))[1], -HUGE)


Formula = ast.expr


def _parse_formula(value: Node) -> Formula:
    """A formula as a tree of sums, differences, products, quotients, names and numbers."""
    words = value.text if isinstance(value, Scalar) and value.text is not None else getattr(value, "value", None)
    if not isinstance(words, str) or not words.strip():
        raise base.wrong(value, "a formula, such as 'base + 0.5 * (a - base)'")
    try:
        if len(words) > MAX_LENGTH:
            raise PlanError("the formula is too long", expected=f"at most {MAX_LENGTH} characters")
        tree = ast.parse(words.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or type(error).__name__
        raise PlanError(
            f"not a formula: {reason}", where=value.mark, expected="names, numbers, + - * / and brackets", found=words
        ) from None
    _check_formula(tree, words, value, 0)
    return tree


def _check_formula(tree: ast.expr, words: str, value: Node, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise PlanError("the formula is too deep", where=value.mark, expected=f"at most {MAX_DEPTH} levels")
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
        _check_formula(tree.left, words, value, depth + 1)
        _check_formula(tree.right, words, value, depth + 1)
    elif isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub | ast.UAdd):
        _check_formula(tree.operand, words, value, depth + 1)
    elif not isinstance(tree, ast.Name) and not (isinstance(tree, ast.Constant) and type(tree.value) in (int, float)):
        part = ast.get_source_segment(words.strip(), tree) or words
        raise PlanError(
            f"not a formula: {part!r}", where=value.mark, expected="names, numbers, + - * / and brackets", found=words
        )


def names_of(tree: Formula) -> list[str]:
    """The names of a formula, in order of appearance."""
    return list(dict.fromkeys(part.id for part in ast.walk(tree) if isinstance(part, ast.Name)))


def evaluated(state: State, tree: Formula, nodes: Mapping[str, Value]) -> Value:
    """The version that a formula comes to, of versions of one shape and dtype by their names."""
    specs = {name: state.versions.spec(found) for name, found in nodes.items()}
    first = next(iter(specs.values()))
    for name, spec in specs.items():
        try:
            check_same(first, spec)
            check_floats(spec)
        except PlanError as error:
            error.problem = f"{state.word}: {name}: {error.problem}"
            raise
    is_narrow = first.dtype.bits < 32
    wide = {n: state.versions.compute(Cast(BY_NAME["float32"]), x) if is_narrow else x for n, x in nodes.items()}
    made = _value(state, tree, wide)
    if isinstance(made, float):
        made = state.versions.compute(Everywhere(made), next(iter(wide.values())))
    return state.versions.compute(Cast(first.dtype), made) if is_narrow else made


def _value(state: State, tree: Formula, nodes: Mapping[str, Value]) -> Value | float:
    """A version, or a float of what has no tensor in it."""
    if isinstance(tree, ast.Name):
        return nodes[tree.id]
    if isinstance(tree, ast.Constant):
        return _finite(lambda: float(tree.value))  # type: ignore[arg-type]
    if isinstance(tree, ast.UnaryOp):
        inner = _value(state, tree.operand, nodes)
        if isinstance(tree.op, ast.UAdd):
            return inner
        return -inner if isinstance(inner, float) else _combined(state, ast.Mult(), inner, -1.0)
    assert isinstance(tree, ast.BinOp)
    left, right = _value(state, tree.left, nodes), _value(state, tree.right, nodes)
    if isinstance(left, float) and isinstance(right, float):
        return _finite(lambda: _OPERATORS[type(tree.op)](left, right))
    return _combined(state, tree.op, left, right)


def _finite(compute: Callable[[], float]) -> float:
    try:
        found = compute()
    except (ZeroDivisionError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise PlanError("a number of the formula is not finite", hint="look for a division by zero")
    return found


def _combined(state: State, op: ast.operator, left: Value | float, right: Value | float) -> Value:
    """One operation, of which at least one side is a version."""
    if isinstance(op, ast.Div) and isinstance(right, float):
        if right == 0:
            raise PlanError(f"{state.word}: the formula divides by zero")
        return state.versions.compute(Quotient(right), _version(left))
    left, right = (
        state.versions.compute(Everywhere(side), _version(other)) if isinstance(side, float) else side
        for side, other in ((left, right), (right, left))
    )
    ops = {ast.Add: Add(), ast.Sub: Subtract(), ast.Mult: Multiply(), ast.Div: Divide()}
    return state.versions.compute(ops[type(op)], left, right)


def _version(side: Value | float) -> Value:
    """The side that is a version."""
    assert not isinstance(side, float)
    return side


def _references(given: Node, key: str) -> Mapping[str, Node]:
    if not isinstance(given, document.Mapping) or not all(name.isidentifier() for name in given.entries):
        raise PlanError(
            f"{key} takes names and the references that they stand for",
            where=given.mark,
            expected="for example { base: 'base::(.+)', a: 'a::\\1' }",
        )
    return given.entries


def _check_names(state: State, tree: Formula, known: list[str]) -> None:
    used = names_of(tree)
    unknown = [name for name in used if name not in known]
    unused = [name for name in known if name not in used]
    if unknown or unused:
        what = f"does not say what {unknown[0]} is" if unknown else f"has no {unused[0]}, which the step names"
        raise PlanError(f"{state.word}: the formula {what}", expected=f"the names {', '.join(known)}")


_FORMULA = Field("formula", "numbers, names, + - * / and brackets", _parse_formula)


@dataclass(frozen=True)
class Compute(Directive):
    """Make new tensors by a formula, such as `base + 0.5 * (a - base)`, as it is written: every operation is rounded by
    itself.

    from: float, equal shapes and dtypes -> the same. Floats narrower than 32 bits are widened to float32, in which
    every operation is rounded, and the result is rounded to their dtype once; float64 stays float64. Numbers are
    rounded to float32, or float64, where they meet a tensor; what has no tensor in it is computed in float64 before.
    """

    word = "compute"
    selects = True
    computes = True
    examples = (
        "compute: { from: { base: 'base::(.+)', a: 'a::\\1' }, to: 'merged::\\1', value: base + 0.5 * (a - base) }",
    )

    source: Node = node("names of the formula: the first is a pattern, the others are templates", key="from")
    to: Node = reference("names of the results, must be new")
    value: Formula = base.declare(_FORMULA)

    def build(self, state: State) -> None:
        given = _references(self.source, "from")
        if not given:
            raise PlanError("compute.from names no tensor", where=self.source.mark)
        _check_names(state, self.value, list(given))
        refs = [state.names.reference(node, key="from") for node in given.values()]
        dest = state.names.reference(self.to, key="to", slices=False)
        rows = state.names.pairs(refs[0], *refs[1:], dest)
        state.names.expect_new(dest.alias, [row[-1] for row in rows])
        for ref, found in zip(refs[1:], list(zip(*rows, strict=True))[1:-1], strict=True):
            state.names.expect_present(ref.alias, found, kind="from")
        for *names, new in rows:
            nodes = [state.versions.read(ref, name) for ref, name in zip(refs, names, strict=True)]
            state.versions.create(dest.alias, new, evaluated(state, self.value, dict(zip(given, nodes, strict=True))))
            state.speech.tell(f"compute: {', '.join(names)} -> {new}")

    def contributes(self, state: State) -> str | None:
        return state.names.reference(self.to, key="to", slices=False).alias


@dataclass(frozen=True)
class ComputeInPlace(Directive):
    """Change tensors by a formula in which `target` is what they are before: as `compute`.

    A formula of other tensors, without `target`, replaces them.

    target: float -> the same; with a slice only that part of it changes.
    """

    word = "compute_"
    selects = True
    computes = True
    examples = ("compute_: { target: '(.+)', with: { base: 'base::\\1' }, value: base + 0.5 * (target - base) }",)

    target: Node = reference("tensors to change, may be sliced")
    value: Formula = base.declare(_FORMULA)
    others: Node | None = node("other names of the formula, and their templates", None, key="with")

    def build(self, state: State) -> None:
        given = {} if self.others is None else dict(_references(self.others, "with"))
        if self.others is not None and "target" in given:
            raise PlanError("compute_: `target` is what is changed", where=self.others.mark, hint="use another name")
        is_replaced = bool(given) and "target" not in names_of(self.value)
        _check_names(state, self.value, [*given] if is_replaced else ["target", *given])
        target = state.names.reference(self.target, key="target")
        refs = [state.names.reference(node, key="with") for node in given.values()]
        state.names.select(target)
        for name, *names in state.names.rows(target, *refs):
            for ref, other in zip(refs, names, strict=True):
                state.names.expect_present(ref.alias, [other], kind="with")
            before = state.versions.slot(target.alias, name, reads=1).node
            nodes = {"target": state.versions.view(before, target)}
            for word, ref, other in zip(given, refs, names, strict=True):
                nodes[word] = state.versions.read(ref, other)
            made = evaluated(state, self.value, nodes)
            state.versions.rebind(target.alias, name, state.versions.store(before, target, made))
            state.speech.tell(f"compute_: {name}")

    def contributes(self, state: State) -> str | None:
        return state.names.reference(self.target, key="target").alias
