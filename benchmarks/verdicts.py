"""False negatives and false positives of our verifier, of math-verify, and of math-verify as TRL sets it up.

A false negative is a right answer that a grader refuses; a false positive is a wrong answer that it accepts. The cases
are those of benchmarks/cases, and right rewrites and wrong changes of references that the benchmark makes itself.
Cases, data sets and a checkout of Math-Verify, whose tests hold tables of verdicts, come on top by option:

    python -m benchmarks.verdicts --cases cases.jsonl --references math.parquet --tables Math-Verify

Our verdicts come from the pool of graders, which the verifier service, REST and `cepo verify` use.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks._cases import OWN, REFERENCES, VerdictCase, from_file, from_tables, generated, references
from benchmarks._graders import GRADERS
from cepo.answers.kinds import Reference
from cepo.errors import UserError

AIM = 1.0
QUICK_REFERENCES = 12
Counts = dict[str, int]
Accepted = dict[str, list[bool | None]]


def collected(options: Any) -> list[VerdictCase]:
    """The cases that the options ask for."""
    made = REFERENCES[:: len(REFERENCES) // QUICK_REFERENCES] if options.quick else REFERENCES
    cases = from_file(OWN) + generated(made, "own references")
    for file in options.cases:
        cases += from_file(file)
    for file in options.references:
        answers = references(file)
        cases += generated(answers[:QUICK_REFERENCES] if options.quick else answers, file.stem)
    for checkout in options.tables:
        cases += from_tables(checkout)
    return cases


def counts(cases: Sequence[VerdictCase], accepted: Accepted) -> dict[str, Any]:
    """False negatives and false positives of every grader, and the cases that one could not finish."""
    right = sum(case.expected for case in cases)
    result: dict[str, Any] = {"right": right, "wrong": len(cases) - right}
    for name, verdicts in accepted.items():
        pairs = list(zip(cases, verdicts, strict=True))
        result[name] = {
            "false_negatives": sum(case.expected and not verdict for case, verdict in pairs),
            "false_positives": sum(not case.expected and verdict is True for case, verdict in pairs),
            "failed": sum(verdict is None for _, verdict in pairs),
        }
    return result


def grouped(
    cases: Sequence[VerdictCase], accepted: Accepted, key: Callable[[VerdictCase], str]
) -> dict[str, dict[str, Any]]:
    """The counts of each group of cases, by name."""
    places = defaultdict(list)
    for place, case in enumerate(cases):
        places[key(case)].append(place)
    return {
        name: counts(
            [cases[i] for i in at], {grader: [verdicts[i] for i in at] for grader, verdicts in accepted.items()}
        )
        for name, at in sorted(places.items())
    }


def kind(case: VerdictCase) -> str:
    """The kind that the case is graded as, with `anywhere` where it is asked for."""
    try:
        read = Reference.of(case.answer, case.kind).kind
    except UserError:
        return "no reference"
    return f"{read.name} anywhere" if read.anywhere else read.name


def table(title: str, groups: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with a row for each group: false negatives and false positives of each grader."""
    heads = [f"{name} {error}" for error in ("FN", "FP") for name in GRADERS]
    lines = [f"| {title} | right | wrong | {' | '.join(heads)} |", "|---" * (len(heads) + 3) + "|"]
    for name, row in groups.items():
        figures = [row[grader][error] for error in ("false_negatives", "false_positives") for grader in GRADERS]
        lines.append(f"| {name} | {row['right']} | {row['wrong']} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def listed(cases: Iterable[VerdictCase], accepted: Iterable[bool | None]) -> list[str]:
    """Our wrong verdicts, a line each."""
    return [
        f"{'refused' if case.expected else 'ACCEPTED'}{' (failed)' if verdict is None else ''}: {case.response!r} "
        f"for {case.answer!r} [{case.kind}] ({case.origin}: {case.group})"
        for case, verdict in zip(cases, accepted, strict=True)
        if case.expected is not (verdict is True)
    ]


def _share(row: dict[str, Any], grader: str) -> float:
    figures, n = row[grader], row["right"] + row["wrong"]
    return 1 - (figures["false_negatives"] + figures["false_positives"]) / n


def main() -> None:
    """Grades, prints the tables and our wrong verdicts, and writes the result to benchmarks/results/."""
    parser = _report.arguments(__doc__, f"{QUICK_REFERENCES} references of each set; under a minute")
    parser.add_argument("--cases", type=Path, action="append", default=[], help="JSON lines with expected verdicts")
    parser.add_argument("--references", type=Path, action="append", default=[], help="a data set with references")
    parser.add_argument("--tables", type=Path, action="append", default=[], help="a checkout of Math-Verify")
    options = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    cases = [case for case in collected(options) if not case.policy]
    accepted = {name: grade(cases) for name, grade in GRADERS.items()}
    kinds = grouped(cases, accepted, kind)
    rules = grouped(cases, accepted, lambda case: f"{case.origin}: {case.group}")
    everything = counts(cases, accepted)
    for title, groups in (("kind", kinds), ("set: fault or rule", rules), ("", {"all": everything})):
        print(table(title, groups), end="\n\n")  # noqa: T201 printing is its purpose
    print(*listed(cases, accepted["ours"]), sep="\n", end="\n\n")  # noqa: T201
    _report.write(
        "verdicts",
        ours={"right_share": round(_share(everything, "ours"), 4), **everything["ours"]},
        alternative={"right_share": round(_share(everything, "math-verify"), 4), **everything["math-verify"]},
        ratio=_share(everything, "ours") / _share(everything, "math-verify"),
        aim=AIM,
        besides=all(row["ours"]["false_positives"] <= row["math-verify"]["false_positives"] for row in kinds.values()),
        cases=len(cases),
        all=everything,
        by_kind=kinds,
        by_rule=rules,
    )


if __name__ == "__main__":
    main()
