"""Verdicts of responses that an environment answered: its failure, and its reward as the accuracy."""

from __future__ import annotations

from cepo.messages.groups import Completion, FinishReason, Outcome, PromptTask, Verdict
from cepo.messages.vocabulary import CORRECT_FROM


def in_environment(task: PromptTask, completion: Completion, verdict: Verdict) -> Verdict:
    """The verdict of a response of an environment.

    A failed environment is no verdict: the sample is left out of every statistic, as if its grader had failed. If the
    task's reward names the environment as the judge, its reward is the accuracy; the answer that was extracted stays.
    """
    played = completion.played
    if played is None or task.environment is None:
        return verdict
    if played.failure:
        outcome = Outcome.TIMEOUT if played.timed_out else Outcome.GRADER_ERROR
        reason = f"environment {task.environment.name}, turn {played.turns}: {played.failure}"
        return verdict.model_copy(update={"outcome": outcome, "reason": reason, "accuracy": 0.0, "reward": 0.0})
    if task.reward.judge != "environment":
        return verdict
    accuracy = min(1.0, max(0.0, played.reward))
    outcome = Outcome.CORRECT if accuracy >= CORRECT_FROM else Outcome.WRONG
    if outcome is Outcome.WRONG and completion.finish_reason is FinishReason.LENGTH:
        outcome = Outcome.TRUNCATED
    reason = f"the environment's reward is {played.reward:g}"
    return verdict.model_copy(update={"outcome": outcome, "reason": reason, "accuracy": accuracy, "reward": accuracy})
