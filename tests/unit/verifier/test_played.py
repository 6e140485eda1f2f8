"""Verdicts and rewards of responses that an environment answered."""

from __future__ import annotations

from typing import Any

import pytest

from cepo.messages.groups import Environment, FinishReason, Outcome, Played, PromptTask, Reward, Verdict
from services.verifier.handler import Verifier
from services.verifier.played import in_environment
from services.verifier.pool import GraderPool
from tests.helpers.factories import make_completion, make_group, make_task, make_verdict

NAME = "mine:Game"


def task_of(**reward: Any) -> PromptTask:
    environment = Environment(name=NAME, row="{}", max_turns=3)
    return make_task(samples=1, environment=environment, reward=Reward(**reward))


def verdict_of(
    task: PromptTask, played: Played | None, verdict: Verdict, finish_reason: FinishReason = FinishReason.STOP
) -> Verdict:
    completion = make_completion(finish_reason=finish_reason).model_copy(update={"played": played})
    return in_environment(task, completion, verdict)


def test_a_failed_environment_is_no_verdict_and_names_its_turn_and_reason() -> None:
    for timed_out, outcome in ((False, Outcome.GRADER_ERROR), (True, Outcome.TIMEOUT)):
        played = Played(turns=2, reward=1.0, failure="its process ended", timed_out=timed_out)
        verdict = verdict_of(task_of(judge="environment"), played, make_verdict(1.0))
        assert (verdict.outcome, verdict.accuracy, verdict.reward, verdict.failed) == (outcome, 0.0, 0.0, True)
        assert verdict.reason == "environment mine:Game, turn 2: its process ended"


@pytest.mark.parametrize(("reward", "accuracy"), [(1.0, 1.0), (0.5, 0.5), (0.25, 0.25), (-3.0, 0.0), (7.0, 1.0)])
def test_the_judges_reward_is_the_accuracy(reward: float, accuracy: float) -> None:
    verdict = verdict_of(task_of(judge="environment"), Played(turns=1, reward=reward), make_verdict(0.0, "5"))
    assert (verdict.accuracy, verdict.correct) == (accuracy, accuracy >= 0.5)
    assert (verdict.extracted, verdict.reason) == ("5", f"the environment's reward is {reward:g}")


def test_a_wrong_response_that_was_cut_is_truncated() -> None:
    played, task = Played(turns=3), task_of(judge="environment")
    assert verdict_of(task, played, make_verdict(1.0), FinishReason.LENGTH).outcome is Outcome.TRUNCATED
    assert verdict_of(task, played, make_verdict(1.0)).outcome is Outcome.WRONG


def test_without_a_judge_or_an_environment_the_verifier_decides() -> None:
    right = make_verdict(1.0)
    assert verdict_of(task_of(), Played(turns=1, reward=0.0), right) == right
    assert verdict_of(make_task(), None, right) == right


async def test_rewards_of_the_environment_the_verifier_or_both() -> None:
    async with GraderPool(workers=1) as pool:
        for reward, wanted in [
            (Reward(), 1.0),
            (Reward(judge="environment"), 0.25),
            (Reward(environment=2.0), 1.5),
            (Reward(accuracy=0.0, environment=-1.0), -0.25),
        ]:
            task = task_of().model_copy(update={"reward": reward})
            group = make_group(["\\boxed{7}"], task)
            played = group.completions[0].model_copy(update={"played": Played(turns=1, reward=0.25)})
            scored = await Verifier(pool).verify(group.model_copy(update={"completions": (played,)}))
            assert scored.verdicts[0].reward == wanted
            assert scored.verdicts[0].environment == reward.environment * 0.25
