"""The verifier on a data set's own answers: each must be right against itself, and a wrong one must be wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cepo.data import Problem
from cepo.gold import perturbed


def ungradable(problems: Sequence[Problem]) -> dict[int, str]:
    """Why a problem's answer cannot be graded, by the id() of the problem; those that can are left out."""
    from services.verifier.files import verify_lines

    answers = list(dict.fromkeys(problem.answer for problem in problems))
    lines = [_line(given, answer) for answer in answers for given in (answer, perturbed(answer))]
    verdicts = [json.loads(line) for line in verify_lines(lines)]
    reasons = {
        answer: _reason(answer, itself, other)
        for answer, itself, other in zip(answers, verdicts[::2], verdicts[1::2], strict=True)
    }
    return {id(problem): reasons[problem.answer] for problem in problems if reasons[problem.answer]}


def _line(given: str, answer: str) -> str:
    return json.dumps({"response": f"\\boxed{{{given}}}", "answer": answer})


def _reason(answer: str, itself: dict[str, str], other: dict[str, str]) -> str:
    if itself["outcome"] != "correct":
        return f"reference answer {answer!r} does not verify against itself: {itself['outcome']}, {itself['reason']}"
    if other["outcome"] == "correct":
        return f"reference answer {answer!r} cannot be told from {perturbed(answer)!r}"
    return ""
