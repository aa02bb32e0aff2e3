"""Expressions in plans: Python's syntax for values, and nothing that acts.

Numbers, strings, lists, mappings, comparisons, conditionals, comprehensions, and calls of the functions in
`FUNCTIONS`. A dot takes an entry of a mapping (`config.hidden_size`), never an attribute of an object. What an
expression may make is bounded in size and in work, since plans come from strangers.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

from ..core.errors import PlanError, listing, nearest
from ..core.regexes import without_warnings
from .functions import FUNCTIONS, MAX_ITEMS, Refused

__all__ = ["ExpressionBudget", "Named", "evaluate", "is_expression", "parsed"]

MAX_LENGTH = 4096  # characters of an expression
MAX_STEPS = 300_000  # parts that are evaluated, counted again at every turn of a comprehension
MAX_MADE = 2_000_000  # items and characters that are made, compared or gone through on the way
MAX_BITS = 4096  # of an integer
MAX_DEPTH = 60

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_COMPARED: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip


class Named(dict[str, Any]):
    """A mapping that messages name: `origin` is what it was read from."""

    def __init__(self, entries: Mapping[str, Any], origin: str) -> None:
        super().__init__(entries)
        self.origin = origin


@dataclass
class ExpressionBudget:
    """What several expressions together may still do: a loop evaluates the same one many times."""

    steps: int = MAX_STEPS
    made: int = MAX_MADE


def is_expression(text: str) -> bool:
    """Whether a text has the form of an expression."""
    try:
        parsed(text)
    except (Refused, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def evaluate(text: str, scope: Mapping[str, Any], work: ExpressionBudget | None = None) -> Any:
    """The value of an expression; names are looked up in `scope`. `work` is what it and others together may do.

    >>> evaluate("[n * 2 for n in range(experts) if n != 1]", {"experts": 3})
    [0, 4]

    Raises:
        PlanError: no expression, an unknown name, or one that does or makes what is not allowed.
    """
    work = work or ExpressionBudget()
    evaluator = _Evaluator(scope, work)
    try:
        return evaluator.value(parsed(text), 0)
    except Refused as refused:
        raise PlanError(f"in the expression {_shown(text)}: {refused}") from None
    except SyntaxError as error:
        raise PlanError(
            f"not an expression: {_shown(text)}", found=error.msg, hint=r"a literal ${ is written \${"
        ) from None
    except RecursionError:
        raise PlanError(f"in the expression {_shown(text)}: nested too deep") from None
    except (ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
        raise PlanError(f"in the expression {_shown(text)}: {_reason(error)}") from None
    finally:
        work.steps, work.made = work.steps - evaluator.steps, work.made - evaluator.made


@lru_cache(maxsize=1024)
def parsed(text: str) -> ast.expr:
    """The syntax tree of an expression, which others may have too: it is not to be changed.

    Raises:
        Refused: it is too long.
        SyntaxError, ValueError, RecursionError, MemoryError: it is no expression.
    """
    if len(text) > MAX_LENGTH:
        raise Refused(f"longer than {MAX_LENGTH} characters")
    with without_warnings():  # about backslashes in texts
        return ast.parse(" ".join(text.strip().splitlines()), mode="eval").body


def _weight(value: Any) -> int:
    """How much a value is, with all that is in it; of what is too much some number above MAX_ITEMS."""
    if isinstance(value, str):
        return 1 + len(value)
    if isinstance(value, int):
        return 1 + value.bit_length() // 32
    total = 1
    if isinstance(value, list | dict):
        for item in value.items() if isinstance(value, dict) else value:
            total += _weight(item[0]) + _weight(item[1]) if isinstance(item, tuple) else _weight(item)
            if total > MAX_ITEMS:
                break
    return total


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r}"
    return str(error) or type(error).__name__


class _Evaluator:
    """Evaluates one expression, counting the steps it takes and the items it makes or goes through."""

    def __init__(self, scope: Mapping[str, Any], work: ExpressionBudget) -> None:
        self._scope = scope
        self._local: dict[str, Any] = {}
        self._most = ExpressionBudget(min(work.steps, MAX_STEPS), min(work.made, MAX_MADE))
        self.steps = self.made = 0

    def value(self, node: ast.expr, depth: int) -> Any:
        """The value of a part of the expression."""
        self.steps += 1
        if self.steps > self._most.steps:
            raise Refused("too many steps, here or in all expressions together")
        if depth > MAX_DEPTH:
            raise Refused(f"nested more than {MAX_DEPTH} levels deep")
        known = getattr(self, f"_{type(node).__name__.lower()}", None)
        if known is None:
            raise Refused(f"{type(node).__name__} is not allowed")
        found = self._bounded(known(node, depth + 1))
        if isinstance(found, str | list | dict) and not isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            if self._pay(found) > MAX_ITEMS:
                raise Refused(f"more than {MAX_ITEMS} items")
        return found

    def _pay(self, *values: Any) -> int:
        """Count values that are made or gone through as a whole; gives how much they are."""
        before = self.made
        for value in values:
            if isinstance(value, str | list | dict):
                self.made += _weight(value)
        if self.made > self._most.made:
            raise Refused("too many items in all")
        return self.made - before

    def _bounded(self, value: Any) -> Any:
        if not isinstance(value, bool | int | float | str | list | Mapping | None):
            raise Refused(f"a {type(value).__name__} is no value of a plan")
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise Refused(f"an integer of more than {MAX_BITS} bits")
        if isinstance(value, str | list | dict) and len(value) > MAX_ITEMS:
            raise Refused(f"more than {MAX_ITEMS} items")
        return value

    def _constant(self, node: ast.Constant, depth: int) -> Any:
        if not isinstance(node.value, bool | int | float | str | None):
            raise Refused(f"{type(node.value).__name__} is not allowed")
        return node.value

    def _name(self, node: ast.Name, depth: int) -> Any:
        for table in (self._local, self._scope):
            if node.id in table:
                return table[node.id]
        words = {"true": True, "false": False, "null": None}
        if node.id in words:
            return words[node.id]
        self._unknown(node.id, dict.fromkeys([*self._scope, *self._local]), "name")

    def _unknown(self, word: str, known: Mapping[str, Any], what: str) -> NoReturn:
        near = nearest(word, map(str, known), 1)
        also = f"; did you mean {near[0]}?" if near else f"; there are {listing(map(str, known), 12)}"
        of = f" of {known.origin}" if isinstance(known, Named) else ""
        raise Refused(f"unknown {what} {word!r}{of}{also}")

    def _list(self, node: ast.List | ast.Tuple, depth: int) -> list[Any]:
        return [self.value(item, depth) for item in node.elts]

    _tuple = _list

    def _dict(self, node: ast.Dict, depth: int) -> dict[str, Any]:
        if any(key is None for key in node.keys):
            raise Refused("** is not allowed")
        keys = [self.value(key, depth) for key in node.keys if key is not None]
        return dict(zip(map(str, keys), (self.value(item, depth) for item in node.values), strict=True))

    def _unaryop(self, node: ast.UnaryOp, depth: int) -> Any:
        if type(node.op) not in _UNARY:
            raise Refused("~ is not allowed")
        return _UNARY[type(node.op)](self.value(node.operand, depth))

    def _binop(self, node: ast.BinOp, depth: int) -> Any:
        if type(node.op) not in _BINARY:
            raise Refused(f"the operator {type(node.op).__name__} is not allowed")
        left, right = self.value(node.left, depth), self.value(node.right, depth)
        self._check_size(node.op, left, right)
        self._pay(left, right)
        return _BINARY[type(node.op)](left, right)

    def _check_size(self, op: ast.operator, left: Any, right: Any) -> None:
        """Refuse what would be large before it is made."""
        if isinstance(op, ast.Mod) and isinstance(left, str):
            raise Refused("% formats no text: put ${...} into it")
        if isinstance(op, ast.Mult):
            for many, count in ((left, right), (right, left)):
                if isinstance(many, str | list) and isinstance(count, int) and len(many) * count > MAX_ITEMS:
                    raise Refused(f"more than {MAX_ITEMS} items")
        if isinstance(op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
            if right > 0 and left.bit_length() * right > MAX_BITS:
                raise Refused(f"an integer of more than {MAX_BITS} bits")

    def _boolop(self, node: ast.BoolOp, depth: int) -> Any:
        found: Any = None
        for item in node.values:
            found = self.value(item, depth)
            if bool(found) != isinstance(node.op, ast.And):
                break
        return found

    def _compare(self, node: ast.Compare, depth: int) -> bool:
        left = self.value(node.left, depth)
        for op, item in zip(node.ops, node.comparators, strict=True):
            right = self.value(item, depth)
            self._pay(left, right)
            if not _COMPARED[type(op)](left, right):
                return False
            left = right
        return True

    def _ifexp(self, node: ast.IfExp, depth: int) -> Any:
        return self.value(node.body if self.value(node.test, depth) else node.orelse, depth)

    def _attribute(self, node: ast.Attribute, depth: int) -> Any:
        return self._entry(self.value(node.value, depth), node.attr)

    def _subscript(self, node: ast.Subscript, depth: int) -> Any:
        value = self.value(node.value, depth)
        if isinstance(node.slice, ast.Slice):
            given = (node.slice.lower, node.slice.upper, node.slice.step)
            bounds = [None if part is None else self.value(part, depth) for part in given]
            if not isinstance(value, str | list):
                raise Refused("only lists and texts can be sliced")
            self._pay(value)
            return value[slice(*bounds)]
        return self._entry(value, self.value(node.slice, depth))

    def _entry(self, value: Any, key: Any) -> Any:
        if isinstance(value, Mapping):
            if key not in value:
                self._unknown(str(key), value, "key")
            return value[key]
        if isinstance(value, str | list) and isinstance(key, int):
            if not -len(value) <= key < len(value):
                raise Refused(f"there is no place {key} among {len(value)}")
            return value[key]
        raise Refused(f"a {type(value).__name__} has no {key!r}")

    def _listcomp(self, node: ast.ListComp | ast.GeneratorExp, depth: int) -> list[Any]:
        found: list[Any] = []
        self._turns(node.elt, node.generators, found, depth)
        return found

    _generatorexp = _listcomp

    def _dictcomp(self, node: ast.DictComp, depth: int) -> dict[str, Any]:
        found: list[Any] = []
        self._turns(ast.Tuple([node.key, node.value], ast.Load()), node.generators, found, depth)
        return {str(key): value for key, value in found}

    def _turns(self, item: ast.expr, loops: list[ast.comprehension], found: list[Any], depth: int) -> None:
        if not loops:
            found.append(self.value(item, depth))
            self._bounded(found)
            return
        first, *rest = loops
        if not isinstance(first.target, ast.Name) or first.is_async:
            raise Refused("a comprehension goes over one name at a time")
        items = self._iterable(self.value(first.iter, depth))
        kept, self._local = self._local, dict(self._local)
        for value in items:
            self._local[first.target.id] = value
            if all(self.value(test, depth) for test in first.ifs):
                self._turns(item, rest, found, depth + 1)
        self._local = kept

    def _iterable(self, value: Any) -> list[Any]:
        if isinstance(value, Mapping | list | str):
            self._pay(value)
            return list(value)
        raise Refused(f"a {type(value).__name__} has no items to go over")

    def _call(self, node: ast.Call, depth: int) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            shown = ast.unparse(node.func)
            raise Refused(f"{shown!r} is no function; there are {', '.join(sorted(FUNCTIONS))}")
        if node.keywords:
            raise Refused("functions take no named arguments")
        given = [self.value(item, depth) for item in node.args]
        self._pay(*given)
        return FUNCTIONS[node.func.id](*given)

    def _joinedstr(self, node: ast.JoinedStr, depth: int) -> str:
        return "".join(str(self.value(part, depth)) for part in node.values)

    def _formattedvalue(self, node: ast.FormattedValue, depth: int) -> str:
        if node.format_spec is not None or node.conversion != -1:
            raise Refused("texts take values without a format")
        value = self.value(node.value, depth)
        self._pay(value)
        return str(value)
