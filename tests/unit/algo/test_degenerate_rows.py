"""Groups with missing verdicts, tokens or evidence, from their verdicts through a batch to the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cepo.algo.base import LossOutput
from cepo.algo.batch import TrainBatch
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.variants import Grpo
from cepo.messages.groups import ContextName, EvidencedGroup, EvidenceReason, FinishReason, Outcome, Stage, Verdict
from cepo.service.bus import ready, stream_of
from cepo.service.stage import destination
from services.trainer.learning.batch import pack
from tests.helpers.factories import make_ragged, make_scored, make_task, make_verdict
from tests.parity.support import Scored
from tests.unit.algo.test_degenerate import CORRECT, WORTH, WRONG, multiplier, taught, weighed

METHODS = [Grpo(), Rlsd(), Rlsd(student_logp="current"), Cepo()]
TIMEOUT = Verdict(outcome=Outcome.TIMEOUT, reward=0.0, accuracy=0.0)


def loss(algorithm: PolicyGradient, batch: TrainBatch) -> tuple[LossOutput, torch.Tensor]:
    """Returns the loss and its gradient [B, T] at the log-probs of the sampling policy."""
    logp_BT = batch.rollout_logp_BT.clone().requires_grad_()
    output = algorithm.loss(Scored(logp_BT), logp_BT.detach(), batch, algorithm.advantages(batch, 0).adv_BT, batch)
    output.loss.backward()
    assert logp_BT.grad is not None
    return output, logp_BT.grad


@pytest.mark.parametrize("rewards", [(1.0, 1.0), (0.0, 0.0), (0.1, 0.1)], ids=["all-correct", "all-wrong", "format"])
@pytest.mark.parametrize("algorithm", [Rlsd(), Cepo()])
def test_a_group_of_equal_rewards_skips_the_teacher_and_its_weight_is_one(
    algorithm: Cepo | Rlsd, rewards: tuple[float, float]
) -> None:
    scored = make_scored(rewards, make_task(teach_when=algorithm.teach_when, asks=algorithm.asks))
    assert destination(Stage.VERIFY, scored) == ready("run")
    batch = pack([EvidencedGroup(scored=scored)])
    assert not algorithm.advantages(batch, 0).adv_BT.any()
    assert not algorithm.has_gradient_B(batch, algorithm.advantages(batch, 0).adv_BT).any()
    assert algorithm.advantages(batch, 0).metrics["credit/tokens"] == 0


def test_a_group_all_wrong_of_unequal_rewards_goes_to_the_teacher() -> None:
    formatted = make_verdict(0.0, "5").model_copy(update={"reward": 0.1})
    task = make_task(teach_when=Cepo().teach_when, asks=Cepo().asks)
    scored = make_scored(task=task, verdicts=[formatted, WRONG])
    assert destination(Stage.VERIFY, scored) == stream_of(Stage.TEACH)


@pytest.mark.parametrize("distance", [50.0, 1e4, 3e38])
def test_a_huge_delta_gives_exactly_the_clipped_weight(distance: float) -> None:
    batch = pack([taught(Cepo(), [CORRECT, WRONG], WORTH | {ContextName.REJECTED: -distance})])
    multiplier_B = (Cepo().advantages(batch, 0).adv_BT / Grpo().advantages(batch, 0).adv_BT)[:, 0]
    assert multiplier_B.tolist() == pytest.approx([1.25, 0.75])
    assert Cepo().advantages(batch, 0).metrics["credit/nonfinite_tokens"] == 0


@pytest.mark.parametrize("algorithm", METHODS, ids=lambda method: method.name)
def test_an_empty_response_is_in_no_denominator_and_its_reward_in_the_group(algorithm: PolicyGradient) -> None:
    batch = pack(make_ragged([(4, 0, 3)], asks=algorithm.asks))
    assert batch.reward_B.tolist() == [0.0, 1.0, 0.0]
    output, grad_BT = loss(algorithm, batch)
    others, alone_BT = loss(algorithm, batch.rows([0, 2]))
    assert math.isfinite(float(output.loss.detach()))
    assert grad_BT.any()  # the baseline includes the empty response's reward of 1
    assert not alone_BT.any()
    assert output.token_sums.keys() == others.token_sums.keys()


@pytest.mark.parametrize("algorithm", METHODS, ids=lambda method: method.name)
def test_a_micro_batch_masked_whole_has_a_loss_of_zero_with_a_graph(algorithm: PolicyGradient) -> None:
    batch = pack([EvidencedGroup(scored=make_scored(verdicts=[TIMEOUT, TIMEOUT]))])
    output, grad_BT = loss(algorithm, batch)
    assert float(output.loss.detach()) == 0
    assert not grad_BT.any()
    assert not any(output.token_sums.values())
    assert all(math.isfinite(value) for value in algorithm.advantages(batch, 0).metrics.values())


def test_a_truncated_response_is_shown_only_for_an_answer_it_gave() -> None:
    cut = Verdict(outcome=Outcome.TRUNCATED, reward=0.0, accuracy=0.0)
    assert taught(Cepo(), [CORRECT, cut]).evidence[1].rows[0].reason is EvidenceReason.NO_ANSWER
    group = taught(Cepo(), [CORRECT, WRONG])
    completions = group.scored.rollout.completions
    late = completions[1].model_copy(update={"finish_reason": FinishReason.LENGTH})
    rollout = group.scored.rollout.model_copy(update={"completions": (completions[0], late)})
    batch = pack([group.model_copy(update={"scored": group.scored.model_copy(update={"rollout": rollout})})])
    assert Cepo().advantages(batch, 0).metrics["credit/tokens"] == 7
    assert Cepo().loss_mask_BT(batch)[1].all()
    assert not Cepo(mask_truncated=True).loss_mask_BT(batch)[1].any()


@pytest.mark.parametrize(
    ("verdicts", "learns"),
    [([CORRECT, WRONG, TIMEOUT], [True, True, False]), ([CORRECT, TIMEOUT, TIMEOUT], [False] * 3)],
    ids=["two-left", "one-left"],
)
def test_a_verifier_time_out_drops_the_sample_and_a_group_of_one_with_it(
    verdicts: Sequence[Verdict], learns: list[bool]
) -> None:
    batch = pack([taught(Cepo(), verdicts)])
    adv_BT = Cepo().advantages(batch, 0).adv_BT
    assert Cepo().has_gradient_B(batch, adv_BT).tolist() == learns
    assert batch.mask_BT.any(dim=1).tolist() == [verdict is not TIMEOUT for verdict in verdicts]
    if any(learns):  # the third response has no effect on the others
        torch.testing.assert_close(adv_BT[:2, :4], Cepo().advantages(pack([taught(Cepo(), verdicts[:2])]), 0).adv_BT)


@pytest.mark.parametrize("algorithm", [Rlsd(decay_steps=5), Cepo(decay_steps=5)], ids=lambda method: method.name)
def test_at_lambda_zero_nothing_is_asked_and_the_advantage_is_grpos(algorithm: Cepo | Rlsd) -> None:
    assert algorithm.asks_at(4) == algorithm.asks
    assert algorithm.asks_at(5) == ()
    batch = pack([EvidencedGroup(scored=make_scored([1.0, 0.0]))])
    assert torch.equal(algorithm.advantages(batch, 5).adv_BT, Grpo().advantages(batch, 5).adv_BT)
    metrics = algorithm.advantages(batch, 5).metrics
    assert set(metrics.values()) == {0.0}


@pytest.mark.parametrize("options", [{"eps_w": 1.0}, {"eps_w": 1.5}, {"eps_w": 0.0}, {"lam": 1.1}, {"lam": -0.1}])
@pytest.mark.parametrize("method", [Rlsd, Cepo])
def test_what_could_turn_an_advantage_round_is_refused(
    method: type[Rlsd] | type[Cepo], options: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        method(**options)


def test_a_wrong_answer_equal_to_the_right_one_has_exactly_weight_one_where_there_is_no_fallback() -> None:
    same = make_verdict(0.0, "7")
    assert multiplier(Cepo(no_negative="grpo"), CORRECT, same).tolist() == [1.0, 1.0]
    expected = [weighed(1, 1, Cepo()), weighed(1, -1, Cepo())]  # by default the plain context is the fallback
    assert multiplier(Cepo(), CORRECT, same).tolist() == pytest.approx(expected)
