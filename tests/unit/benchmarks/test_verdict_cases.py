"""The cases of the verdict benchmark: what is read, generated and counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from benchmarks._cases import OWN, REFERENCES, VerdictCase, from_file, from_tables, generated, references
from benchmarks.verdicts import counts, kind, listed, table


def test_the_own_cases_hold_right_and_wrong_answers_of_every_fault() -> None:
    cases = from_file(OWN)
    assert len(cases) >= 300
    assert 0.4 < sum(case.expected for case in cases) / len(cases) < 0.6
    assert min(Counter(case.group for case in cases).values()) >= 7
    assert len(set(cases)) == len(cases)


def test_generated_cases_are_right_and_wrong_answers_of_every_reference() -> None:
    cases = generated(REFERENCES, "own")
    for answer in REFERENCES:
        assert {case.expected for case in cases if case.answer == answer} == {True, False}


def test_references_are_read_from_a_data_set_once_each(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": "?", "answer": answer}) + "\n" for answer in ("7", "8", "7")))
    assert references(file) == ["7", "8"]


def test_a_case_a_reader_could_argue_about_is_marked(tmp_path: Path) -> None:
    file = tmp_path / "cases.jsonl"
    row = {"response": "\\boxed{7}", "answer": "7", "expected": True}
    file.write_text("".join(json.dumps(row | more) + "\n" for more in ({}, {"fault": "policy"}, {"policy": True})))
    assert [case.policy for case in from_file(file)] == [False, True, True]


def test_the_tables_of_a_checkout_are_read(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    source = "import pytest\n@pytest.mark.parametrize('gold,pred,expected', [('$7$', '$7$', 1), ('7', str(8), 0)])\n"
    (tmp_path / "tests" / "test_own.py").write_text(source + "def test_it(gold, pred, expected):\n    pass\n")
    (case,) = from_tables(tmp_path)
    assert (case.response, case.answer, case.expected) == ("So the answer is $\\boxed{7}$.", "$7$", True)


def test_errors_are_counted_for_each_grader_and_ours_are_listed() -> None:
    cases = [VerdictCase("\\boxed{7}", "7", True), VerdictCase("\\boxed{8}", "7", False)]
    accepted: dict[str, list[bool | None]] = {
        "ours": [None, True],
        "math-verify": [True, False],
        "as TRL": [False, False],
    }
    row = counts(cases, accepted)
    assert row["ours"] == {"false_negatives": 1, "false_positives": 1, "failed": 1}
    assert row["math-verify"] == {"false_negatives": 0, "false_positives": 0, "failed": 0}
    assert table("kind", {"number": row}).splitlines()[-1] == "| number | 1 | 1 | 1 | 0 | 1 | 1 | 0 | 0 |"
    assert [line.split(":")[0] for line in listed(cases, accepted["ours"])] == ["refused (failed)", "ACCEPTED"]
    assert kind(cases[0]) == "number"
