"""HDPO: which prompts are sampled again with the solution, which responses are kept, and the sum of its two losses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from cepo.algo.base import LossOutput
from cepo.algo.methods.hdpo import Hdpo, is_cliff
from cepo.algo.variants import Grpo, Rloo
from cepo.errors import UserError
from cepo.messages.groups import (
    Ask,
    ContextName,
    EvidencedGroup,
    FollowUp,
    Origin,
    Outcome,
    PromptTask,
    Stage,
    TeachWhen,
    Verdict,
    Want,
)
from cepo.messages.hints import with_hint
from services.trainer.learning.batch import pack
from tests.helpers.factories import POLICY, make_evidenced, make_scored, make_task, make_verdict
from tests.parity.distributions import Lesson, loop_topk_jsd, make_lesson, softmax, taught

SOLVED = "3 and 4 make 7."


@dataclass(frozen=True)
class Closed:
    """A supply that fails the test if a prompt is drawn."""

    prompts: int = 4

    def draw(self, count: int) -> tuple[PromptTask, ...]:
        raise AssertionError(count)


def group(*rewards: float, **task: Any) -> EvidencedGroup:
    task = {"samples": len(rewards), "reference_solution": SOLVED, "asks": ()} | task
    return EvidencedGroup(scored=make_scored(rewards, make_task(**task)))


def test_a_cliff_is_a_prompt_that_no_response_gets_right_whatever_the_rewards() -> None:
    assert [is_cliff(g) for g in (group(0.0, 0.0), group(1.0, 0.0), group(1.0, 1.0))] == [True, False, False]
    formatted = [make_verdict(0.0).model_copy(update={"reward": reward}) for reward in (0.1, 0.0)]
    assert is_cliff(EvidencedGroup(scored=make_scored(verdicts=formatted)))


def test_what_has_no_verdict_makes_no_cliff() -> None:
    timeout = Verdict(outcome=Outcome.TIMEOUT, reward=0, accuracy=0)
    unknown, cliff = ([timeout, other] for other in (timeout, make_verdict(0.0)))
    groups = [
        EvidencedGroup(scored=make_scored(verdicts=verdicts, task=make_task(samples=2, index=at)))
        for at, verdicts in enumerate((unknown, cliff))
    ]
    assert [is_cliff(group) for group in groups] == [False, True]
    assert Hdpo().advantages(pack(groups), 0).metrics["hdpo/cliff_fraction"] == 1.0
    assert Hdpo().advantages(pack(groups[:1]), 0).metrics["hdpo/cliff_fraction"] == 0.0


def test_every_cliff_is_asked_again_with_the_solution_in_its_prompt_by_the_same_policy() -> None:
    algorithm = Hdpo(privileged_samples=5, top=9)
    cliff = group(0.0, 0.0, index=2, policy=POLICY, step=6)
    (task,) = algorithm.follow_up([group(1.0, 0.0), cliff, group(1.0, 1.0, index=3)], 6, Closed())
    assert task.messages == with_hint(cliff.task.messages, cliff.task.hint, SOLVED)
    assert (task.index, task.origin, task.samples) == (6, Origin(kind=FollowUp.DEMONSTRATION, index=2), 5)
    assert (task.policy, task.teacher, task.step) == (POLICY, cliff.task.teacher, 6)
    assert task.asks == (Ask(context=ContextName.PLAIN, want=Want.DISTRIBUTION, top=9),)
    assert (task.teach_when, task.route) == (TeachWhen.ALWAYS, (Stage.ROLLOUT, Stage.VERIFY, Stage.TEACH))
    (answered,) = Hdpo(positive="answer").follow_up([cliff], 6, Closed())
    assert answered.messages == with_hint(cliff.task.messages, cliff.task.hint, "7")


def test_follow_ups_are_a_function_of_the_groups_that_were_asked_first() -> None:
    groups = [group(0.0, 0.0), group(0.0, 0.0, index=1)]
    first = Hdpo().follow_up(groups, 0, Closed())
    came_back = [make_evidenced([0.0] * 8, task) for task in first]  # wrong privileged responses make no further cliff
    assert Hdpo().follow_up([*came_back, *groups], 0, Closed()) == first
    assert len({task.group_id for task in first} | {g.task.group_id for g in groups}) == 4


def test_without_a_cliff_nothing_is_asked_again() -> None:
    assert Hdpo().follow_up([group(1.0, 0.0), group(1.0, 1.0)], 0, Closed()) == ()


def test_a_problem_without_a_solution_is_a_users_mistake_and_the_answer_may_be_shown_instead() -> None:
    cliff = group(0.0, 0.0, reference_solution="")
    with pytest.raises(UserError, match=r"name the column in data.solution, or set algorithm.positive = \"answer\""):
        Hdpo().follow_up([cliff], 0, Closed())
    assert len(Hdpo(positive="answer").follow_up([cliff], 0, Closed())) == 1


def make_hdpo_lesson(algorithm: Hdpo, seed: int = 0) -> Lesson:
    """Two responses of a mixed group, and three demonstrations: wrong, empty and correct."""
    lesson = make_lesson(algorithm.ask, seed)
    shown_B = torch.tensor([False, False, True, True, True])
    reward_B = torch.tensor([1.0, 0.0, math.nan, math.nan, math.nan])
    accuracy_B = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    batch = replace(lesson.batch, demonstration_B=shown_B, reward_B=reward_B, accuracy_B=accuracy_B)
    batch = replace(batch, group_B=torch.tensor([0, 0, 1, 1, 1]))
    return taught(replace(lesson, batch=batch), algorithm.ask, shown_B)


def output(algorithm: Hdpo | Rloo, lesson: Lesson, rows: list[int] | None = None) -> LossOutput:
    rows = list(range(lesson.batch.size)) if rows is None else rows
    batch = lesson.batch.rows(rows)
    adv_BT = algorithm.advantages(lesson.batch, 0).adv_BT[rows, : batch.mask_BT.shape[1]]
    old_BT = lesson.logp_old_BT[rows, : batch.mask_BT.shape[1]]
    return algorithm.loss(lesson.student(rows), old_BT, batch, adv_BT, lesson.batch)


@pytest.mark.parametrize("options", [{"top": 3}, {"top": 7}, {"top": 2, "weight": 0.1, "rest_factor": 1.0}])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_the_policy_and_the_mean_divergence_of_the_tokens_that_were_kept(
    options: dict[str, Any], seed: int
) -> None:
    algorithm = Hdpo(**options)
    lesson = make_hdpo_lesson(algorithm, seed)
    kept, count = 0.0, len(lesson.batch.response_ids[4])  # rows 2, 3 and 4 are wrong, empty and correct
    for t in range(count):
        student, teacher = (softmax(x[4, t].tolist()) for x in (lesson.student_BTV, lesson.teacher_BTV))
        ids = sorted(range(len(teacher)), key=teacher.__getitem__)[-algorithm.top :]
        kept += loop_topk_jsd(student, teacher, ids, algorithm.rest_factor) / count
    policy = float(output(Rloo(clip_high=0.2), lesson).loss.detach())
    assert float(output(algorithm, lesson).loss.detach()) == pytest.approx(policy + algorithm.weight * kept, rel=1e-4)
    assert kept > 0.01


def test_demonstrations_are_no_part_of_the_policy_gradient_and_wrong_ones_of_nothing() -> None:
    algorithm = Hdpo(top=3, weight=1.0)
    lesson = make_hdpo_lesson(algorithm)
    adv_BT = algorithm.advantages(lesson.batch, 0).adv_BT
    assert adv_BT.isfinite().all()
    assert not adv_BT[2:].any()
    assert algorithm.has_gradient_B(lesson.batch, adv_BT).tolist() == [True, True, False, False, True]
    grad_BTV = torch.autograd.grad(output(algorithm, lesson).loss, lesson.student_BTV)[0]
    policy_BTV = torch.autograd.grad(output(Rloo(clip_high=0.2), lesson).loss, lesson.student_BTV)[0]
    assert torch.equal(grad_BTV[:2], policy_BTV[:2])
    assert not policy_BTV[2:].any()
    assert not grad_BTV[2:4].any()
    assert grad_BTV[4].any()


def test_micro_batches_add_up_to_the_whole() -> None:
    algorithm = Hdpo(top=3, weight=0.5)
    lesson = make_hdpo_lesson(algorithm)
    whole = output(algorithm, lesson)
    parts = [output(algorithm, lesson, rows) for rows in ([1], [2, 0], [4, 3])]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    assert set(whole.demonstration_sums) == {
        "distill/divergence",
        "distill/student_mass",
        "distill/teacher_mass",
        "distill/tail_mass",
    }
    for name in ("token_sums", "demonstration_sums"):
        for key, value in getattr(whole, name).items():
            total = sum(getattr(part, name).get(key, 0.0) for part in parts)
            assert total == pytest.approx(value, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("nothing", ["no cliff", "none kept", "not measured"])
def test_no_cliff_sample_kept_leaves_the_policy_loss_with_a_graph(nothing: str) -> None:
    algorithm = Hdpo(top=3)
    lesson = make_hdpo_lesson(algorithm)
    if nothing == "no cliff":
        lesson = replace(lesson, batch=lesson.batch.rows([0, 1]), student_BTV=lesson.student_BTV[:2])
    if nothing == "none kept":
        lesson = replace(lesson, batch=replace(lesson.batch, accuracy_B=torch.tensor([1.0, 0, 0, 0, 0])))
    if nothing == "not measured":
        lesson = replace(lesson, batch=replace(lesson.batch, evidence={}))
    combined, policy = output(algorithm, lesson), output(Rloo(clip_high=0.2), lesson)
    assert torch.equal(combined.loss, policy.loss)
    assert combined.loss.requires_grad
    assert combined.demonstration_sums == {}


def test_cliffs_alone_have_no_policy_gradient_and_a_finite_loss() -> None:
    algorithm = Hdpo(top=3)
    lesson = make_hdpo_lesson(algorithm)
    lesson = replace(lesson, batch=replace(lesson.batch, reward_B=torch.tensor([0.0, 0.0, *[math.nan] * 3])))
    adv_BT = algorithm.advantages(lesson.batch, 0).adv_BT
    assert not adv_BT.any()
    assert algorithm.has_gradient_B(lesson.batch, adv_BT).tolist() == [False] * 4 + [True]
    assert output(algorithm, lesson).loss.isfinite()


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce++", "reinforce++-baseline", "pass@k"])
def test_every_estimator_leaves_demonstrations_alone(estimator: Any) -> None:
    lesson = make_hdpo_lesson(Hdpo())
    adv_BT = Hdpo(estimator=estimator).advantages(lesson.batch, 0).adv_BT
    assert adv_BT[:2].any()
    assert adv_BT[:2].isfinite().all()
    assert torch.equal(adv_BT[2:], torch.zeros(3, 5))


def test_diagnostics_count_cliffs_successes_and_kept_tokens() -> None:
    algorithm = Hdpo()
    lesson = make_hdpo_lesson(algorithm)
    batch = replace(lesson.batch, group_B=torch.tensor([0, 1, 2, 2, 2]))
    metrics = algorithm.advantages(batch, 0).metrics
    assert {key: metrics[f"hdpo/{key}"] for key in ("cliff_fraction", "privileged_success", "kept_tokens")} == {
        "cliff_fraction": 0.5,
        "privileged_success": pytest.approx(2 / 3),
        "kept_tokens": 5.0,
    }
    plain = Hdpo().advantages(batch.rows([0]), 0).metrics
    assert [plain[f"hdpo/{key}"] for key in ("cliff_fraction", "privileged_success", "kept_tokens")] == [0.0] * 3


def test_the_defaults_are_those_of_the_paper() -> None:
    algorithm = Hdpo()
    assert (algorithm.estimator, algorithm.clip_low, algorithm.clip_high) == ("rloo", 0.2, 0.2)
    assert (algorithm.weight, algorithm.top, algorithm.rest_factor) == (0.01, 64, 0.5)
    assert algorithm.asks == Grpo().asks == ()
    assert algorithm.teach_when is TeachWhen.REWARD_SPREAD
