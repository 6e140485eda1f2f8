"""The cases of the verdict benchmark: files of cases, math-verify's tables, and answers generated from references."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cepo.answers.kinds import WORDINGS, Reference
from cepo.answers.perturb import changes, rewrites
from cepo.data.columns import recognised
from cepo.data.rows import column, read_rows
from cepo.errors import UserError
from cepo.run.data import DataConfig

OWN = Path(__file__).parent / "cases" / "verdicts.jsonl"
"""The cases of this repository."""
REFERENCES = [
    "7", "-12", "1024", "0.25", "-3.5", "1,250", "\\frac{3}{4}", "-\\frac{17}{6}", "\\frac{2023}{2024}", "2\\sqrt{5}",
    "\\sqrt{13}", "12\\pi", "\\frac{\\pi}{6}", "2^{10}", "x^2+1", "3x-7", "\\frac{x+1}{x-2}", "y=2x+1", "6-5i",
    "(3,-4)", "(1,2,5)", "\\left(3,\\frac{\\pi}{2}\\right)", "\\{1,2,4\\}", "-3, 4", "[-2,7)", "(-\\infty,3]",
    "(-\\infty,1)\\cup(4,\\infty)", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "30^\\circ", "15\\%", "\\$18.50",
    "12\\text{ cm}", "\\text{Evelyn}", "\\text{no solution}", "C", "yes",
]  # fmt: skip
"""References that the benchmark makes itself, a few of each kind of answer."""


@dataclass(frozen=True)
class VerdictCase:
    """A response, its reference, and the verdict of a careful reader."""

    response: str
    answer: str
    expected: bool
    kind: str = ""
    question: str = ""
    policy: bool = False
    """Whether a careful reader could argue for either verdict; such a case is in no rate."""
    group: str = ""
    """The fault that the case looks for, or the rule that made the response."""
    origin: str = ""
    """The set that the case comes from."""


def from_file(file: Path) -> list[VerdictCase]:
    """Reads JSON lines of `response`, `answer`, `expected` and optionally `kind`, `question`, `fault`, `policy`."""
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    return [
        VerdictCase(
            row["response"],
            row["answer"],
            row["expected"],
            row.get("kind", ""),
            row.get("question", ""),
            row.get("policy") is True or row.get("fault") == "policy",
            row.get("fault") or "other",
            file.stem,
        )
        for row in rows
    ]


def from_tables(checkout: Path) -> list[VerdictCase]:
    """Reads the tables of gold, prediction and verdict in the tests of a Math-Verify checkout."""
    return [case for file in sorted(checkout.glob("tests/test_*.py")) for case in _table(file)]


def _table(file: Path) -> Iterator[VerdictCase]:
    for node in ast.walk(ast.parse(file.read_text())):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.parametrize"):
            continue
        names = [name.strip() for name in ast.literal_eval(node.args[0]).split(",")]
        if names[:2] != ["gold", "pred"] or names[2:] not in (["expected"], ["result"]):
            continue
        for row in getattr(node.args[1], "elts", []):
            try:
                gold, prediction, expected = ast.literal_eval(row)
            except ValueError:
                continue  # the row computes its values
            yield VerdictCase(_response(prediction), gold, bool(expected), group=file.stem, origin="tables")


def _response(prediction: str) -> str:
    inner = prediction.strip().strip("$")
    return prediction if "boxed" in prediction or "$" in inner else f"So the answer is $\\boxed{{{inner}}}$."


def references(file: Path) -> list[str]:
    """The distinct references of a data set in any format that training reads, in their order."""
    rows = read_rows(str(file.absolute()), "", "--references")
    path = recognised(list(enumerate(rows)), DataConfig(train=str(file)), str(file)).answer
    return list(dict.fromkeys(str(column(row, path)) for row in rows))


def generated(answers: Iterable[str], origin: str) -> list[VerdictCase]:
    """Right rewrites and wrong changes of references, each in a response."""
    return [case for answer in answers for case in _generated(answer, origin)]


def _generated(answer: str, origin: str) -> Iterator[VerdictCase]:
    try:
        kind = Reference.of(answer).kind.name
    except UserError:
        return
    stated = "The answer is {}." if kind in WORDINGS else "The answer is ${}$."
    for name, text in rewrites(answer):
        yield VerdictCase(_BOX.format(text), answer, True, group=f"rewritten: {name}", origin=origin)
    for name, form in {**_MARKS, "stated": stated}.items():
        anywhere = "anywhere" if name == "stated" else ""
        yield VerdictCase(form.format(answer), answer, True, anywhere, group=f"mark: {name}", origin=origin)
    for name, text in changes(answer):
        yield VerdictCase(_BOX.format(text), answer, False, group=f"changed: {name}", origin=origin)
        yield VerdictCase(stated.format(text), answer, False, "anywhere", group=f"changed: {name}", origin=origin)


_BOX = "So the answer is $\\boxed{{{}}}$."
_MARKS = {
    "Answer:": "Working.\nAnswer: {}",
    "Answer: and the next line": "Working.\n\n**Answer:**\n{}",
    "Answer: and a sentence": "Working.\nAnswer: {}. This is it.",
}
