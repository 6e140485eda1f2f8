"""The environments that ship with the project."""

from __future__ import annotations

import pytest

from services.rollout.environments.calculator import Calculator, answered
from services.rollout.environments.guessing import GuessTheNumber
from tests.unit.rollout.test_environments import said


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("61-48", "13"), ("2*(3+4)", "14"), ("1/3*3", "1"), ("7/2", "7/2"), ("-0.1+0.3", "1/5"), ("1/0", "error: div"),
        ("9**9**9", "error: not"), ("__import__('os')", "error: not"), ("", "error: no expr"),
        ("(" * 150, "error: not"),        ("True+1", "error: not"), ("1e999*1e999", "error: not"),
    ],
)  # fmt: skip
def test_expressions(expression: str, result: str) -> None:
    assert answered(expression).startswith(result)


def test_the_calculator_reads_tool_calls_of_chat_models() -> None:
    calls = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6*7"}}\n</tool_call>'
    assert Calculator().step(said(calls)) == ("42", 0.0)
    assert Calculator().step(said("<tool_call>{</tool_call>")) == ("error: no expression", 0.0)


def test_guessing_earns_less_with_every_guess() -> None:
    game = GuessTheNumber()
    game.reset({"answer": "7"})
    assert [game.step(said(text)) for text in ("maybe 5?", "hm", "9", "7")] == [
        ("higher", 0.0), ("Name a number.", 0.0), ("lower", 0.0), (True, 0.125)
    ]  # fmt: skip
