"""What an evaluation found: pass@k of each policy, whole and per kind of answer, as data, as a table, as lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from cepo.answers.kinds import kind_of
from cepo.cli.evaluation.estimates import Estimate, Tally, mean_over_samples, pass_at_k, sizes_up_to
from cepo.data.problems import Problem
from cepo.messages.groups import EvidencedGroup, GroupFailed, PolicyRef

ALL = "all"


@dataclass(frozen=True)
class Measured:
    """One policy on all problems."""

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
        """The policy as people name it."""
        return f"v{self.policy.version}" if self.policy.version else self.policy.name


@dataclass(frozen=True)
class Score:
    """Some problems under one policy."""

    problems: int
    mean: Estimate
    """Over the samples: how far off if the same problems were sampled again."""
    pass_at: dict[int, Estimate]
    """By k: how far off if other problems had been asked."""

    @classmethod
    def of(cls, tallies: Sequence[Tally]) -> Score:
        sizes = sizes_up_to(min(tally.samples for tally in tallies))
        return cls(len(tallies), mean_over_samples(tallies), {k: pass_at_k(tallies, k) for k in sizes})


def scores(measured: Measured) -> dict[str, Score]:
    """The score of all problems, then of each kind of answer."""
    tallies: dict[str, list[Tally]] = {ALL: []}
    for group in measured.finished:
        tally = Tally(sum(v.accuracy >= 0.5 for v in group.scored.verdicts), len(group.scored.verdicts))
        for name in (ALL, kind_of(group.task.answer_kind, group.task.reference_answer).name):
            tallies.setdefault(name, []).append(tally)
    return {name: Score.of(found) for name, found in tallies.items()}


def as_data(measured: Measured) -> dict[str, Any]:
    """One policy's entry of results.json."""
    found = scores(measured)
    verdicts = [verdict for group in measured.finished for verdict in group.scored.verdicts]
    lengths = [len(c.token_ids) for group in measured.finished for c in group.scored.rollout.completions]
    outcomes = Counter(verdict.outcome.name.lower() for verdict in verdicts)
    return {
        "policy": measured.policy.name,
        "version": measured.policy.version,
        "sha256": measured.policy.sha256,
        **_plain(found[ALL]),
        "kinds": {name: _plain(score) for name, score in found.items() if name != ALL},
        "outcomes": {name: count / len(verdicts) for name, count in sorted(outcomes.items())},
        "length/mean": sum(lengths) / len(lengths),
        "groups/failed": len(measured.groups) - len(measured.finished),
        "seconds": round(measured.seconds, 2),
    }


def table(found: Iterable[Measured]) -> Table:
    """pass@k with half the width of its 95 % interval; a row for each kind where there are several."""
    shown = Table(box=None, pad_edge=False)
    for name in ("policy", "answers", "problems"):
        shown.add_column(name, justify="right" if name == "problems" else "left")
    for number, measured in enumerate(found):
        rows = scores(measured)
        if number == 0:
            for k in rows[ALL].pass_at:
                shown.add_column(f"pass@{k}", justify="right")
        for name, score in rows.items():
            if name == ALL or len(rows) > 2:
                cells = [_cell(estimate) for estimate in score.pass_at.values()]
                shown.add_row(measured.label, name, str(score.problems), *cells)
    return shown


def sample_lines(measured: Measured) -> Iterator[str]:
    """A JSON line for each problem: what was asked, what each sample said, how it was graded."""
    for problem, group in zip(measured.problems, measured.groups, strict=True):
        row = {"row": problem.row, "question": problem.messages[-1].content, "answer": problem.answer}
        if isinstance(group, GroupFailed):
            yield json.dumps({**row, "failed": group.error})
            continue
        pairs = zip(group.scored.rollout.completions, group.scored.verdicts, strict=True)
        samples = [
            {"text": c.text, "tokens": len(c.token_ids), "outcome": v.outcome.name.lower(), "extracted": v.extracted}
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
