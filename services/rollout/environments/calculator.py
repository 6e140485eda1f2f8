"""A calculator: the policy calls it with `calc(61-48)`, or with a tool call of `calculator` in the form of Qwen3."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

MAX_DIGITS = 200
"""Of a result, and characters of an expression: there is no power that could make a large one."""
_OPERATIONS: dict[type[ast.AST], Callable[..., Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_CALL = re.compile(r"calc\((.*)\)")
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Calculator:
    """Answers each call with its result; a turn without a call ends the trajectory.

    It gives no reward of its own, so the verifier's decides.
    """

    def step(self, message: dict[str, Any]) -> tuple[str | bool, float]:
        """Returns the result of the first call, such as `("13", 0.0)`, or `(True, 0.0)` without a call."""
        expression = called(message["content"])
        return (True, 0.0) if expression is None else (answered(expression), 0.0)


def called(text: str) -> str | None:
    """The expression of the first call in a turn; None without a call."""
    if call := _CALL.search(text):
        return call[1]
    if call := _TOOL_CALL.search(text):
        try:
            return str(json.loads(call[1])["arguments"]["expression"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return ""
    return None


def answered(expression: str) -> str:
    """The result of an expression of `+ - * /`, exact: `1/3*3` is 1; `1/3` is a fraction. An error is a text too."""
    if not expression.strip() or len(expression) > MAX_DIGITS:
        return "error: no expression"
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"error: not an expression of numbers and + - * /: {expression}"
    return str(value)


def _value(node: ast.AST) -> Fraction:
    match node:
        case ast.BinOp(left, sign, right) if type(sign) in _OPERATIONS:
            return _OPERATIONS[type(sign)](_value(left), _value(right))
        case ast.UnaryOp(sign, operand) if type(sign) in _OPERATIONS:
            return _OPERATIONS[type(sign)](_value(operand))
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
    raise ValueError
