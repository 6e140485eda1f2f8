"""The results of an evaluation: pass@k of each policy, overall and per kind of answer, as JSON and as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from cepo.answers.kinds import kind_of
from cepo.cli.evaluation.estimates import Estimate, Tally, ks_up_to, mean_over_samples, pass_at_k
from cepo.data.problems import Problem
from cepo.messages.groups import EvidencedGroup, GroupFailed, PolicyRef

ALL = "all"


@dataclass(frozen=True)
class MeasuredPolicy:
    """The groups of one policy on all problems."""

    policy: PolicyRef
    problems: Sequence[Problem]
    groups: Sequence[EvidencedGroup | GroupFailed]
    """In the order of the problems."""
    seconds: float

    @property
    def finished(self) -> list[EvidencedGroup]:
        return [group for group in self.groups if isinstance(group, EvidencedGroup)]

    @property
    def label(self) -> str:
        """The short name of the policy: "base" or, for version 20, "v20"."""
        return f"v{self.policy.version}" if self.policy.version else self.policy.name


@dataclass(frozen=True)
class Score:
    """The score of one policy on a set of problems."""

    problems: int
    mean: Estimate
    """Its interval is for sampling the same problems again."""
    pass_at: dict[int, Estimate]
    """By k; its interval is for other problems of the same kind."""

    @classmethod
    def of(cls, tallies: Sequence[Tally]) -> Score:
        ks = ks_up_to(min(tally.samples for tally in tallies))
        return cls(len(tallies), mean_over_samples(tallies), {k: pass_at_k(tallies, k) for k in ks})


def scores(measured: MeasuredPolicy) -> dict[str, Score]:
    """The scores by kind of answer; `ALL` holds the score of all problems."""
    tallies: dict[str, list[Tally]] = {ALL: []}
    for group in measured.finished:
        tally = Tally(sum(v.correct for v in group.scored.verdicts), len(group.scored.verdicts))
        for name in (ALL, kind_of(group.task.answer_kind, group.task.reference_answer).name):
            tallies.setdefault(name, []).append(tally)
    return {name: Score.of(of_kind) for name, of_kind in tallies.items()}


def as_data(measured: MeasuredPolicy) -> dict[str, Any]:
    """One policy's entry of results.json."""
    by_kind = scores(measured)
    verdicts = [verdict for group in measured.finished for verdict in group.scored.verdicts]
    lengths = [c.length for group in measured.finished for c in group.scored.rollout.completions]
    outcomes = Counter(verdict.outcome.name.lower() for verdict in verdicts)
    return {
        "policy": measured.policy.name,
        "version": measured.policy.version,
        "sha256": measured.policy.sha256,
        **_plain(by_kind[ALL]),
        "kinds": {name: _plain(score) for name, score in by_kind.items() if name != ALL},
        "outcomes": {name: count / len(verdicts) for name, count in sorted(outcomes.items())},
        "length/mean": sum(lengths) / len(lengths),
        "groups/failed": len(measured.groups) - len(measured.finished),
        "seconds": round(measured.seconds, 2),
    }


def table(policies: Iterable[MeasuredPolicy]) -> Table:
    """pass@k with half the width of its 95 % interval; with several kinds of answers, a row for each kind."""
    shown = Table(box=None, pad_edge=False)
    for name in ("policy", "answers", "problems"):
        shown.add_column(name, justify="right" if name == "problems" else "left")
    for number, measured in enumerate(policies):
        rows = scores(measured)
        if number == 0:
            for k in rows[ALL].pass_at:
                shown.add_column(f"pass@{k}", justify="right")
        for name, score in rows.items():
            if name == ALL or len(rows) > 2:
                cells = [_cell(estimate) for estimate in score.pass_at.values()]
                shown.add_row(measured.label, name, str(score.problems), *cells)
    return shown


def sample_lines(measured: MeasuredPolicy) -> Iterator[str]:
    """A JSON line for each problem: question, answer, and each sample with its grade."""
    for problem, group in zip(measured.problems, measured.groups, strict=True):
        row = {"row": problem.row, "question": problem.messages[-1].content, "answer": problem.answer}
        if isinstance(group, GroupFailed):
            yield json.dumps({**row, "failed": group.error})
            continue
        pairs = zip(group.scored.rollout.completions, group.scored.verdicts, strict=True)
        samples = [
            {"text": c.text, "tokens": c.length, "outcome": v.outcome.name.lower(), "extracted": v.extracted}
            for c, v in pairs
        ]
        yield json.dumps({**row, "samples": samples})


def _plain(score: Score) -> dict[str, Any]:
    return {
        "problems": score.problems,
        "mean": asdict(score.mean),
        **{f"pass@{k}": asdict(estimate) for k, estimate in score.pass_at.items()},
    }


def _cell(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1%}"
    return f"{estimate.value:.1%} ± {(estimate.high - estimate.low) * 50:.1f}"
