"""Evaluate the arithmetic of ``eval(...)`` in recipes, without Python's own eval."""

import ast
import operator
from collections.abc import Callable
from typing import Any

_MAX_EXPONENT = 1000


class UnknownNameError(NameError):
    """An expression's name that stands for nothing; it is the attribute ``name``."""


def _power(base: float, exponent: float) -> Any:
    if abs(exponent) > _MAX_EXPONENT:
        raise ValueError(f"holds an exponent above {_MAX_EXPONENT}")
    return base**exponent


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS = {one.__name__: one for one in (abs, float, int, max, min, round)}


def evaluate(expression: str, lookup: Callable[[str], Any]) -> Any:
    """Evaluate an arithmetic expression."""
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("is not an expression") from error
    if isinstance(tree, ast.Name):
        return lookup(tree.id)
    try:
        value = _evaluate(tree, lookup)
    except (ArithmeticError, TypeError, RecursionError) as error:
        raise ValueError(f"cannot be computed ({error})") from error
    if not isinstance(value, (int, float)):
        raise ValueError("has no real value")
    return value


def _evaluate(node: ast.AST, lookup: Callable[[str], Any]) -> Any:
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            return value
        case ast.Name(id=name):
            value = lookup(name)
            if not isinstance(value, (int, float)):
                raise ValueError(f"computes with {name}={value!r}, which is no number")
            return value
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(operand, lookup))
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
            values = _evaluate(left, lookup), _evaluate(right, lookup)
            return _OPERATORS[type(op)](*values)
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(arg, lookup) for arg in node.args))
    raise ValueError(f"holds '{ast.unparse(node)}', which recipes cannot compute")
