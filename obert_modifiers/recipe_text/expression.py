"""Evaluate the arithmetic of ``eval(...)`` in recipes, without Python's own eval."""

import ast
import operator
from collections.abc import Callable
from typing import Any

_MAX_EXPONENT = 1000
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "max": max,
    "min": min,
    "round": round,
}


class UnknownNameError(LookupError):
    """A name in an expression that stands for nothing.

    Attributes:
        name: That name.
    """

    def __init__(self, name: str):
        """Keep the name."""
        super().__init__(name)
        self.name = name


def evaluate(expression: str, lookup: Callable[[str], Any]) -> Any:
    """Evaluate an arithmetic expression."""
    text = expression.strip()
    try:
        tree = ast.parse(text, mode="eval").body
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
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name):
        value = lookup(node.id)
        if not isinstance(value, (int, float)):
            raise ValueError(f"computes with {node.id}={value!r}, which is no number")
        return value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.operand, lookup))
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left, lookup), _evaluate(node.right, lookup)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call) and not node.keywords:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(arg, lookup) for arg in node.args))
    raise ValueError(f"holds '{ast.unparse(node)}', which recipes cannot compute")


def _power(base: float, exponent: float) -> Any:
    if abs(exponent) > _MAX_EXPONENT:
        raise ValueError(f"holds an exponent above {_MAX_EXPONENT}")
    return base**exponent
