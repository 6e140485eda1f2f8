"""The verifier on a data set's own answers: each must be right against itself, and a wrong one must be wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable

from cepo.gold import perturbed


def ungradable(answers: Iterable[str], kind: str) -> dict[str, str]:
    """The reference answers that cannot be graded as answers of a kind, and why."""
    from services.verifier.files import verify_lines

    distinct = list(dict.fromkeys(answers))
    lines = [_line(given, answer, kind) for answer in distinct for given in (answer, perturbed(answer))]
    verdicts = [json.loads(line) for line in verify_lines(lines)]
    reasons = {
        answer: _reason(answer, itself, other)
        for answer, itself, other in zip(distinct, verdicts[::2], verdicts[1::2], strict=True)
    }
    return {answer: reason for answer, reason in reasons.items() if reason}


def _line(given: str, answer: str, kind: str) -> str:
    return json.dumps({"response": f"\\boxed{{{given}}}", "answer": answer, "kind": kind})


def _reason(answer: str, itself: dict[str, str], other: dict[str, str]) -> str:
    if itself["outcome"] != "correct":
        return f"reference answer {answer!r} does not verify against itself: {itself['outcome']}, {itself['reason']}"
    if other["outcome"] == "correct":
        return f"reference answer {answer!r} cannot be told from {perturbed(answer)!r}"
    return ""
