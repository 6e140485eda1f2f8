"""Verdicts for JSON lines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cepo.errors import UserError
from services.verifier.files import verify_lines

ROW = {"response": "\\boxed{3}", "answer": "3"}


def verdicts(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    lines = verify_lines([json.dumps(row) + "\n" for row in rows], workers=1, deadline_seconds=100)
    return [json.loads(line) for line in lines]


def test_every_line_gets_a_verdict_in_order() -> None:
    found = verdicts(
        ROW, {"response": "\\boxed{x+x}", "answer": "2x", "kind": "math"}, {"response": "hm", "answer": "3"}
    )
    assert [row["outcome"] for row in found] == ["correct", "correct", "unparsed"]
    assert found[0] == {
        "outcome": "correct", "reward": 1.0, "accuracy": 1.0, "extracted": "3", "normalised": "3", "reason": "equals 3",
    }  # fmt: skip


def test_a_kind_and_a_question_are_read() -> None:
    found = verdicts(
        {"response": "\\boxed{101}", "answer": "100", "kind": "number tolerance=1%"},
        {"response": "\\boxed{library}", "answer": "B", "question": "Where?\nA. bank\nB. library"},
        {"response": "The answer is (B).", "answer": "B", "kind": "choice anywhere"},
    )
    assert [row["outcome"] for row in found] == ["correct"] * 3
    assert [row["normalised"] for row in found] == ["101", "B", "B"]


def test_blank_lines_are_skipped() -> None:
    assert list(verify_lines(["\n", "  "])) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("not json", "line 2"),
        ("[1]", "line 2"),
        ('{"response": "x"}', "line 2: answer"),
        ('{"response": 3, "answer": "3"}', "line 2: response"),
        ('{"response": "x", "answer": ""}', "line 2: reference answer ''"),
        ('{"response": "x", "answer": "3", "knd": ""}', "line 2: knd"),
        ('{"response": "x", "answer": "3", "kind": "telepathy"}', "line 2: answer kind 'telepathy'"),
        ('{"response": "x", "answer": "3", "kind": "choice"}', "line 2: reference answer '3' names no option"),
    ],
)
def test_a_bad_line_is_named_before_any_verdict(line: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        verify_lines([json.dumps(ROW), line])
