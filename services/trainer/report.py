"""Reports of a step: the metrics of its groups, and its failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import pstdev

from cepo.errors import UserError
from cepo.messages.groups import (
    Completion,
    ContextName,
    EvidencedGroup,
    EvidenceReason,
    FinishReason,
    GroupFailed,
    Outcome,
    Stage,
    Verdict,
)
from cepo.messages.spans import given_tokens, sampled_spans
from cepo.messages.vocabulary import DEAD_BAND
from cepo.run.best import CHOICE, PROBLEMS, REPORT
from cepo.run.causes import root_cause
from cepo.run.folder import RunDir
from cepo.run.lines import Row
from cepo.service.stage import GIVEN_UP
from services.trainer.rollouts import Pieces

REASONS = (
    EvidenceReason.ASKED,
    EvidenceReason.NO_REJECTED,
    EvidenceReason.NO_ANSWER,
    EvidenceReason.SAME_AS_ANSWER,
    EvidenceReason.ONLY_SELF,
    EvidenceReason.TOO_FEW,
)
"""The reasons that an r- can have, in the order of their metrics."""
ANSWER_GROUPS = 16
"""Groups of a step whose responses are split into tokens for `answer_share`."""
SERVICES = {Stage.ROLLOUT: "rollout", Stage.VERIFY: "verifier", Stage.TEACH: "teacher"}
"""The service of each stage."""
Groups = Sequence[EvidencedGroup | GroupFailed]


def finished(groups: Groups) -> list[EvidencedGroup]:
    """The groups that did not fail."""
    return [group for group in groups if isinstance(group, EvidencedGroup)]


def judged(groups: Groups) -> list[Verdict]:
    """The verdicts of all samples, except those whose grader failed or timed out.

    Raises:
        UserError: the grader failed on every sample.
    """
    verdicts = [v for group in finished(groups) for v in group.scored.verdicts]
    judged_verdicts = [v for v in verdicts if not v.failed]
    if verdicts and not judged_verdicts:
        raise UserError(
            f"the verifier judged none of {len(verdicts)} responses, the first because: {verdicts[0].reason}"
        )
    return judged_verdicts


def accuracy(groups: Groups) -> float:
    """The mean accuracy of all judged samples; 0 if there are none."""
    return _mean([v.accuracy for v in judged(groups)])


def halves(groups: Groups) -> dict[str, float]:
    """The accuracy over the held-out problems with an even number, and over the others (see `cepo.run.best`)."""
    halves = [[group for group in groups if group.task.index % 2 == odd] for odd in (0, 1)]
    return {CHOICE: accuracy(halves[0]), REPORT: accuracy(halves[1]), PROBLEMS: float(len(finished(halves[1])))}


def group_metrics(groups: Groups) -> dict[str, float]:
    """Metrics of a step's groups.

    Rewards, lengths and outcomes are those of the groups that are no follow-ups; failures, tokens and seconds are those
    of all groups. A sample without a verdict counts in `samples/failed` and the outcomes only.
    """
    answered = finished(groups)
    done = [group for group in answered if group.task.origin is None]
    everything, verdicts = [v for group in done for v in group.scored.verdicts], judged(done)
    completions = _completions(done)
    lengths = [c.length for c in completions]
    accurate = [[v.correct for v in group.scored.verdicts if not v.failed] for group in done]
    rewards = [v.reward for v in verdicts]
    truncated = [c.finish_reason is FinishReason.LENGTH for c in completions]
    return {
        "reward/mean": _mean(rewards),
        "reward/std": pstdev(rewards) if rewards else 0.0,
        "reward/format": _mean([v.format for v in verdicts]),
        "reward/penalty": _mean([v.penalty for v in verdicts]),
        "reward/environment": _mean([v.environment for v in verdicts]),
        "reward/functions": _mean([v.functions for v in verdicts]),
        "accuracy/train": accuracy(done),
        "length/mean": _mean(lengths),
        "length/max": float(max(lengths, default=0)),
        "length/truncated_fraction": _mean(truncated),
        "length/empty_fraction": _mean([length == 0 for length in lengths]),
        "length/turns": _mean([len(sampled_spans(c.given, len(c.token_ids))) for c in completions]),
        **{f"outcome/{o.name.lower()}": _mean([v.outcome is o for v in everything]) for o in Outcome},
        "samples/failed": float(len(everything) - len(verdicts)),
        "groups/total": float(len(groups)),
        "groups/failed": float(len(groups) - len(answered)),
        "groups/all_correct": _mean([bool(row) and all(row) for row in accurate]),
        "groups/all_wrong": _mean([bool(row) and not any(row) for row in accurate]),
        "groups/zero_spread": _mean([not group.scored.reward_spread for group in done]),
        "groups/single": _mean([len(row) < 2 for row in accurate]),
        "groups/evidenced": _mean([bool(group.evidence) for group in done]),
        "tokens/generated": _sampled(answered),
        "tokens/continued": _sampled([group for group in answered if group.task.origin is not None]),
        "tokens/given": float(sum(given_tokens(c.given) for c in _completions(answered))),
        "tokens/measured": float(sum(map(_measured, answered))),
        "time/teacher_seconds": sum(group.seconds for group in answered),
        **hint_metrics(done),
    }


def hint_metrics(groups: Sequence[EvidencedGroup]) -> dict[str, float]:
    """Metrics of the hints r+ and r-: the share of responses by the reason for their r-, and the mean hint length."""
    rows = {
        name: [r for g in groups for e in g.evidence if e.ask.context is name for r in e.rows] for name in ContextName
    }
    rejected = rows[ContextName.REJECTED]
    return {
        **{f"hint/rejected_{reason.name.lower()}": _mean([r.reason is reason for r in rejected]) for reason in REASONS},
        "hint/rejected_unused": _mean([not r.applicable for r in rejected]),
        "hint/answer_tokens": _mean([r.hint_tokens for r in rows[ContextName.ANSWER] if r.applicable]),
        "hint/rejected_tokens": _mean([r.hint_tokens for r in rejected if r.context is ContextName.REJECTED]),
    }


def _sampled(groups: Sequence[EvidencedGroup]) -> float:
    """The number of tokens that the engine sampled."""
    return float(sum(len(c.logps) - given_tokens(c.given) for c in _completions(groups) if c.logps))


def _measured(group: EvidencedGroup) -> int:
    """The number of sampled tokens that the teacher scored, counted once per context."""
    lengths = [c.length for c in group.scored.rollout.completions]
    return sum(n for e in group.evidence for n, row in zip(lengths, e.rows, strict=True) if row.applicable)


def _completions(groups: Sequence[EvidencedGroup]) -> list[Completion]:
    return [completion for group in groups for completion in group.scored.rollout.completions]


def versions(groups: Groups) -> dict[str, float]:
    """The oldest policy version that each kind of engine used in a step. Example: {"version/rollout": 3.0}."""
    proven: dict[str, list[int]] = {}
    for group in finished(groups):
        proven.setdefault("rollout", []).append(group.scored.rollout.proof.policy.version)
        for proof in group.proofs:
            proven.setdefault("teacher", []).append(proof.policy.version)
    return {f"version/{engine}": float(min(numbers)) for engine, numbers in proven.items()}


def first_failure(groups: Groups, run: RunDir) -> str:
    """The reason why the first group that failed did."""
    return next(_reasons([group for group in groups if isinstance(group, GroupFailed)][:1], run))


def _reasons(groups: Sequence[GroupFailed], run: RunDir) -> Iterator[str]:
    """The reason of each group, with the log of the service on this machine that gave it up.

    A group whose workers died has no error of its own: the service's log names what ended them.
    """
    causes: dict[Stage, str] = {}
    for group in groups:
        log = run.logs / f"{SERVICES[group.stage]}.log"
        if not log.is_file():
            yield group.error
            continue
        if group.error.startswith(GIVEN_UP) and group.stage not in causes:
            causes[group.stage] = root_cause(log)
        cause = causes.get(group.stage, "") if group.error.startswith(GIVEN_UP) else ""
        yield f"{group.error}{f', the last by {cause}' if cause else ''}; see {log}"


def failures(groups: Groups, step: int, run: RunDir) -> list[Row]:
    """Rows for failures.jsonl: the groups that failed, and the samples that the verifier could not judge."""
    rows: list[Row] = []
    reasons = _reasons([group for group in groups if isinstance(group, GroupFailed)], run)
    for group in groups:
        about = {"step": step, "group": group.task.group_id, "policy_version": group.task.policy.version}
        if isinstance(group, GroupFailed):
            what = {"stage": group.stage.name.lower(), "error": next(reasons), "deliveries": group.deliveries}
            rows.append({**about, "sample": None, **what})
            continue
        for sample, verdict in enumerate(group.scored.verdicts):
            if verdict.failed:
                error = f"{verdict.outcome.name.lower()}: {verdict.reason}"
                rows.append({**about, "sample": sample, "stage": "verify", "error": error, "deliveries": 1})
    return rows


def answer_share(groups: Groups, pieces: Pieces) -> dict[str, float]:
    """The share of the sum of |delta| on the final answer: the last place of the extracted answer in each response.

    delta is the log-prob under the first r+ less that under the first r-; without both there is no metric. A delta
    within the dead band counts as 0.
    """
    on_answer, total = 0.0, 0.0
    for group in finished(groups):
        rows = {evidence.ask.context: evidence.rows for evidence in reversed(group.evidence)}
        if not {ContextName.ANSWER, ContextName.REJECTED} <= rows.keys():
            return {}
        for at, completion in enumerate(group.scored.rollout.completions):
            right, rejected = rows[ContextName.ANSWER][at], rows[ContextName.REJECTED][at]
            answer = group.scored.verdicts[at].extracted
            if not (right.applicable and rejected.applicable) or len(right.logps) != len(completion.token_ids):
                continue
            texts = pieces(completion.token_ids)
            first = "".join(texts).rfind(answer) if answer else -1
            start = 0
            for text, plus, minus in zip(texts, right.logps, rejected.logps, strict=True):
                size = abs(plus - minus)
                size = size if size > DEAD_BAND else 0.0
                total += size
                on_answer += size * (0 <= first < start + len(text) and start < first + len(answer))
                start += len(text)
    return {"credit/answer_share": on_answer / total if total else 0.0}


def _mean(values: Sequence[float | bool]) -> float:
    return float(sum(values)) / len(values) if values else 0.0
