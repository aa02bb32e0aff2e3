"""Partial evaluation of expressions: what can be known now becomes a value, the rest stays an expression."""

from __future__ import annotations

import ast
import copy
import math
import re
from collections.abc import Callable, Container
from collections.abc import Mapping as AnyMapping
from functools import reduce
from typing import Any

from .expressions import parsed
from .functions import Refused

__all__ = ["partly"]


def partly(text: str, name: str, apart: Container[str], value: Callable[[str], Any]) -> str | None:
    """An expression over `name`, in which all parts that do not need it are evaluated; `name.KEY` with a key that is in
    `apart` is another thing. None if nothing needs it, or the text is no expression.

    >>> partly("config.a * (n + 1)", "config", (), lambda text: 8)
    'config.a * 8'
    """
    try:
        tree = parsed(text)
        known = _Partly(name, apart, value)
        return ast.unparse(known.visit(copy.deepcopy(tree))) if known.needs(tree) else None
    except (Refused, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


class _Partly(ast.NodeTransformer):
    """Makes a tree with values in the place of the largest parts that need neither a name nor a variable of a
    comprehension around them."""

    def __init__(self, name: str, apart: Container[str], value: Callable[[str], Any]) -> None:
        self._name, self._apart, self._value = name, apart, value
        self._bound: frozenset[str] = frozenset()  # variables of the comprehensions around

    def needs(self, node: ast.AST) -> bool:
        """Whether a part needs the name, or such a variable."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self._name:
            return node.attr not in self._apart
        if isinstance(node, ast.Name):
            return node.id == self._name or node.id in self._bound
        return any(map(self.needs, ast.iter_child_nodes(node)))

    def visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, ast.expr) or isinstance(node, ast.Slice) or self.needs(node):
            found: ast.AST = super().visit(node)
            return found
        return _literal(self._value(ast.unparse(node)))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A call, whose function is no value."""
        node.args = [self._expression(item) for item in node.args]
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """A text as a sum, since what stands inside it could not be written with any text in it."""
        parts: list[ast.expr] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                if part.format_spec is not None or part.conversion != -1:
                    return node  # which no expression may have
                parts.append(ast.Call(ast.Name("str", ast.Load()), [self._expression(part.value)], []))
            else:
                parts.append(self._expression(part))
        return reduce(_sum, parts)

    def visit_ListComp(self, node: ast.ListComp | ast.GeneratorExp | ast.DictComp) -> ast.AST:
        """A comprehension, each of whose loops goes over what those before it know."""
        kept = self._bound
        try:
            for loop in node.generators:
                loop.iter = self._expression(loop.iter)
                if isinstance(loop.target, ast.Name):
                    self._bound |= {loop.target.id}
                loop.ifs = [self._expression(test) for test in loop.ifs]
            if isinstance(node, ast.DictComp):
                node.key, node.value = self._expression(node.key), self._expression(node.value)
            else:
                node.elt = self._expression(node.elt)
            return node
        finally:
            self._bound = kept

    visit_GeneratorExp = visit_DictComp = visit_ListComp

    def _expression(self, node: ast.expr) -> ast.expr:
        found = self.visit(node)
        assert isinstance(found, ast.expr)
        return found


def _literal(value: Any) -> ast.expr:
    """The expression that gives a value of a plan, however it is put into another one."""
    if isinstance(value, list):
        return ast.List([_literal(item) for item in value], ast.Load())
    if isinstance(value, AnyMapping):
        return ast.Dict([_literal(key) for key in value], [_literal(item) for item in value.values()])
    if isinstance(value, str):  # without the sign of a reference in it
        parts: list[ast.expr] = [ast.Constant(part) for part in re.split(r"(?<=\$)(?=\{)", value)]
        return reduce(_sum, parts)
    is_negative = isinstance(value, int | float) and (value < 0 or (value == 0 and math.copysign(1, value) < 0))
    return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if is_negative else ast.Constant(value)


def _sum(left: ast.expr, right: ast.expr) -> ast.expr:
    return ast.BinOp(left, ast.Add(), right)
