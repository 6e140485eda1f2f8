"""OPSD and SDPO: their asks, their loss against a plain loop, and which inputs their gradient depends on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cepo.algo.methods.distillation import Distillation, Opsd, Sdpo, check_support
from cepo.algo.variants import Grpo
from cepo.errors import UserError
from cepo.messages.groups import Ask, ContextName, Feedback, Pick, TeachWhen, Want, Weights
from tests.parity.distributions import Lesson, loop_divergence, make_lesson, softmax, taught

METRICS = {f"distill/{key}" for key in ("divergence", "student_mass", "teacher_mass", "tail_mass")}
FORMS = [
    Opsd(top=3),
    Opsd(support="full", beta=0.0),
    Sdpo(top=3),
    Sdpo(top=3, beta=1.0, remainder="renormalize", aggregation="seq-mean-token-mean", weight=0.3),
    Opsd(support="sampled", beta=1.0, importance_cap=1.5),
    Sdpo(support="sampled", beta=1.0),
    Opsd(top=2, beta=0.3, remainder="ignore", ratio_cap=1.2),
]


def output(algorithm: Distillation, lesson: Lesson, rows: list[int] | None = None) -> Any:
    rows = list(range(lesson.batch.size)) if rows is None else rows
    batch = lesson.batch.rows(rows)
    old_BT, adv_BT = lesson.logp_old_BT[rows, : batch.mask_BT.shape[1]], torch.zeros_like(batch.mask_BT)
    return algorithm.loss(lesson.student(rows), old_BT, batch, adv_BT, lesson.batch)


def gradient(algorithm: Distillation, lesson: Lesson) -> Tensor:
    return torch.autograd.grad(output(algorithm, lesson).loss, lesson.student_BTV)[0]


def loop_loss(algorithm: Distillation, lesson: Lesson) -> float:
    """Returns the loss from its definition, token by token over the whole vocabulary."""
    batch, evidence = lesson.batch, lesson.batch.evidence[algorithm.ask]
    rows = []
    for row in range(batch.size):
        losses = []
        for t in range(len(batch.response_ids[row])):
            student, teacher = (softmax(x[row, t].tolist()) for x in (lesson.student_BTV, lesson.teacher_BTV))
            token, old = int(lesson.target_BT[row, t]), float(lesson.logp_old_BT[row, t])
            if algorithm.support == "sampled":
                loss = math.log(student[token] / teacher[token]) * math.log(student[token])
            else:
                ids = sorted(
                    range(len(teacher)), key=(student if "student" in algorithm.support else teacher).__getitem__
                )
                ids = ids if algorithm.support == "full" else ids[-algorithm.top :]
                remainder = "ignore" if algorithm.support == "full" else algorithm.remainder
                loss = loop_divergence(student, teacher, ids, algorithm.beta, remainder)
            if algorithm.ratio_cap is not None:
                loss *= min(student[token] / math.exp(old), algorithm.ratio_cap)
            if algorithm.importance_cap is not None:
                loss *= min(math.exp(old - float(batch.rollout_logp_BT[row, t])), algorithm.importance_cap)
            losses.append(loss)
        if evidence.applicable_B[row] and losses:
            rows.append(losses)
    if algorithm.aggregation == "token-mean":
        return algorithm.weight * sum(map(sum, rows)) / sum(map(len, rows))
    return algorithm.weight * sum(sum(row) / len(row) for row in rows) / len(rows)


@pytest.mark.parametrize("algorithm", FORMS, ids=lambda a: f"{a.name}-{a.support}-{a.beta}")
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_a_loop_over_tokens_and_vocabulary(algorithm: Distillation, seed: int) -> None:
    lesson = make_lesson(algorithm.ask, seed)
    assert float(output(algorithm, lesson).loss.detach()) == pytest.approx(loop_loss(algorithm, lesson), rel=1e-4)


@pytest.mark.parametrize("algorithm", FORMS, ids=lambda a: f"{a.name}-{a.support}-{a.beta}")
def test_micro_batches_add_up_to_the_loss_gradient_and_metrics_of_the_whole(algorithm: Distillation) -> None:
    lesson = make_lesson(algorithm.ask)
    whole, grad_BTV = output(algorithm, lesson), gradient(algorithm, lesson)
    parts = [output(algorithm, lesson, rows) for rows in ([3, 1], [4], [2], [0])]
    loss = sum(part.loss for part in parts)
    torch.testing.assert_close(loss, whole.loss)
    torch.testing.assert_close(torch.autograd.grad(loss, lesson.student_BTV)[0], grad_BTV)
    for key, value in whole.token_sums.items():
        assert sum(part.token_sums.get(key, 0.0) for part in parts) == pytest.approx(value, rel=1e-5)


def test_a_sequence_without_a_teacher_has_no_gradient_and_is_in_no_denominator() -> None:
    algorithm = Sdpo(top=3)
    lesson = make_lesson(algorithm.ask)
    adv_BT = algorithm.advantages(lesson.batch, 0).adv_BT
    assert not adv_BT.any()
    assert algorithm.has_gradient_B(lesson.batch, adv_BT).tolist() == [
        True,
        True,
        False,
        False,
        True,
    ]  # the fourth response is empty
    grad_BTV = gradient(algorithm, lesson)
    assert not grad_BTV[2:4].any()
    assert not grad_BTV[lesson.batch.mask_BT == 0].any()
    without = replace(lesson, batch=lesson.batch.rows([0, 1, 4]))
    without = replace(without, student_BTV=lesson.student_BTV[[0, 1, 4]], target_BT=lesson.target_BT[[0, 1, 4]])
    without = replace(without, logp_old_BT=lesson.logp_old_BT[[0, 1, 4]])
    torch.testing.assert_close(output(algorithm, without).loss, output(algorithm, lesson).loss)


@pytest.mark.parametrize("algorithm", [Opsd(top=3), Sdpo(top=3), Opsd(support="sampled", beta=1.0)])
@pytest.mark.parametrize("nothing", ["no demos", "not measured", "no tokens"])
def test_without_anything_to_learn_from_the_loss_is_a_finite_zero_with_a_graph(
    algorithm: Distillation, nothing: str
) -> None:
    lesson = make_lesson(algorithm.ask, applicable=[nothing == "no tokens"] * 5)
    if nothing == "not measured":
        lesson = replace(lesson, batch=replace(lesson.batch, evidence={}))
    if nothing == "no tokens":
        lesson = replace(lesson, batch=replace(lesson.batch, mask_BT=torch.zeros_like(lesson.batch.mask_BT)))
    assert not algorithm.has_gradient_B(lesson.batch, torch.zeros_like(lesson.batch.mask_BT)).any()
    loss = algorithm.loss(lesson.student(), lesson.logp_old_BT, lesson.batch, lesson.logp_old_BT, lesson.batch).loss
    assert float(loss.detach()) == 0.0
    assert not torch.autograd.grad(loss, lesson.student_BTV)[0].any()
    assert algorithm.advantages(lesson.batch, 0).metrics["distill/evidence_fraction"] == float(nothing == "no tokens")


@pytest.mark.parametrize("algorithm", FORMS, ids=lambda a: f"{a.name}-{a.support}-{a.beta}")
def test_a_teacher_that_holds_a_token_impossible_leaves_the_loss_finite(algorithm: Distillation) -> None:
    lesson = make_lesson(algorithm.ask)
    impossible_BTV = lesson.teacher_BTV.clone()
    impossible_BTV[0, 0, int(lesson.target_BT[0, 0])] = -math.inf
    impossible_BTV[1, 0, 1:] = -math.inf
    lesson = taught(replace(lesson, teacher_BTV=impossible_BTV), algorithm.ask, torch.ones(5, dtype=torch.bool))
    assert output(algorithm, lesson).loss.isfinite()
    assert gradient(algorithm, lesson).isfinite().all()


@pytest.mark.parametrize("rows", [[0, 2], [1, 3, 4]], ids=["all correct", "all wrong"])
def test_groups_of_one_kind_learn_from_whatever_could_be_shown(rows: list[int]) -> None:
    algorithm = Sdpo(top=3)
    lesson = make_lesson(algorithm.ask, applicable=[True, False, True, False, False])  # shows correct responses only
    batch = lesson.batch.rows(rows)
    output_of_rows = algorithm.loss(
        lesson.student(rows), lesson.logp_old_BT[rows, : batch.mask_BT.shape[1]], batch, batch.mask_BT, batch
    )
    has_gradient_B = algorithm.has_gradient_B(batch, torch.zeros_like(batch.mask_BT))
    assert bool(output_of_rows.loss.detach() > 0) is bool(has_gradient_B.all()) is (rows == [0, 2])
    assert algorithm.advantages(batch, 0).metrics["distill/success_group_fraction"] == float(rows == [0, 2])


def moved_off_the_sample(lesson: Lesson, ask: Ask) -> Lesson:
    """Returns the lesson with the teacher's probabilities permuted among the tokens that were not sampled."""
    moved_BTV = lesson.teacher_BTV.clone()
    for row in range(moved_BTV.shape[0]):
        for t in range(moved_BTV.shape[1]):
            others = [v for v in range(moved_BTV.shape[2]) if v != int(lesson.target_BT[row, t])]
            moved_BTV[row, t, others] = moved_BTV[row, t, others[1:] + others[:1]]
    moved = replace(lesson, teacher_BTV=moved_BTV)
    return taught(moved, ask, lesson.batch.evidence[ask].applicable_B)


@pytest.mark.parametrize("algorithm", [Opsd(top=3), Opsd(support="full", top=50), Sdpo(top=3)])
def test_teacher_probabilities_off_the_sample_move_the_gradient(algorithm: Distillation) -> None:
    lesson = make_lesson(algorithm.ask)
    moved_BTV = gradient(algorithm, moved_off_the_sample(lesson, algorithm.ask))
    assert (moved_BTV - gradient(algorithm, lesson)).abs().max() > 1e-3


def test_the_sampled_form_sees_the_teacher_at_the_sample_alone_and_may_turn_a_token_round() -> None:
    algorithm = Opsd(support="sampled", beta=1.0)
    lesson = make_lesson(algorithm.ask)
    grad_BTV = gradient(algorithm, lesson)
    torch.testing.assert_close(gradient(algorithm, moved_off_the_sample(lesson, algorithm.ask)), grad_BTV)
    at_sample_BT = grad_BTV.gather(-1, lesson.target_BT[..., None])[lesson.batch.mask_BT.bool()]
    assert (at_sample_BT > 0).any()  # no reward fixes the sign of a token's gradient
    assert (at_sample_BT < 0).any()


def test_no_gradient_reaches_the_teacher_and_the_weights_carry_none() -> None:
    algorithm = Sdpo(top=3, importance_cap=2.0)
    lesson = make_lesson(algorithm.ask)
    evidence = lesson.batch.evidence[algorithm.ask]
    evidence.top_logp_BTk.requires_grad_()
    lesson.logp_old_BT.requires_grad_()
    output(algorithm, lesson).loss.backward()
    assert (evidence.top_logp_BTk.grad, lesson.logp_old_BT.grad) == (None, None)
    assert lesson.student_BTV.grad.any()


def test_metrics_are_means_over_the_tokens_of_the_loss() -> None:
    algorithm = Sdpo(top=3)
    lesson = make_lesson(algorithm.ask)
    sums = output(algorithm, lesson).token_sums
    assert set(sums) == METRICS | {"distill/ratio_clip_fraction"}
    rows, student, teacher, over = [0, 1, 4], 0.0, 0.0, 0
    for row in rows:
        for t in range(len(lesson.batch.response_ids[row])):
            s, q = (softmax(x[row, t].tolist()) for x in (lesson.student_BTV, lesson.teacher_BTV))
            ids = sorted(range(len(s)), key=s.__getitem__)[-3:]
            student, teacher = student + sum(s[i] for i in ids), teacher + sum(q[i] for i in ids)
            over += s[int(lesson.target_BT[row, t])] / math.exp(float(lesson.logp_old_BT[row, t])) > 2.0
    assert sums["distill/student_mass"] == pytest.approx(student, rel=1e-5)
    assert sums["distill/teacher_mass"] == pytest.approx(teacher, rel=1e-5)
    assert sums["distill/tail_mass"] == pytest.approx(11 - teacher, rel=1e-5)
    assert sums["distill/ratio_clip_fraction"] == over
    assert algorithm.advantages(lesson.batch, 0).metrics == {
        "distill/evidence_fraction": pytest.approx(0.8),
        "distill/success_group_fraction": 0.5,
    }


def test_opsd_shows_the_solution_and_compares_the_teachers_likeliest_tokens() -> None:
    assert Opsd().asks == (Ask(context=ContextName.ANSWER, want=Want.DISTRIBUTION, feedback=Feedback.SOLUTION, top=50),)
    assert Opsd(support="full").ask.top == 0
    assert Opsd(support="sampled", beta=1.0, positive="answer").ask == Ask(context=ContextName.ANSWER)


def test_sdpo_shows_another_correct_response_and_compares_the_students_likeliest_tokens() -> None:
    shown = Sdpo(pick="shortest").ask
    assert (shown.context, shown.feedback, shown.pick) == (ContextName.ANSWER, Feedback.PEER_FULL, Pick.SHORTEST)
    assert (shown.exclude_self, shown.otherwise) == (True, None)
    assert (shown.top, shown.support, shown.weights) == (100, Weights.POLICY, Weights.TEACHER)
    assert Sdpo(apply_to="all").ask.otherwise is ContextName.ANSWER


def test_groups_of_equal_rewards_are_taught_like_others() -> None:
    assert Opsd().teach_when is Sdpo().teach_when is TeachWhen.ALWAYS  # correct responses can be shown to each other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"support": "full", "top": 9}, "top has no effect with support='full'"),
        ({"support": "sampled", "beta": 1.0, "remainder": "ignore"}, "remainder has no effect"),
        ({"support": "sampled"}, "needs beta=1.0, not 0.5"),
        ({"pick": "random"}, "pick has no effect with positive='solution'"),
        ({"apply_to": "demo"}, "apply_to='demo' needs responses to show"),
        ({"beta": 1.1}, "less than or equal to 1"),
        ({"top": 0}, "greater than or equal to 1"),
        ({"clip_low": 0.2}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_mean_nothing_are_refused_with_the_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Opsd(**options)


def test_a_whole_distribution_is_refused_for_a_large_vocabulary() -> None:
    check_support(Opsd(support="full").asks, 4096, 8000)
    for algorithm in (Opsd(), Sdpo(), Opsd(support="sampled", beta=1.0), Grpo()):
        check_support(algorithm.asks, 151_936, 8000)
    with pytest.raises(UserError, match=r"takes 262 MB with a vocabulary of 4097 tokens \(at most 4096 and 268 MB can"):
        check_support(Opsd(support="full").asks, 4097, 8000)
    with pytest.raises(UserError, match=r'of 8192 response tokens takes 9,957 MB .* set algorithm.support = "teacher'):
        check_support(Opsd(support="full").asks, 151_936, 8192)


def test_evidence_that_redis_does_not_take_is_refused_with_the_number_of_tokens_that_fit() -> None:
    check_support(Opsd(top=2000).asks, 151_936, 8 * 2048)
    with pytest.raises(UserError, match=r"^algorithm.top: .* 16384 response tokens takes 655 MB, .* set it to 2048 or"):
        check_support(Opsd(top=5000).asks, 151_936, 8 * 2048)
